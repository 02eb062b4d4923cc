"""Sample seeds: the augmentation of a sample is drawn from (seed, epoch, sample) and nothing else.

So the images depend neither on the rank and worker that made them, nor on whether the run was stopped in between.
"""

import struct

import xxhash


def sample_seed(seed: int, epoch: int, sample: int) -> int:
    """Return the seed of one sample in one epoch of one run.

    Args:
        seed: seed of the run.
        epoch: counted from 0.
        sample: index of the sample in the dataset.

    Returns:
        The xxh64 of the three numbers, 0 to 2**64 - 1. Neighbours have unrelated seeds.
    """
    return xxhash.xxh64_intdigest(struct.pack("<QQQ", seed, epoch, sample))


def batch_seed(seed: int, batch: int) -> int:
    """Return the seed of what is drawn once for a whole batch, the same on every rank.

    Args:
        seed: seed of the run.
        batch: number of the global batch since the start of the run, counted from 0.

    Returns:
        The xxh64 of the two numbers, 0 to 2**64 - 1.
    """
    return xxhash.xxh64_intdigest(struct.pack("<QQ", seed, batch))


class SampleRandom:
    """Random numbers from one sample's seed, the same on every machine and with every version of every library.

    The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014; constants as
    in Vigna's reference implementation). Seeding NumPy's or torch's generators takes longer than all draws of a sample,
    and their streams may change between versions.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """Draw 64 bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a number from [low, high), one of 2**53 equal steps."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, end: int) -> int:
        """Draw an integer from [0, end). The bias is negligible if `end` is far below 2**64."""
        return (self.bits() * end) >> 64

    def permutation(self, length: int) -> list[int]:
        """Draw a permutation of [0, length), with the Fisher-Yates shuffle."""
        order = list(range(length))
        for place in range(length - 1, 0, -1):
            other = self.integer(place + 1)
            order[place], order[other] = order[other], order[place]
        return order


_MASK = (1 << 64) - 1
