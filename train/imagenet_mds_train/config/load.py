"""Reads a configuration: a shipped one or a YAML file, with `key=value` overrides.

OmegaConf reads and merges, because it reads `1e-4` as a number where PyYAML reads a string; pydantic checks types and
bounds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from imagenet_mds.errors import UserError
from imagenet_mds.resources import config_names, config_path
from imagenet_mds_train.config.explain import complaints, concerns
from imagenet_mds_train.config.schema import TrainConfig


def load_config(name_or_path: str, overrides: Sequence[str] = (), ranks: int | None = None) -> TrainConfig:
    """Read a configuration and apply overrides.

    Args:
        name_or_path: the name of a shipped configuration (`phase1`), or the path of a YAML file.
        overrides: `key=value` each, with a dotted key.
        ranks: overrides `ranks` where it is not None.

    Raises:
        UserError: no such configuration, unreadable YAML, an unknown key (the nearest known one is named), a wrong
            type.
    """
    path = _find(name_or_path)
    try:
        loaded = OmegaConf.load(path)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_first_line(error)}") from None
    except Exception as error:  # PyYAML's errors have no narrower base class
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise UserError(f"{override!r} is not an override: write key=value, for example optimizer.lr=0.1")
    try:
        tree = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(tree, resolve=True)
    except Exception as error:  # OmegaConf raises grammar, interpolation, YAML and key errors without a common base
        raise UserError(f"{path} with {' '.join(overrides)}: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a configuration: it must be a mapping of keys, see `imagenet-mds configs show`")
    if ranks is not None:
        values["ranks"] = ranks
    given = [override.split("=", 1)[0] for override in overrides] + (["ranks"] if ranks is not None else [])
    return parse_config({str(key): value for key, value in values.items()}, str(path), given)


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


def _find(name_or_path: str) -> Path:
    if (shipped := config_path(name_or_path)) is not None:
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise UserError(
        f"there is no configuration {name_or_path}: pass a YAML file, or one of {', '.join(config_names())}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
