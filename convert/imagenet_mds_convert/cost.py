"""What a conversion will take: time here, disk, and what S3 asks for it. Pure functions, and one measurement."""

import math
import time
from dataclasses import dataclass, replace

from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.shard import build_shard

_MEASURED_SAMPLES = 64

# Amazon's list prices of S3 Standard in us-east-1, in dollars, as of 2025: storage a GB (2**30 bytes) and month, and a
# thousand PUT, POST or LIST requests.
S3_STORAGE_DOLLARS_PER_GB_MONTH = 0.023
S3_DOLLARS_PER_1000_PUTS = 0.005

_PART_BYTES = 16 << 20  # of a multipart upload, as imagenet_mds.s3 has it


@dataclass(frozen=True)
class Cost:
    """What one split takes. Bytes are those of the source's images: scaling makes them fewer."""

    images: int
    shards: int
    size_bytes: int
    minutes: float
    s3_requests: int

    @property
    def s3_dollars_once(self) -> float:
        """For the requests."""
        return self.s3_requests / 1000 * S3_DOLLARS_PER_1000_PUTS

    @property
    def s3_dollars_monthly(self) -> float:
        """For keeping it."""
        return self.size_bytes / (1 << 30) * S3_STORAGE_DOLLARS_PER_GB_MONTH


def requests_for(shard_bytes: int) -> int:
    """Requests that write one shard and its record: one upload, or one a part and two around them."""
    parts = math.ceil(shard_bytes / _PART_BYTES)
    return (1 if parts <= 1 else parts + 2) + 1


def estimate(conversion: SplitConversion, workers: int) -> Cost:
    """Estimate a split, by the rate of its first images, read and checked here and now in one process."""
    shards = [conversion.shard_source_bytes(shard) for shard in range(conversion.plan.shards)]
    images = len(conversion.plan.order)
    task = conversion.task(0)
    few = replace(task, samples=task.samples[:_MEASURED_SAMPLES])
    begun = time.perf_counter()
    build_shard(few)
    seconds = (time.perf_counter() - begun) / len(few.samples) * images / workers
    # Around the shards: what is begun, the keys, the index, the manifest, and the listings.
    requests = sum(requests_for(shard_bytes) for shard_bytes in shards) + 8
    return Cost(images, len(shards), sum(shards), seconds / 60, requests)
