"""Explains what is wrong with a configuration, a sentence for each mistake."""

import difflib
import json
from typing import Any

from pydantic import BaseModel, ValidationError

from imagenet_mds_train.config.schema import TrainConfig

_WHOLE = "Value error, "
"""Stands for the path of a mistake that concerns the whole tree; the sentence follows it."""


def complaints(error: ValidationError) -> dict[str, str]:
    """One sentence for each mistake, by its path. pydantic complains about each member of a union; one sentence stands
    for all of them."""
    seen: dict[str, str] = {}
    ways: dict[tuple[str, str], list[str]] = {}
    """What would do instead of a value, by its path."""
    for item in error.errors():
        keys = [str(part) for part in item["loc"]]
        path = ".".join(_known_part(keys))
        if item["type"] == "extra_forbidden":
            path = ".".join(keys)
            seen[path] = f"unknown key {path}{_nearest(path)}"
        elif item["type"] == "missing":
            seen.setdefault(path, f"{path} is missing")
        elif item["type"] == "value_error":
            seen.setdefault(
                path or item["msg"], (f"{path}: " if path else "") + item["msg"].removeprefix("Value error, ")
            )
        else:
            message = item["msg"].removeprefix("Input ")
            if item["type"] in ("model_type", "model_attributes_type"):
                message = f"is a group of keys, see `imagenet-mds configs explain {path}`"
            seen.setdefault(path, "")
            ways.setdefault((path, _shown(item["input"])), []).append(message)
    for (path, shown), messages in ways.items():
        seen[path] = seen[path] or f"{path} {' or '.join(dict.fromkeys(messages))}, and is {shown}"
    return seen


def concerns(path: str, key: str) -> bool:
    """Whether a mistake at `path` concerns the value of `key`: it is there, below it, or in a group around it."""
    return f"{path}.".startswith(f"{key}.") or f"{key}.".startswith(f"{path}.") or path.startswith(_WHOLE)


def _shown(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, dict) else "a group of keys"


def known_keys(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[str]:
    """The dotted path of every key and group of the tree."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        for kind in getattr(field.annotation, "__args__", ()) or (field.annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += known_keys(kind, f"{prefix}{name}.")
    return keys


def _known_part(keys: list[str]) -> list[str]:
    """A location without the parts that pydantic adds for members of unions and places in tuples."""
    known = set(known_keys())
    while keys and ".".join(keys) not in known:
        keys = keys[:-1]
    return keys


def _nearest(path: str) -> str:
    """A hint at the key that was probably meant: one with the same last name, or a similar one."""
    known = known_keys()
    last = path.rsplit(".", 1)[-1]
    same_name = [key for key in known if key.rsplit(".", 1)[-1] == last]
    alike = same_name or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not alike:
        names = {key.rsplit(".", 1)[-1]: key for key in known}
        alike = [names[name] for name in difflib.get_close_matches(last, names, n=1, cutoff=0.6)]
    return f" (did you mean {alike[0]}?)" if alike else f" (known: {', '.join(key for key in known if '.' not in key)})"
