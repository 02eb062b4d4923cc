"""Datasets with damaged images."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support.shards import read_shard

GONE, CUT, FLIPPED = 5, 6, 4
"""The damaged samples of the fixture `damaged`: zeroed, cut, flipped."""


def zeroed(image: bytes) -> bytes:
    """Zeros in place of the file."""
    return bytes(len(image))


def cut(image: bytes) -> bytes:
    """Zeros in place of the second half."""
    half = len(image) // 2
    return image[:half] + bytes(len(image) - half)


def flipped(image: bytes) -> bytes:
    """Flipped bits in the second half."""
    half = len(image) // 2
    return image[:half] + bytes(byte ^ 0x55 if at % 7 == 0 else byte for at, byte in enumerate(image[half:]))


def damage(dataset: Path, root: Path, split: str, **samples: Callable[[bytes], bytes]) -> Path:
    """A copy of a dataset with samples of the first shard of a split damaged, `_<number>=how`."""
    shutil.copytree(dataset, root, dirs_exist_ok=True)
    shard = root / split / "shard.00000.mds"
    for name, how in samples.items():
        image = list(read_shard(shard))[int(name[1:])].image
        data = shard.read_bytes()
        assert data.count(image) == 1
        shard.write_bytes(data.replace(image, how(image)))
    return root
