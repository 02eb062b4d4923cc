"""Several calls at once, their results in order: for storage that takes its time to answer.

A request to S3 waits tens of milliseconds for its first byte and takes the program 2 ms of work, so one after the other
leaves a process idle. Threads are enough, for waiting is done outside Python's lock. A few calls are under way at any
time and no more results are kept than those: memory does not grow with what there is to read.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.base import MAX_FILE_BYTES, Sample, Source, Unusable

_REMOTE_THREADS = 16
"""Of each process. An image from S3 takes some 50 ms, and a processor fetches and checks one in 4 ms. boto's pool has
32 connections."""

Result = TypeVar("Result")


def reads_at_once(storage: Storage) -> int:
    """How many small reads of a storage should be under way at once."""
    return _REMOTE_THREADS if storage.remote else 1


def run_ahead(calls: Iterable[Callable[[], Result]], threads: int) -> Iterator[Callable[[], Result]]:
    """Make calls in threads, up to two for each thread begun or waiting ahead of the one that is asked for.

    Args:
        calls: what to do; it is asked for the next call when there is room.
        threads: how many; with 1 nothing is done ahead, and each call is made by who asks for its result.

    Yields:
        For each call, in order, what gives its result or raises its error.
    """
    if threads == 1:
        yield from calls
        return
    pool = ThreadPoolExecutor(threads)
    under_way: deque[Future[Result]] = deque()
    try:
        for call in calls:
            under_way.append(pool.submit(call))
            if len(under_way) == 2 * threads:
                yield under_way.popleft().result
        while under_way:
            yield under_way.popleft().result
    finally:
        # What is left here was not asked for: who asks has met an error, or wants no more.
        pool.shutdown(cancel_futures=bool(under_way))


def read_all(
    source: Source, samples: Sequence[tuple[int, Sample]]
) -> Iterator[tuple[int, Sample, Callable[[], bytes]]]:
    """Samples with what reads each, in order; where the source says so, the next ones are being read meanwhile.

    Args:
        source: where the samples are from.
        samples: (place in the sorted source, sample).

    Yields:
        Place, sample, and what gives the image's bytes or raises what `Source.read` raises; `Unusable` for a file that
        is too long to be read.
    """
    reads = run_ahead((partial(_read, source, sample) for _, sample in samples), source.reads_at_once)
    for (place, sample), read in zip(samples, reads, strict=True):
        yield place, sample, read


def _read(source: Source, sample: Sample) -> bytes:
    if sample.size_bytes > MAX_FILE_BYTES:
        raise Unusable(f"a file of {sample.size_bytes:,} bytes, more than {MAX_FILE_BYTES:,}")
    return source.read(sample.where)
