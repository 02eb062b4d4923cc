"""Progress for people: one live line in a terminal, plain lines elsewhere. Always on standard error.

rich draws the live line; where standard error is not a terminal (a log file, CI), a plain line every few seconds says
the same.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL_SECONDS = 10.0


class ProgressLine:
    """Counts of one activity, shown while it goes on. Use it as a context manager.

    Args:
        what: the activity, as the line begins.
        total: how many units there are.
        unit: the unit's plural.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._last_plain = self._started
        self._live: Progress | None = None
        if sys.stderr.isatty():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._live.add_task(what, total=total, rates="")

    def __enter__(self) -> "ProgressLine":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done; `note` stands behind the rate."""
        self.done += units
        now = time.monotonic()
        rate = self.done / max(now - self._started, 1e-9)
        rates = f"{rate:,.0f} {self.unit}/s{', ' + note if note else ''}"
        if self._live:
            self._live.update(self._task, completed=self.done, rates=rates)
        elif now - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            print(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rates}", file=sys.stderr, flush=True)
