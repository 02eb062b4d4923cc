"""Memory that a loader worker allocates for an image, counted by memray, which sees the allocations of libraries too.

Usage: pip install --target FOLDER memray, then PYTHONPATH=FOLDER python benchmarks/allocations.py SPLIT ...
[--size PX] [--resize antialias|linear], where SPLIT is a folder of shards such as DATASET/train.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from memray import AllocatorType, FileReader, Tracker
from sides import BATCH_SIZE, our_config, samples_of

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.data.loaders import TrainingImages
from imagenet_mds_train.data.stream import own_resources

MOST_IMAGES = 1000
LARGE_BYTES = 16 << 10
FREES = {"FREE", "MUNMAP", "PYMALLOC_FREE"}


def counted(split: Path, size_px: int, resize: str) -> tuple[float, float, float, float]:
    """The allocations of an image, those of at least `LARGE_BYTES`, kilobytes of all, and objects of Python."""
    with own_resources(), tempfile.TemporaryDirectory() as folder:
        samples = samples_of(split)
        images = TrainingImages(our_config(size_px, 1, resize), ShardCache(split), samples)
        batch = np.empty((BATCH_SIZE, size_px, size_px, 3), np.uint8)
        tried = min(samples, MOST_IMAGES)

        def make() -> None:
            for sample in range(tried):
                batch[sample % BATCH_SIZE] = images[sample][0].pixels

        make()  # what is allocated once
        with Tracker(Path(folder) / "native"):
            make()
        with Tracker(Path(folder) / "python", trace_python_allocators=True):
            make()
        sizes = [
            record.size
            for record in FileReader(Path(folder) / "native").get_allocation_records()
            if AllocatorType(record.allocator).name not in FREES
        ]
        objects = sum(
            (name := AllocatorType(record.allocator).name).startswith("PYMALLOC") and name not in FREES
            for record in FileReader(Path(folder) / "python").get_allocation_records()
        )
        large = sum(size >= LARGE_BYTES for size in sizes)
        return len(sizes) / tried, large / tried, sum(sizes) / tried / 1000, objects / tried


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("splits", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--resize", default="antialias")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    for split in options.splits:
        calls, large, kilobytes, objects = counted(split, options.size, options.resize)
        print(
            f"{split}: {calls:.0f} allocations an image, {large:.1f} of them of 16 KiB and more, {kilobytes:,.0f} kB "
            f"in all; {objects:.0f} objects of Python"
        )


if __name__ == "__main__":
    main()
