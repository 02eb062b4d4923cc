"""The sample's own seed: what augmentation a sample gets is drawn from (seed, epoch, sample) and nothing else.

So the pictures do not depend on which worker of which rank made them, nor on whether the run was stopped in between.
"""

import struct

import xxhash


def sample_seed(seed: int, epoch: int, sample: int) -> int:
    """A 64-bit seed for one sample in one epoch of one run.

    Args:
        seed: the run's.
        epoch: from 0.
        sample: the sample's place in the dataset.

    Returns:
        0 to 2**64 - 1: the xxh64 of the three numbers, so that neighbours have unrelated seeds.
    """
    return xxhash.xxh64_intdigest(struct.pack("<QQQ", seed, epoch, sample))


class SampleRandom:
    """Random numbers from one sample's seed: the same on every machine, library and version, in half a microsecond.

    SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014; constants as in Vigna's
    reference implementation). NumPy's and torch's generators cost more to seed than all the draws of a sample, and do
    not promise their streams from version to version.
    """

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """The next 64 bits."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next number in [low, high), one of 2**53 steps."""
        return low + (high - low) * ((self.bits() >> 11) * 2.0**-53)

    def integer(self, end: int) -> int:
        """The next integer in [0, end); for an end far below 2**64, whose remainder does not show."""
        return (self.bits() * end) >> 64

    def permutation(self, length: int) -> list[int]:
        """The next order of [0, length), by Fisher and Yates."""
        order = list(range(length))
        for place in range(length - 1, 0, -1):
            other = self.integer(place + 1)
            order[place], order[other] = order[other], order[place]
        return order


_MASK = (1 << 64) - 1
