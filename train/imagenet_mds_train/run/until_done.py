"""Restarts of a run in place, until it is done or a restart cannot help. Imports no torch."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from imagenet_mds.errors import EXIT_DONE, EXIT_LASTING, EXIT_STOPPED, EXIT_USER
from imagenet_mds.process.signals import collected_stop_signals
from imagenet_mds_train.interruption.notice import NoticeWatcher
from imagenet_mds_train.run.launch import Ended

MOST_RESTARTS = 5
"""Restarts in a row without a new checkpoint."""

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
"""The pause doubles with each restart in a row without a new checkpoint."""

_POLL_SECONDS = 0.1


def may_restart(status: int) -> bool:
    """Whether the same command may get further than the one that ended with a status. `docs/interruption.md` has a
    unit of systemd with the same rule."""
    return status not in (EXIT_DONE, EXIT_USER, EXIT_STOPPED, EXIT_LASTING)


@dataclass(frozen=True)
class Restart:
    """A restart after a pause, and how many there were in a row without a new checkpoint, this one included."""

    pause_seconds: float
    number: int


class Restarts:
    """Decides about restarts.

    Args:
        saved_batch: finished batches of the newest checkpoint, 0 if there is none.
        first_pause_seconds: see `FIRST_PAUSE_SECONDS`.
    """

    def __init__(self, saved_batch: int, first_pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._saved_batch = saved_batch
        self._first_pause_seconds = first_pause_seconds
        self._failed_batch: int | None = None
        self._number = 0

    def after(self, ended: Ended, saved_batch: int) -> Restart | str:
        """The restart after a failure that `may_restart`, or why there is none.

        Args:
            ended: the failure.
            saved_batch: as in the constructor, now.
        """
        if ended.batch is not None and ended.batch == self._failed_batch:
            return f"it failed twice in batch {ended.batch + 1}, so it would fail there again"
        if ended.batch is not None:
            self._failed_batch = ended.batch
        if saved_batch > self._saved_batch:
            self._saved_batch, self._number = saved_batch, 0
        self._number += 1
        if self._number > MOST_RESTARTS:
            return f"{MOST_RESTARTS} restarts in a row gave no new checkpoint"
        pause_seconds = min(self._first_pause_seconds * 2 ** (self._number - 1), LONGEST_PAUSE_SECONDS)
        return Restart(pause_seconds, self._number)


def run_until_done(
    once: Callable[[], Ended],
    saved_batch: Callable[[], int],
    on_restart: Callable[[Ended, Restart], None],
    on_given_up: Callable[[str], None],
    *,
    first_pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> Ended:
    """Start a run again after each failure that a restart may help against.

    Args:
        once: starts or continues the run.
        saved_batch: finished batches of the newest checkpoint, 0 if there is none.
        on_restart: called before each pause with what failed.
        on_given_up: called with the reason if there were restarts enough.
        first_pause_seconds: see `FIRST_PAUSE_SECONDS`.

    Returns:
        How the last start ended. A failure that was given up on has the status `EXIT_LASTING`.
    """
    restarts = Restarts(saved_batch(), first_pause_seconds)
    while True:
        ended = once()
        if not may_restart(ended.status):
            return ended
        decision = restarts.after(ended, saved_batch())
        if isinstance(decision, str):
            on_given_up(decision)
            return replace(ended, status=EXIT_LASTING)
        on_restart(ended, decision)
        if _stopped_within(decision.pause_seconds):
            return Ended(EXIT_STOPPED)


def _stopped_within(seconds: float) -> bool:
    """Wait, and return whether a request to stop, or a notice, ended it."""
    until = time.monotonic() + seconds
    with collected_stop_signals(lambda: None) as requests, contextlib.closing(NoticeWatcher()) as watcher:
        while time.monotonic() < until:
            notice = watcher.next()
            if requests.count or (notice and notice.kind == "stop"):
                return True
            time.sleep(_POLL_SECONDS)
    return False
