"""How long a run trains between checkpoints, by what a save costs and how often the run was interrupted.

Imports no torch.
"""

import math
from collections import deque
from statistics import median

SHORTEST_SECONDS = 30.0
_REMEMBERED_SAVES = 9


class SavePace:
    """The interval by Young's formula (1974), the square root of twice the cost of a save times the mean time between
    interruptions: the work that is lost and the saves then cost the same.

    Args:
        longest_seconds: the interval as long as no interruption is known, and at most.
        interruptions: that the run has seen.
        seconds_before: trained in the run's earlier starts.
    """

    def __init__(self, longest_seconds: float, interruptions: int, seconds_before: float) -> None:
        self._longest_seconds = longest_seconds
        self._interruptions = interruptions
        self._seconds_before = seconds_before
        self._stalls: deque[float] = deque(maxlen=_REMEMBERED_SAVES)
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_SAVES)

    def saved(self, *, stall_seconds: float, durable_seconds: float) -> None:
        """Take the cost of a save: how long training stood still, and how long the save took until it was durable."""
        self._stalls.append(stall_seconds)
        self._durations.append(durable_seconds)

    def interval_seconds(self, seconds: float) -> float:
        """The interval now.

        It is at least twice the time until a save is durable, so that the disk and the network rest, and at least
        `SHORTEST_SECONDS`, unless the configuration asks for less.

        Args:
            seconds: trained in this start.
        """
        if not self._interruptions or not self._stalls:
            return self._longest_seconds
        between = (self._seconds_before + seconds) / self._interruptions
        young = math.sqrt(2 * median(self._stalls) * between)
        return min(self._longest_seconds, max(young, 2 * median(self._durations), SHORTEST_SECONDS))
