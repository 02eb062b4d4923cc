"""What a conversion will take: time here, disk, and what S3 asks for it. Pure functions, and one measurement."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.shards.build import build_shard

_MEASURED_SAMPLES = 64

# Amazon's list prices of S3 Standard in us-east-1, in dollars, as of 2025: storage a GB (2**30 bytes) and month, and a
# thousand PUT, POST or LIST requests.
S3_STORAGE_DOLLARS_PER_GB_MONTH = 0.023
S3_DOLLARS_PER_1000_PUTS = 0.005

_PART_BYTES = 16 << 20  # of a multipart upload, as imagenet_mds.storage.s3 has it


@dataclass(frozen=True)
class Cost:
    """What one split takes. Bytes are those of the images as they are stored."""

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


@dataclass(frozen=True)
class Measured:
    """What the first images of a split have taken: `seconds` of one process for each, and `growth`, the bytes stored
    for each byte that the plan has."""

    seconds: float
    growth: float


def measure(conversion: SplitConversion) -> Measured:
    """Read, check and encode the first images of a split, here and now, in one process; nothing is written.

    Raises:
        WorldError: the source's storage failed.
    """
    places = conversion.plan.order[:_MEASURED_SAMPLES].tolist()
    few = replace(conversion.task(0), samples=tuple((place, conversion.samples[place]) for place in places))
    begun = time.perf_counter()
    record, _ = build_shard(few)
    seconds = (time.perf_counter() - begun) / len(places)
    if conversion.sizes_known or record.info is None:
        return Measured(seconds, 1.0)
    return Measured(seconds, record.info.size_bytes / conversion.likely_bytes(places))


def estimate(conversion: SplitConversion, workers: int) -> Cost:
    """Estimate a split by what its first images take.

    Raises:
        WorldError: as `measure`.
    """
    measured = measure(conversion)
    shards = [round(measured.growth * conversion.likely_shard_bytes(shard)) for shard in range(conversion.plan.shards)]
    images = len(conversion.plan.order)
    # Around the shards: what is begun, the keys, the index, the manifest, and the listings.
    requests = sum(requests_for(shard_bytes) for shard_bytes in shards) + 8
    return Cost(images, len(shards), sum(shards), measured.seconds * images / workers / 60, requests)


def needed_bytes(conversion: SplitConversion, shards: Iterable[int]) -> int:
    """About how many bytes these shards will take. Where images are not stored as they are, the first few are measured.

    Raises:
        WorldError: as `measure`.
    """
    growth = 1.0 if conversion.sizes_known else measure(conversion).growth
    return round(growth * sum(conversion.likely_shard_bytes(shard) for shard in shards))
