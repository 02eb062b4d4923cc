"""The identity of a run: what must not change between its parts."""

from pathlib import Path
from typing import Any

from imagenet_mds.dataset.access import Split
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import differences
from imagenet_mds_train.config.schema import TrainConfig

_MOST_SHOWN = 6


def refuse_other(path: Path, before: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Let a run, or a checkpoint, be continued only as what it was.

    Args:
        path: what `before` was read from.
        before: its identity; None for what was never started.
        identity: of the run that is to go on.

    Raises:
        UserError: it was started with another dataset or recipe; the differences are shown with both values.
    """
    if before is None or before == identity:
        return
    shown = differences(before, identity)
    more = f"; and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    raise UserError(
        f"{path} is of another run: {'; '.join(shown[:_MOST_SHOWN])}{more}. "
        f"Give it back what it was started with, or start a new one with --run-name"
    )


def run_identity(config: TrainConfig, train: Split, val: Split) -> dict[str, Any]:
    return {
        "dataset": {
            "train": train.info.fingerprint,
            "val": val.info.fingerprint,
            "classes": train.info.classes_fingerprint,
        },
        "recipe": config.recipe(),
    }
