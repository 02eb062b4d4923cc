"""What each key of the configuration means: the text of `configs explain` and of the reference page, from the schema.

The docstrings of `config/` are the one source; types, bounds and defaults come from the annotations beside them.
"""

import difflib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.resources import config_names
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig

_COLUMNS = 100
"""Width of the text on a terminal."""


@dataclass(frozen=True)
class Key:
    """A key or a group of keys.

    path: dotted.
    values: what it accepts, in words.
    default: as it is written in YAML; None where a value must be given, and for a group that is always there.
    text: what it means.
    is_group: whether it has keys below it.
    """

    path: str
    values: str
    default: str | None
    text: str
    is_group: bool

    @property
    def summary(self) -> str:
        """The first sentence of the text."""
        return re.split(r"(?<=[a-z`)])(?<!et al)[.:] ", _one_line(self.text))[0].removesuffix(".")

    @property
    def facts(self) -> str:
        """What it accepts and its default, in one line."""
        return f"{self.values}; must be given" if self.default is None else f"{self.values}; default {self.default}"


def all_keys() -> list[Key]:
    """Every key and group, in the order of the schema, each group before its keys."""
    schema = TrainConfig.model_json_schema()
    return list(_below(schema, schema["$defs"], ""))


def keys_of(path: str) -> list[Key]:
    """A key, or a group with all that is below it.

    Args:
        path: dotted; the last part alone is enough where only one key has it.

    Raises:
        UserError: there is no such key, or there are several.
    """
    keys = all_keys()
    known = [key.path for key in keys]
    matching = [name for name in known if name == path] or [name for name in known if name.endswith(f".{path}")]
    if not matching:
        last = path.rsplit(".", 1)[-1]
        ends = {name.rsplit(".", 1)[-1]: name for name in known}
        near = [name for name in known if name.rsplit(".", 1)[-1] == last] or difflib.get_close_matches(path, known, 3)
        near = near or [ends[end] for end in difflib.get_close_matches(last, ends, 1, cutoff=0.7)]
        raise UserError(
            f"there is no key {path}: "
            + (f"did you mean {' or '.join(near)}?" if near else "`imagenet-mds configs explain` lists all of them")
        )
    if len(matching) > 1:
        raise UserError(f"{path} is the end of several keys: pass one of {', '.join(matching)}")
    return [key for key in keys if f"{key.path}.".startswith(f"{matching[0]}.")]


def explained(keys: Sequence[Key]) -> str:
    """Return the full text of a key for the terminal. A group is followed by a line for each of its keys."""
    first, *below = keys
    text = textwrap.wrap(_one_line(first.text), _COLUMNS, initial_indent="  ", subsequent_indent="  ")
    lines = [first.path, *text, f"  {first.facts}", ""]
    lines += [f"{key.path:36} {key.facts}: {key.summary}" for key in below]
    if not first.is_group:
        lines += [f"  {name:8} {_value_in(load_config(name), first.path)}" for name in config_names()]
    return "\n".join(lines).rstrip()


def _value_in(config: TrainConfig, path: str) -> str:
    value: Any = config.model_dump(mode="json")
    for name in path.split("."):
        if value is None:
            return "off"
        value = value[name]
    return json.dumps(value)


def reference_page() -> str:
    """The page of all keys, Markdown."""
    lines = ["# The keys of a configuration", ""]
    lines += ["Written by `imagenet-mds configs explain --markdown`, from the docstrings of the code. A key that is"]
    lines += ["missing has its default; `null` switches a group off.", ""]
    for key in all_keys():
        if key.is_group:
            lines += ["", f"## `{key.path}`", "", _one_line(key.text), ""]
            lines += [] if key.default is None else [f"Default: `{key.default}`.", ""]
        else:
            lines += [f"- `{key.path}` ({key.facts}): {_one_line(key.text)}"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _below(schema: dict[str, Any], groups: dict[str, Any], prefix: str) -> Iterator[Key]:
    required = schema.get("required", ())
    # Plain keys first, so that a page has them with their group.
    for name, entry in sorted(schema["properties"].items(), key=lambda item: _group_of(item[1]) is not None):
        path, group = f"{prefix}{name}", _group_of(entry)
        text = entry.get("description", "")  # pydantic drops one that is equal to the group's
        if group is None:
            default = None if name in required else json.dumps(entry["default"])
            yield Key(path, _values(entry), default, text, is_group=False)
            continue
        about = groups[group]["description"]
        if "anyOf" in entry:
            yield Key(
                path, "a group of keys, or null", json.dumps(entry["default"]), f"{text} {about}".strip(), is_group=True
            )
        else:
            yield Key(path, "a group of keys", None, about, is_group=True)
        yield from _below(groups[group], groups, f"{path}.")


def _group_of(entry: dict[str, Any]) -> str | None:
    """The name of the model that an entry's value is, None if it is a plain value."""
    for option in (entry, *entry.get("anyOf", ())):
        if "$ref" in option:
            return str(option["$ref"].removeprefix("#/$defs/"))
    return None


def _values(entry: dict[str, Any]) -> str:
    """What a plain value may be, in words."""
    if "anyOf" in entry:
        return " or ".join(_values(option) for option in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(map(str, entry["enum"][:-1])) + f" or {entry['enum'][-1]}"
    if "const" in entry:
        return str(entry["const"])
    if entry["type"] == "array":
        if "prefixItems" not in entry:
            return f"a list, each {_values(entry['items'])}"
        return f"[{', '.join(_values(item) for item in entry['prefixItems'])}]"
    if "pattern" in entry:
        return "a share such as 40%"
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a name"}
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {entry[bound]:,}".removesuffix(".0") for bound, word in bounds.items() if bound in entry]
    kind = words.get(entry["type"], entry["type"])
    return f"{kind} {' and '.join(limits)}" if limits else kind


def _one_line(text: str) -> str:
    return " ".join(text.split())
