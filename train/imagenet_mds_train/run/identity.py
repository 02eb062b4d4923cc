"""The identity of a run: the dataset and recipe that must not change between its parts. Imports no torch."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imagenet_mds.dataset.access import Split
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import differences
from imagenet_mds_train.config.schema import TrainConfig

_MOST_SHOWN = 6


def run_identity(config: TrainConfig, train: Split, val: Split | None) -> dict[str, Any]:
    """What must not change within a run: fingerprints of the splits and classes, and the recipe."""
    return {
        "dataset": {
            "train": train.info.fingerprint,
            "val": val.info.fingerprint if val else None,
            "classes": train.info.classes_fingerprint,
        },
        "recipe": config.recipe(),
    }


def refuse_other(origin: object, before: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Let a run, or a checkpoint, be continued only as what it was.

    A key of the recipe that `before` lacks, because a later version added it, counts as its default.

    Args:
        origin: where `before` was read from.
        before: its identity; None for a run that was never started.
        identity: of the run that is to continue.

    Raises:
        UserError: it was started with another dataset or recipe; the differences are shown with both values.
    """
    if before is None:
        return
    if isinstance(before.get("recipe"), Mapping):
        before = before | {"recipe": _with_defaults(before["recipe"], identity["recipe"], TrainConfig)}
    if before == identity:
        return
    shown = differences(before, identity)
    more = f"; and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    raise UserError(
        f"{origin} is of another run: {'; '.join(shown[:_MOST_SHOWN])}{more}. "
        f"Pass what it was started with, or start a new run with --run-name"
    )


def _with_defaults(before: Mapping[str, Any], now: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """A part of a recipe with the default of every key that only `now` has."""
    completed = dict(before)
    for key, value in now.items():
        field = section.model_fields.get(key)
        if field is None:
            continue
        if key not in before:
            if not field.is_required():
                completed[key] = _narrowed(_default(field), value)
        elif isinstance(value, Mapping) and isinstance(before[key], Mapping) and (inner := _section_of(field)):
            completed[key] = _with_defaults(before[key], value, inner)
    return completed


def _default(field: FieldInfo) -> Any:
    """A field's default as plain values."""
    default = field.get_default(call_default_factory=True, validated_data={})
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _narrowed(value: Any, like: Any) -> Any:
    """Only those keys that `like` has too: a recipe does not hold every key of the configuration."""
    if isinstance(value, Mapping) and isinstance(like, Mapping):
        return {key: _narrowed(inner, like[key]) for key, inner in value.items() if key in like}
    return list(value) if isinstance(value, tuple) else value


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a group of keys, or may be one."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
