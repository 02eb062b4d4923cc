"""Folders of runs written by hand: a record, a log, checkpoints without content."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imagenet_mds_train.config.load import load_config

IDENTITY = {"dataset": {"train": "aaaa", "val": "bbbb", "classes": "cccc"}}
BEGAN = 1_700_000_000.0


def event(name: str, attempt: int, minutes: float, batch: int, **values: Any) -> dict[str, Any]:
    """An event of a log, `minutes` after the run began."""
    return {"event": name, "attempt": attempt, "time": BEGAN + 60 * minutes, "batch": batch} | values


def line(attempt: int, minutes: float, batch: int, **values: Any) -> dict[str, Any]:
    """An event `batch` of a run with 10 batches an epoch."""
    figures = {"loss": 2.0 - batch / 100, "next_lr": 0.1, "images_per_second": 100.0, "waiting_for_data": 0.1}
    return event("batch", attempt, minutes, batch, epoch=(batch - 1) // 10, **(figures | values))


def validation(attempt: int, minutes: float, batch: int, top1: float) -> dict[str, Any]:
    """An event `eval`."""
    return event("eval", attempt, minutes, batch, epoch=batch // 10, top1=top1, top5=top1 + 0.2, loss=1.5, damaged=0)


def write_run(
    folder: Path,
    events: Iterable[dict[str, Any]] = (),
    *overrides: str,
    identity: dict[str, Any] = IDENTITY,
    result: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    **record: Any,
) -> Path:
    """Write a run of the configuration `demo`, and return its folder.

    Args:
        folder: of the run.
        events: of its log; none leaves the log out.
        overrides: `key=value` of its configuration.
        identity: as in its record.
        result: as in `result.json`; None leaves the file out.
        checkpoint: the name of a checkpoint, which is empty; None for none.
        record: further keys of `run.json`.
    """
    (folder / "checkpoints").mkdir(parents=True)
    config = load_config("demo", overrides).model_dump(mode="json")
    (folder / "run.json").write_text(json.dumps({"format": 1, "config": config, "identity": identity} | record))
    if lines := [json.dumps(one) + "\n" for one in events]:
        (folder / "log.jsonl").write_text("".join(lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if checkpoint is not None:
        (folder / "checkpoints" / checkpoint).touch()
        values = {"basename": checkpoint, "epoch": 1, "batch": 10, "size_bytes": 0, "xxh64": "", "identity": identity}
        (folder / "checkpoints" / checkpoint).with_suffix(".json").write_text(json.dumps(values))
    return folder


KILLED_AND_CONTINUED = [
    event("start", 1, 0, 0, ranks=2),
    *(line(1, batch, batch) for batch in range(1, 11)),
    validation(1, 10.5, 10, 0.4),
    *(line(1, batch, batch) for batch in range(11, 14)),
    event("start", 2, 100, 10, ranks=2),
    *(line(2, 90 + batch, batch, loss=1.0) for batch in range(11, 21)),
    validation(2, 111, 20, 0.6),
    *(line(2, 91 + batch, batch) for batch in range(21, 31)),
    validation(2, 122, 30, 0.5),
    event("stopped", 2, 124, 30),
]
"""Killed after batch 13, continued from batch 10, stopped after batch 30: 13 and 24 minutes."""
