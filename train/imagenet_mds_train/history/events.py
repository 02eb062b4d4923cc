"""The history of a run as its log has it: curves, validations, starts, hours. Imports no torch."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Point:
    """A line about training. A figure that the log lacks, or has as null, is None.

    batch: finished batches.
    hours: trained until then, over all starts.
    next_lr: the learning rate of the batch after it.
    waiting_for_data: share of the time, 0 to 1.
    """

    batch: int
    hours: float
    loss: float | None
    next_lr: float | None
    images_per_second: float | None
    waiting_for_data: float | None


@dataclass(frozen=True)
class Validation:
    """A validation after `epoch` epochs. Accuracies are 0 to 1; `hours` are those of `Point`."""

    batch: int
    epoch: int
    hours: float
    top1: float
    top5: float | None
    loss: float | None


@dataclass
class StartOfRun:
    """One start of the run, from `batch` to `last_batch`, in `hours` by the times of its events. `end` is the event
    that ended it (`stopped`, `done` or `failed`), None where the log has none."""

    batch: int
    last_batch: int
    attempt: int
    ranks: int | None = None
    hours: float = 0.0
    end: str | None = None


@dataclass(frozen=True)
class Announced:
    """A notice of an interruption, or a recommendation to prepare for one, after `batch` batches.

    time: seconds since 1970.
    """

    attempt: int
    batch: int
    time: float
    text: str


@dataclass
class History:
    """The events of a run's log, in order.

    A start from an earlier batch repeats the batches after it: `points` and `validations` are those that led to the
    last weights, by batch, and `hours` count all starts.
    """

    points: list[Point] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    starts: list[StartOfRun] = field(default_factory=list)
    notices: list[Announced] = field(default_factory=list)
    epoch: int = 0
    """Finished epochs."""

    batch: int = 0
    """Finished batches."""

    @property
    def hours(self) -> float:
        """Hours over all starts."""
        return sum(start.hours for start in self.starts)

    @property
    def best(self) -> Validation | None:
        """The validation with the highest top-1, the first of several."""
        return max(self.validations, key=lambda one: one.top1, default=None)

    @property
    def images_per_second(self) -> float | None:
        """Training images by the time they took, over the lines of the log; None without lines."""
        # Each line is about the same number of images, so the rate over all of them is the harmonic mean.
        speeds = [point.images_per_second for point in self.points if point.images_per_second]
        return len(speeds) / sum(1 / speed for speed in speeds) if speeds else None

    @property
    def waiting_for_data(self) -> float | None:
        """Share of the training time in which the loader was waited for, 0 to 1; None without lines."""
        shares = [
            (point.waiting_for_data, 1 / point.images_per_second)
            for point in self.points
            if point.waiting_for_data is not None and point.images_per_second
        ]
        seconds = sum(one for _, one in shares)
        return sum(share * one for share, one in shares) / seconds if shares else None

    @property
    def repeated(self) -> list[tuple[int, int]]:
        """The batches (first, last) that a later start repeated."""
        pairs = zip(self.starts, self.starts[1:], strict=False)
        return [(after.batch, before.last_batch) for before, after in pairs if after.batch < before.last_batch]


def read_events(log: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a log that may be damaged.

    Returns:
        The events, and the number of lines that are none. A killed start leaves one at most.

    Raises:
        OSError: the log is there and cannot be read.
    """
    try:
        lines = log.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events, len(lines) - len(events)


def history_of(events: Iterable[dict[str, Any]]) -> History:
    """Follow the events of a log. Those without an attempt, a time and a batch are left out."""
    history, points, validations = History(), dict[int, Point](), dict[int, Validation]()
    epochs: dict[int, int] = {}
    began, before = 0.0, 0.0
    for event in events:
        name, attempt, batch = event["event"], _whole(event, "attempt"), _whole(event, "batch")
        time = _number(event, "time")
        if attempt is None or batch is None or time is None:
            continue
        if name == "notice":  # it may come before the start's first event
            history.notices.append(Announced(attempt, batch, time, str(event.get("text"))))
            continue
        # A start whose ranks only validated has no event `start`.
        if name == "start" or not history.starts or history.starts[-1].attempt != attempt:
            began, before = time, history.hours
            history.starts.append(StartOfRun(batch, batch, attempt, _whole(event, "ranks")))
            history.batch = batch
            for kept in (points, validations, epochs):
                for later in [one for one in kept if one > batch]:
                    del kept[later]
        start = history.starts[-1]
        start.last_batch = max(start.last_batch, batch)
        start.hours = max(start.hours, (time - began) / _SECONDS_PER_HOUR)
        # A checkpoint becomes durable some batches after its own.
        history.batch, hours = max(history.batch, batch), before + start.hours
        if (epoch := _whole(event, "epoch")) is not None:
            epochs[batch] = max(epoch, epochs.get(batch, 0))
        if name == "batch":
            figures = (_number(event, key) for key in ("loss", "next_lr", "images_per_second", "waiting_for_data"))
            points[batch] = Point(batch, hours, *figures)
        elif name == "eval" and epoch is not None and (top1 := _number(event, "top1")) is not None:
            figures = (_number(event, key) for key in ("top5", "loss"))
            validations[batch] = Validation(batch, epoch, hours, top1, *figures)
        elif name in ("stopped", "done", "failed"):
            start.end = name
    history.epoch = max(epochs.values(), default=0)
    history.points = [points[batch] for batch in sorted(points)]
    history.validations = [validations[batch] for batch in sorted(validations)]
    return history


def _number(event: dict[str, Any], key: str) -> float | None:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _whole(event: dict[str, Any], key: str) -> int | None:
    value = event.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
