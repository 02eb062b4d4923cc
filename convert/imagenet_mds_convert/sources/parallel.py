"""Concurrent calls with results in order, for storage with latency.

A request to S3 waits tens of milliseconds for its first byte and takes 2 ms of work, so sequential requests leave a
process idle. Threads suffice, because waiting happens outside Python's lock. The number of calls in flight and of
unread results is bounded, so memory does not grow with the number of images.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.base import MAX_FILE_BYTES, Reader, Sample, Unusable

_REMOTE_THREADS = 16
"""Threads per process. An image from S3 takes some 50 ms, and a processor core needs 4 ms to fetch and check one.
boto's pool has 32 connections."""

Result = TypeVar("Result")


def reads_at_once(storage: Storage) -> int:
    """Number of small reads of a storage to run at once."""
    return _REMOTE_THREADS if storage.remote else 1


def run_ahead(calls: Iterable[Callable[[], Result]], threads: int) -> Iterator[Callable[[], Result]]:
    """Run calls in threads, at most two per thread ahead of the one whose result is taken next.

    Args:
        calls: the calls; the iterator is advanced when there is room for another.
        threads: number of threads; with 1, nothing runs ahead, and each call runs when its result is taken.

    Yields:
        For each call, in order, a function that returns its result or raises its error.
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
        # Calls are left here only if the caller stopped early.
        pool.shutdown(cancel_futures=bool(under_way))


def read_all(
    source: Reader, samples: Sequence[tuple[int, Sample]]
) -> Iterator[tuple[int, Sample, Callable[[], bytes]]]:
    """Samples with a function that reads each, in order; the next ones are read ahead if the source wants that.

    Args:
        source: the source of the samples.
        samples: (index in the sorted source, sample).

    Yields:
        Index, sample, and a function that returns the image's bytes or raises what `Source.read` raises, `Unusable` if
        the file is too long.
    """
    reads = run_ahead((partial(_read, source, sample) for _, sample in samples), source.reads_at_once)
    for (index, sample), read in zip(samples, reads, strict=True):
        yield index, sample, read


def _read(source: Reader, sample: Sample) -> bytes:
    if sample.size_bytes > MAX_FILE_BYTES:
        raise Unusable(f"a file of {sample.size_bytes:,} bytes, more than {MAX_FILE_BYTES:,}")
    return source.read(sample.where)
