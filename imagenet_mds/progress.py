"""Progress on standard error: one live line in a terminal, plain lines elsewhere, or JSON lines for programs.

rich draws the live line. If standard error is not a terminal (a log file, CI), a plain line with the same content is
printed every few seconds.
"""

import json
import sys
import time
from datetime import timedelta
from functools import cache
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_INTERVAL_SECONDS = 10.0


@cache
def _console() -> Console:
    """One console for all lines, so that rich draws one line below the other while both are live."""
    return Console(stderr=True)


class ProgressLine:
    """The progress of one activity, as a context manager.

    Args:
        what: the activity; it begins each line.
        total: number of units.
        unit: the plural of the unit.
        as_json: print JSON lines instead: `{"event": "progress", "what", "done", "total", "unit", "per_second",
            "note", "seconds_left"}`.
    """

    def __init__(self, what: str, total: int, unit: str, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.what, self.total, self.unit = what, total, unit
        self.done = self._resumed = 0
        self._started = time.monotonic()
        self._last_plain = self._started
        self._live: Progress | None = None
        if sys.stderr.isatty() and not as_json:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                console=_console(),
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

    def resume_from(self, units: int) -> None:
        """Count `units` that an earlier run has done. They do not count for the rate and the remaining time."""
        self.done += units
        self._resumed += units

    def advance(self, units: int, suffix: str = "") -> None:
        """Count `units` as done. The line ends with `suffix`, after the rate and the remaining time."""
        self.done += units
        now = time.monotonic()
        rate = (self.done - self._resumed) / max(now - self._started, 1e-9)
        seconds_left = (self.total - self.done) / rate if rate else None
        parts = [f"{rate:,.0f} {self.unit}/s"]
        if seconds_left is not None:
            parts.append(f"{timedelta(seconds=round(seconds_left))} to go")
        rates = ", ".join([*parts, suffix] if suffix else parts)
        if self._live:
            self._live.update(self._task, completed=self.done, rates=rates)
        elif now - self._last_plain >= PLAIN_INTERVAL_SECONDS:
            self._last_plain = now
            if self.as_json:
                line = {"event": "progress", "what": self.what, "done": self.done, "total": self.total}
                more = {"unit": self.unit, "per_second": round(rate, 1), "note": suffix}
                more["seconds_left"] = None if seconds_left is None else round(seconds_left)
                print(json.dumps(line | more), file=sys.stderr, flush=True)
                return
            print(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rates}", file=sys.stderr, flush=True)
