"""Small trainings as a user starts them."""

from pathlib import Path

SMALL = (
    "global_batch_size=16",
    "augment={size_px: 24}",
    "evaluation={resize_px: 28, crop_px: 24, workers_per_rank: 0}",
    "schedule={epochs: 1, warmup_epochs: 0}",
    "data={subset: 80, workers_per_rank: 0}",
    "algorithms.ema=null",
    "logging.every_batches=1",
)
"""Five batches without an average of the weights."""


def training(dataset: Path, folder: Path, name: str, *more: object) -> list[object]:
    """The arguments of a training of five batches.

    Args:
        dataset: what it trains on.
        folder: of runs.
        name: of the run.
        more: further arguments; settings win over those of `SMALL`.
    """
    return ["train", "--config", "demo", "--data", dataset, "--save", folder, "--run-name", name, *SMALL, *more]
