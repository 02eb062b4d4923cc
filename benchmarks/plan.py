"""What planning all of ImageNet costs: 1,281,167 samples with sizes, listed, planned and fingerprinted.

Usage: python benchmarks/plan.py. Prints CPU seconds and the peak memory of the process as one line of JSON.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.sources.base import Found, Sample
from imagenet_mds_convert.sources.classes import imagenet_names
from imagenet_mds_convert.sources.tree import TreeSource

IMAGES = 1_281_167


@dataclass(frozen=True)
class ListedTree(TreeSource):
    """A tree with an invented listing: ImageNet's number of images, with similar sizes."""

    def find(self, split: str) -> Found:
        """Return every image, sorted by key."""
        sizes = np.random.default_rng(0).gamma(2, 55_000, IMAGES).astype(int).tolist()
        counts = [IMAGES // len(self.classes) + (label < IMAGES % len(self.classes)) for label in range(1000)]
        keys = (
            (label, f"{wnid}/{wnid}_{number:05}.JPEG")
            for label, (wnid, count) in enumerate(zip(self.classes, counts, strict=True))
            for number in range(count)
        )
        return Found(
            [Sample(key, label, size, where=f"{split}/{key}") for (label, key), size in zip(keys, sizes, strict=True)]
        )


def peak_bytes() -> int:
    """Return the peak memory of this process. `getrusage` would count what its parent had when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Plan the conversion, and print what that took."""
    classes = tuple(imagenet_names())
    source = ListedTree(LocalStorage(Path("/nowhere")), classes, classes, ("train",), ())
    begun = time.process_time()
    conversion = SplitConversion.plan_for(source, "train", LocalStorage(Path("/nowhere")), Policy())
    row = {
        "images": len(conversion.samples),
        "shards": conversion.plan.shards,
        "cpu_seconds": round(time.process_time() - begun, 1),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
