"""The identity of a run: the dataset and recipe that must not change between its parts. Imports no torch."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

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
        "recipe": config.what_is_fixed(),
    }


WAY_ON = "Pass what it was started with, or start a new run with --run-name"
"""What to do about a run that is another one."""


def refuse_other(origin: object, before: dict[str, Any] | None, identity: dict[str, Any], way_on: str = WAY_ON) -> None:
    """Let a run, or a checkpoint, be continued only as what it was.

    A key of the recipe that `before` lacks, because a later version added it, counts as its default.

    Args:
        origin: where `before` was read from.
        before: its identity; None for a run that was never started.
        identity: of the run that is to continue.
        way_on: what to do, as the message says it.

    Raises:
        UserError: it was started with another dataset or recipe; the differences are shown with both values.
    """
    if before is None:
        return
    if isinstance(before.get("recipe"), Mapping):
        before = before | {"recipe": _completed(before["recipe"])}
    if before == identity:
        return
    shown = differences(before, identity)
    more = f"; and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    raise UserError(f"{origin} is of another run: {'; '.join(shown[:_MOST_SHOWN])}{more}. {way_on}")


def _completed(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe as this version writes it, with the default of every key that it lacks."""
    try:
        return TrainConfig.model_validate_json(json.dumps(recipe)).what_is_fixed()
    except ValidationError:  # then the differences are shown
        return recipe
