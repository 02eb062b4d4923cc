"""Notices that the ranks hang, and finds out which of them is the cause. Imports no torch.

Ranks meet at every batch, so one that hangs stops the others within a batch: a run hangs when no rank makes progress.
The launcher looks, because a process that is stopped, or a thread that never gives the interpreter back, cannot.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds_train.interruption.board import Board, Phase, Place

_LONGEST_LOOK_SECONDS = 1.0
"""The most that the time between two looks counts. If it was longer, this process did not run either: it was stopped,
or the machine slept, and so may the ranks."""


@dataclass(frozen=True)
class Hang:
    """A hang, and its cause as far as it is known.

    rank: the one to blame, None if none is.
    batch: finished batches.
    text: one line for people.
    """

    rank: int | None
    batch: int
    text: str


_SLOWER = 3
"""A step may take this much longer than the slowest one so far, on a processor that takes minutes for a batch."""


class Watchdog:
    """Watches the ranks of one start.

    Args:
        board: where the ranks say how far they are.
        hang_seconds: how long none of them may make progress, unless steps have taken a good part of it before; None
            watches nothing.
        start_seconds: the same while one of them starts, compiles or saves.
    """

    def __init__(self, board: Board, hang_seconds: float | None, start_seconds: float) -> None:
        self._board = board
        self._hang_seconds = hang_seconds
        self._start_seconds = start_seconds
        self._looked_at = time.monotonic()
        self._silent_seconds = 0.0
        self._beats: list[int] = []
        self._computes = False
        self._slowest_step_seconds = 0.0

    def look(self, running: Mapping[int, int]) -> Hang | None:
        """Look at the ranks that still run.

        Args:
            running: the process of each, by its number.

        Returns:
            The hang, if they hang.
        """
        if self._hang_seconds is None:
            return None
        now = time.monotonic()
        self._silent_seconds += min(now - self._looked_at, _LONGEST_LOOK_SECONDS)
        self._looked_at = now
        places = {rank: self._board.read(rank) for rank in running}
        beats = [place.beats for place in places.values()]
        if beats != self._beats:
            if self._computes and len(beats) == len(self._beats):
                self._slowest_step_seconds = max(self._slowest_step_seconds, self._silent_seconds)
            self._beats, self._silent_seconds = beats, 0.0
            self._computes = all(place.phase == Phase.STEP for place in places.values())
        if self._silent_seconds < self._hang_seconds:
            return None
        longest = _SLOWER * self._slowest_step_seconds
        if any(place.patient for place in places.values()):
            longest = max(longest, self._start_seconds)
        if self._silent_seconds < longest and _stopped(running) is None:
            return None
        return self._found(places, running)

    def _found(self, places: Mapping[int, Place], running: Mapping[int, int]) -> Hang:
        rank, cause = _cause(places, running)
        place = places[rank] if rank is not None else max(places.values(), key=lambda place: place.beats)
        which = f"rank {rank}" if rank is not None else "the ranks" if len(places) > 1 else "the rank"
        text = f"{which} made no progress for {self._silent_seconds:.0f} s {_where(place)}: {cause}"
        return Hang(rank, place.batch, text)


def _cause(places: Mapping[int, Place], running: Mapping[int, int]) -> tuple[int | None, str]:
    """The rank that keeps the others waiting, if one does, and what it waits for."""
    if stopped := _stopped(running):
        return stopped
    for rank, pid in running.items():
        if _state(pid) == "D":
            return rank, "it waits in the kernel for a disk or a GPU that does not answer"
    least = min(place.beats for place in places.values())
    behind = [rank for rank, place in places.items() if place.beats == least]
    phases = {places[rank].phase for rank in behind}
    if len(behind) < len(places) or len(places) == 1:
        if phases == {Phase.DATA}:
            return behind[0], "no batch comes from its loader"
        waits = ", and the others wait for it" if len(places) > 1 else ""
        return behind[0], f"it does not get on{waits}"
    if phases == {Phase.DATA}:
        return None, "no batch comes from their loaders"
    return None, "a collective or a GPU does not answer"


def _stopped(running: Mapping[int, int]) -> tuple[int, str] | None:
    """The rank that a signal has stopped, or one of whose processes it has."""
    for rank, pid in running.items():
        if _state(pid) in ("T", "t"):
            return rank, "it is stopped, by SIGSTOP or a debugger"
    for rank, pid in running.items():
        for child in _children(pid):
            if _state(child) in ("T", "t"):
                return rank, f"its process {child} is stopped, by SIGSTOP or a debugger"
    return None


def _where(place: Place) -> str:
    if place.phase == Phase.START:
        return "in its start"
    if place.phase == Phase.END:
        return "at its end"
    return f"in epoch {place.epoch + 1}, batch {place.batch + 1}"


def _state(pid: int) -> str:
    """The state of a process as the kernel has it, empty if it is gone: T is stopped, D waits for a device."""
    try:
        # The name in parentheses may have spaces and parentheses itself.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    except OSError:
        return []
