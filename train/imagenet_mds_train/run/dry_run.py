"""A few real batches of a run, before it is paid for: trained, validated, saved, continued. Imports no torch.

The ranks are started twice, as an interruption would make them start, so that what only a second start finds out (a
checkpoint that cannot be read, for one) is known as well. It all happens in a folder of its own, which is removed.
"""

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.errors import EXIT_DONE, UserError
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.estimate import hours_at
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.fork import Fork
from imagenet_mds_train.run.start import Start

_BATCHES = 12
"""Of the first start."""

_WARM_BATCHES = 4
"""Of these, not timed: kernels are chosen and loaders filled; and those of the second start."""


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    status: how the ranks ended; the figures are None unless they were done.
    images_per_second: of all ranks, at the run's full training size.
    waiting_share: the share of the time in which the loaders were waited for, 0 to 1.
    peak_gib: GPU memory of the first rank, None on a CPU.
    checkpoint_bytes: size of a checkpoint.
    hours: of the whole run at this rate, without the time of checkpoints.
    """

    status: int
    images_per_second: float | None = None
    waiting_share: float | None = None
    peak_gib: float | None = None
    checkpoint_bytes: int | None = None
    hours: float | None = None


def dry_run(config: TrainConfig, dataset: Dataset, save: Path, fork: Fork | None = None) -> DryRun:
    """Train a few batches of a run twice, the second time from the first one's checkpoint.

    Args:
        config: the run's.
        dataset: what it trains on.
        save: the folder for runs, on whose disk the checkpoint is written.
        fork: what the run starts from.

    Raises:
        UserError, WorldError: as `Start.prepare`.
    """
    try:
        save.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--save {save} cannot be written: {error.strerror}") from None
    with tempfile.TemporaryDirectory(dir=save, prefix=".dry-run-") as folder:
        run, small = RunFolder(Path(folder) / "dry-run"), _shortened(config)
        status = EXIT_DONE
        for batches in (_BATCHES, _BATCHES + _WARM_BATCHES):
            with run.lock() as lock:
                start = Start.prepare(small, dataset, run, fork).with_microbatch_found()
                start.record()
                status = start.launch(lock, until_batch=batches).status
            if status != EXIT_DONE:
                return DryRun(status)
            run.result.unlink()
        return _found(config, start, run)


def _shortened(config: TrainConfig) -> TrainConfig:
    """The configuration with all that a few batches should show: the full size, a checkpoint, each batch in the log."""
    return config.model_copy(
        update={
            "augment": config.augment.model_copy(update={"progressive": None}),
            "checkpoint": config.checkpoint.model_copy(update={"every_batches": _WARM_BATCHES}),
            "logging": config.logging.model_copy(
                update={"every_batches": 1, "print_every_batches": _WARM_BATCHES, "wandb": None, "tensorboard": False}
            ),
        }
    )


def _found(config: TrainConfig, start: Start, run: RunFolder) -> DryRun:
    timed: list[dict[str, Any]] = [
        event
        for event in run.events()
        if event["event"] == "batch" and event["attempt"] == 1 and event["batch"] > _WARM_BATCHES
    ]
    rate = statistics.median(event["images_per_second"] for event in timed)
    record, _ = run.newest_checkpoint()
    assert record is not None
    return DryRun(
        EXIT_DONE,
        images_per_second=rate,
        waiting_share=statistics.mean(event["waiting_for_data"] for event in timed),
        peak_gib=max((event["gpu/peak_gib"] for event in timed if "gpu/peak_gib" in event), default=None),
        checkpoint_bytes=record.size_bytes,
        hours=hours_at(config, start.batches_per_epoch, start.val_samples, rate),
    )
