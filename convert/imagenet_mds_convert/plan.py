"""The plan: which sample goes to which shard, in which order, before any pixel is read.

The plan is a pure function of the samples and the policy. Resuming therefore means making the missing shards, the bytes
do not depend on the number of workers, a dry run can print the plan, and verifying can compare with it.

The order is balanced: round r holds the r-th image of each class (in an order drawn from the seed), with the classes
shuffled within the round. Every prefix therefore has equally many images of each class, to within one as long as no
class is exhausted, and a subset is a prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from imagenet_mds_convert.sources.base import Sample


@dataclass(frozen=True)
class Plan:
    """Samples in stored order, cut into shards.

    `order[shard_starts[s]:shard_starts[s + 1]]` are the indices, in the sorted source, of the samples of shard s.
    """

    order: NDArray[np.int64]
    shard_starts: NDArray[np.int64]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.shard_starts) - 1

    def shard(self, shard: int) -> NDArray[np.int64]:
        """Indices in the sorted source of the samples of one shard, in order."""
        return self.order[self.shard_starts[shard] : self.shard_starts[shard + 1]]


def draws(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """A pseudorandom number for each sample, from its key and the seed alone.

    Hashes are used instead of a generator, so that a sample's number depends neither on the other samples nor on the
    version of numpy, whose permutations may change.

    Returns:
        (samples), the numbers.
    """
    return np.fromiter((xxhash.xxh64_intdigest(key.encode(), seed) for key in keys), np.uint64, len(keys))


def balanced_order(labels: NDArray[np.int64], drawn: NDArray[np.uint64]) -> NDArray[np.int64]:
    """An order in which every prefix has equally many images of each class.

    Args:
        labels: (samples), the class number of each sample of the sorted source.
        drawn: (samples), what `draws` returned; it decides the order within a class.

    Returns:
        (samples), indices in the sorted source.
    """
    by_class = np.lexsort((drawn, labels))
    counts = np.bincount(labels)
    # rounds: (samples), number of images of the same class before each sample of by_class
    rounds = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Mixed once more, because within a round large classes have the smaller draws.
    order: NDArray[np.int64] = by_class[np.lexsort((_mixed(drawn[by_class]), rounds))]
    return order


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that scatters every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def held_out(labels: NDArray[np.int64], drawn: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which samples of train are held out as val: the same share of each class, at least one image and never all.

    Args:
        labels: (samples), the class number of each sample of the sorted source.
        drawn: (samples), what `draws` returned; the smallest of each class are held out.
        fraction: the share.

    Returns:
        (samples), True for those of val. A class of one image has none.
    """
    by_class = np.lexsort((drawn, labels))
    counts = np.bincount(labels)
    ranks = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.minimum(np.maximum(np.rint(counts * fraction).astype(np.int64), 1), np.maximum(counts - 1, 0))
    mask = np.zeros(len(labels), np.bool_)
    mask[by_class] = ranks < np.repeat(wanted, counts)
    return mask


def cut_into_shards(sizes_bytes: NDArray[np.int64], shard_size_bytes: int) -> NDArray[np.int64]:
    """The index at which each shard starts when samples are filled in, in order, up to a size.

    Args:
        sizes_bytes: (samples), in stored order.
        shard_size_bytes: a shard is closed before the sample that would take it past this size; a larger sample gets a
            shard of its own.

    Returns:
        (shards + 1), of which the last is the number of samples.
    """
    ends = np.cumsum(sizes_bytes)
    starts = [0]
    while starts[-1] < len(sizes_bytes):
        start = starts[-1]
        before = int(ends[start - 1]) if start else 0
        starts.append(max(start + 1, int(np.searchsorted(ends, before + shard_size_bytes, side="right"))))
    return np.array(starts, np.int64)


def make_plan(
    samples: Sequence[Sample],
    *,
    seed: int,
    shard_size_bytes: int,
    subset: int | None,
    likely_bytes: Callable[[int], int] = int,
) -> Plan:
    """Plan a split.

    Args:
        samples: every sample of the split, sorted by key.
        seed: seed for the order.
        shard_size_bytes: size of images at which a shard is closed.
        subset: number of samples to keep, the first of the order; None keeps all.
        likely_bytes: maps the size of a file in the source to that of the image as stored; unchanged if not given.
    """
    labels = np.fromiter((sample.label for sample in samples), np.int64, len(samples))
    sizes_bytes = np.fromiter((likely_bytes(sample.size_bytes) for sample in samples), np.int64, len(samples))
    order = balanced_order(labels, draws([sample.key for sample in samples], seed))[:subset]
    return Plan(order, cut_into_shards(sizes_bytes[order], shard_size_bytes))
