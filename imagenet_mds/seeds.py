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
