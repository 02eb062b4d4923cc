"""Downloads the shards of a sequence of samples before they are needed."""

import contextlib
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass

from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.errors import CommandError


@dataclass(frozen=True)
class Need:
    """A shard, and the first and last position in a sequence of samples that need it."""

    shard: ShardInfo
    first: int
    last: int


class Prefetcher:
    """Downloads shards ahead of their use, several at a time, in the order in which they are needed.

    A shard that another process is downloading is left to that process. Errors are ignored, because the reader of the
    shard meets them too. Leaving the context stops prefetching; a download in progress finishes by itself.

    Args:
        shard_cache: the cache to download to.
        needs: the shards in the order of `first`.
        distance: how far to download before the current position, in samples.
        threads: number of concurrent downloads.
    """

    def __init__(self, shard_cache: ShardCache, needs: Sequence[Need], *, distance: int, threads: int) -> None:
        self._shard_cache, self._needs, self._distance = shard_cache, needs, distance
        self._place = self._next = 0
        self._stopped = False
        self._moved = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(threads, len(needs)))]

    def __enter__(self) -> "Prefetcher":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify_all()

    def reach(self, place: int) -> None:
        """Report the current position in the sequence."""
        with self._moved:
            self._place = place
            if self._is_near():
                self._moved.notify_all()

    def in_use(self) -> Set[str]:
        """The basenames of the shards that are in use or within the prefetch distance."""
        with self._moved:
            place = self._place
        return {
            need.shard.basename for need in self._needs if need.first <= place + self._distance and need.last >= place
        }

    def _is_near(self) -> bool:
        return self._next < len(self._needs) and self._needs[self._next].first <= self._place + self._distance

    def _work(self) -> None:
        while True:
            with self._moved:
                while not (self._stopped or self._next == len(self._needs) or self._is_near()):
                    self._moved.wait()
                if self._stopped or self._next == len(self._needs):
                    return
                need = self._needs[self._next]
                self._next += 1
            with contextlib.suppress(CommandError):
                self._shard_cache.fetch(need.shard, wait=False, protect=self.in_use)
