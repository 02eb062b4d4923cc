"""Reads a configuration in layers: the defaults, a recipe, a shipped or other YAML file, `key=value` overrides.

OmegaConf reads and merges, because it reads `1e-4` as a number where PyYAML reads a string; pydantic checks types and
bounds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from imagenet_mds.errors import UserError
from imagenet_mds.resources import find_config, names_of_configs, recipe_names, recipe_path
from imagenet_mds_train.config.explain import complaints, concerns
from imagenet_mds_train.config.schema import TrainConfig

Tree = DictConfig | ListConfig


@dataclass(frozen=True)
class Layer:
    """A part of a configuration, of which later ones win. `origin` says where it is from, as a user knows it."""

    origin: str
    tree: Tree


def load_config(
    name_or_path: str, overrides: Sequence[str] = (), ranks: int | None = None, *, deterministic: bool = False
) -> TrainConfig:
    """Read a configuration with its recipe and apply overrides.

    Args:
        name_or_path: the name of a shipped configuration or recipe (`phase1`), or the path of a YAML file.
        overrides: `key=value` each, with a dotted key.
        ranks: overrides `ranks` where it is not None.
        deterministic: sets `system.deterministic`, which no override may contradict.

    Raises:
        UserError: no such configuration or recipe, unreadable YAML, an unknown key (the nearest known one is named), a
            wrong type, a contradiction.
    """
    layers = load_layers(name_or_path, overrides, ranks)
    if deterministic:
        _refuse_contradiction(overrides)
        layers.append(Layer("command line", OmegaConf.create({"system": {"deterministic": True}})))
    given = [override.split("=", 1)[0] for override in overrides] + (["ranks"] if ranks is not None else [])
    path = _find(name_or_path)
    try:
        values = OmegaConf.to_container(OmegaConf.merge(*(layer.tree for layer in layers)), resolve=True)
    except Exception as error:  # OmegaConf raises grammar, interpolation, YAML and key errors without a common base
        raise UserError(f"{path} with {' '.join(overrides)}: {_first_line(error)}") from None
    assert isinstance(values, dict)
    return parse_config({str(key): value for key, value in values.items()}, str(path), given)


def load_layers(name_or_path: str, overrides: Sequence[str] = (), ranks: int | None = None) -> list[Layer]:
    """Read the layers of a configuration, the first of which is overridden by all others; see `load_config`."""
    path = _find(name_or_path)
    file = _read(path)
    if not isinstance(file, DictConfig):
        raise UserError(f"{path} is not a configuration: it must be a mapping of keys, see `imagenet-mds configs show`")
    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise UserError(f"{override!r} is not an override: write key=value, for example optimizer.lr=0.1")
        try:
            OmegaConf.from_dotlist([override])
        except Exception as error:  # see `load_config`
            raise UserError(
                f"{override} cannot be read ({_first_line(error)}): close its brackets, and quote it for the shell"
            ) from None
    try:
        typed: Tree = OmegaConf.from_dotlist(list(overrides))
        # A key that neither may have is reported by the merge of all layers.
        both = OmegaConf.to_container(OmegaConf.merge(file, typed))
    except Exception as error:  # see `load_config`
        raise UserError(f"{path} with {' '.join(overrides)}: {_first_line(error)}") from None
    layers = [Layer(Path(name_or_path).stem, file), Layer("command line", typed)]
    if ranks is not None:
        layers.append(Layer("command line", OmegaConf.create({"ranks": ranks})))
    recipe = both.get("recipe") if isinstance(both, dict) else None
    if recipe is not None:
        layers.insert(0, Layer(f"recipe {recipe}", _read(_find_recipe(recipe))))
    return layers


def _refuse_contradiction(overrides: Sequence[str]) -> None:
    """Refuse overrides that say something else than the option --deterministic.

    Raises:
        UserError: they do.
    """
    typed = OmegaConf.select(OmegaConf.from_dotlist(list(overrides)), "system.deterministic", default=True)
    if typed is not True:
        said = json.dumps(typed, default=repr)
        raise UserError(f"--deterministic contradicts system.deterministic={said}: remove one of them")


def origins(layers: Sequence[Layer]) -> dict[str, str]:
    """Which layer set each key, by its dotted path. Keys that are not there have their default."""
    found: dict[str, str] = {}
    for layer in layers:
        for path in _leaves(OmegaConf.to_container(layer.tree)):
            # A group that is set to null, or a value that becomes a group, replaces what was there.
            for known in [known for known in found if known.startswith(f"{path}.") or path.startswith(f"{known}.")]:
                del found[known]
            found[path] = layer.origin
    return found


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(tree, Mapping) or not tree:
        yield prefix.rstrip(".")
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.")


def parse_config(values: dict[str, Any], origin: str, given: Sequence[str] = ()) -> TrainConfig:
    """Check a tree of plain values.

    Args:
        values: the tree.
        origin: the file it was read from.
        given: the keys that were typed and are not in that file.

    Raises:
        UserError: lists everything that is wrong, and names `origin` unless all of it was typed.
    """
    try:
        # Validated as JSON, where strict mode still accepts a list for a tuple.
        return TrainConfig.model_validate_json(json.dumps(values, default=repr))
    except ValidationError as error:
        found = complaints(error)
        typed = {path for path in found if any(concerns(path, key) for key in given)}
        where = "" if typed == found.keys() else f"{origin}: "
        raise UserError(where + "; ".join(found.values())) from None


def _read(path: Path) -> Tree:
    """Read a YAML file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return OmegaConf.load(path)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_first_line(error)}") from None
    except Exception as error:  # PyYAML's errors have no narrower base class
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _find(name_or_path: str) -> Path:
    if (shipped := find_config(name_or_path)) is not None:
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise UserError(f"there is no configuration {name_or_path}: pass a YAML file, or one of {names_of_configs()}")


def _find_recipe(name: Any) -> Path:
    if (path := recipe_path(str(name))) is None:
        raise UserError(f"there is no recipe {name}: pass recipe=null, or one of {', '.join(recipe_names())}")
    return path


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
