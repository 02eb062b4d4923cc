"""Reads a configuration: a shipped one or a YAML file, with `key=value` overrides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from imagenet_mds.errors import UserError
from imagenet_mds.resources import config_names, config_path
from imagenet_mds_train.config.explain import _complaints, _is_of
from imagenet_mds_train.config.schema import TrainConfig


def load_config(name_or_path: str, overrides: Sequence[str] = (), ranks: int | None = None) -> TrainConfig:
    """Read a configuration: a shipped one by its name (`phase1`) or a YAML file by its path, with `key=value` over it.

    Raises:
        UserError: no such configuration, unreadable YAML, an unknown key (the nearest known one is named), a wrong
        type.
    """
    path = _find(name_or_path)
    try:
        loaded = OmegaConf.load(path)
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_first_line(error)}") from None
    except Exception as error:  # PyYAML's errors derive from Exception alone
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    for override in overrides:
        if "=" not in override or override.startswith(("=", "-")):
            raise UserError(f"{override!r} is not an override: write key=value, for example optimizer.lr=0.1")
    try:
        tree = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(tree, resolve=True)
    except Exception as error:  # OmegaConf raises grammar, interpolation, YAML and key errors of several roots here
        raise UserError(f"{path} with {' '.join(overrides)}: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} is not a configuration: it should be a mapping of keys, see `imagenet-mds configs show`"
        )
    if ranks is not None:
        values["ranks"] = ranks
    given = [override.split("=", 1)[0] for override in overrides] + (["ranks"] if ranks is not None else [])
    return parse_config({str(key): value for key, value in values.items()}, str(path), given)


def parse_config(values: dict[str, Any], origin: str, given: Sequence[str] = ()) -> TrainConfig:
    """Check a tree of plain values.

    Args:
        values: the tree.
        origin: the file that it is from.
        given: the keys that are not from there, but typed.

    Raises:
        UserError: all that is wrong, `origin` named for what is from there.
    """
    try:
        # Through JSON, where strictness still lets a list stand for a tuple.
        return TrainConfig.model_validate_json(json.dumps(values, default=repr))
    except ValidationError as error:
        complaints = _complaints(error)
        typed = {path for path in complaints if any(_is_of(path, key) for key in given)}
        where = "" if typed == complaints.keys() else f"{origin}: "
        raise UserError(where + "; ".join(complaints.values())) from None


def _find(name_or_path: str) -> Path:
    if (shipped := config_path(name_or_path)) is not None:
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise UserError(
        f"there is no configuration {name_or_path}: give a YAML file, or one of {', '.join(config_names())}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
