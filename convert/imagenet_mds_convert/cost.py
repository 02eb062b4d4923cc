"""Estimates what a conversion takes: time on this machine, disk space, and S3 charges."""

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.shards.build import build_shard
from imagenet_mds_convert.shards.passes import gathered

_MEASURED_SAMPLES = 64

# Amazon's list prices of S3 Standard in us-east-1 as of 2025, in dollars: storage per GB (2**30 bytes) and month, and
# per thousand PUT, POST or LIST requests.
S3_STORAGE_DOLLARS_PER_GB_MONTH = 0.023
S3_DOLLARS_PER_1000_PUTS = 0.005


@dataclass(frozen=True)
class Cost:
    """What one split takes. Bytes are those of the images as stored."""

    images: int
    shards: int
    size_bytes: int
    minutes: float
    s3_requests: int
    gathered_bytes: int = 0
    """Disk space that gathering images takes beside the shards, and how often the source is read for that."""
    reads: int = 0
    half_bytes: int = 0
    """What half-size copies take of the bytes."""

    @property
    def s3_dollars_once(self) -> float:
        """Dollars for the requests."""
        return self.s3_requests / 1000 * S3_DOLLARS_PER_1000_PUTS

    @property
    def s3_dollars_monthly(self) -> float:
        """Dollars per month for storage."""
        return self.size_bytes / (1 << 30) * S3_STORAGE_DOLLARS_PER_GB_MONTH


def requests_for(shard_bytes: int) -> int:
    """Number of requests that write one shard and its record. A shard of several parts takes one request per part and
    two to start and complete the upload."""
    from imagenet_mds.storage.s3 import PART_BYTES  # boto3 takes a quarter of a second to import

    parts = math.ceil(shard_bytes / PART_BYTES)
    return (1 if parts <= 1 else parts + 2) + 1


@dataclass(frozen=True)
class Measured:
    """Measurements of the first images of a split: `seconds` of one process per image, reading included unless images
    are gathered; `growth`, the bytes stored per byte in the plan; and the share of them that half-size copies take."""

    seconds: float
    growth: float
    half_share: float = 0.0


def measure(conversion: SplitConversion) -> Measured:
    """Read, check and encode the first images of a split in this process, and write nothing.

    Raises:
        WorldError: the source's storage failed.
    """
    indices = _measured(conversion)
    task = replace(conversion.task(0), samples=tuple((index, conversion.samples[index]) for index in indices))
    with ExitStack() as stack:
        if gatherer := conversion.source.gatherer:
            (task,) = stack.enter_context(gathered(gatherer, [task], conversion.gathers_in))
        started = time.perf_counter()
        record, _ = build_shard(task)
        seconds = (time.perf_counter() - started) / len(indices)
    if conversion.sizes_known or record.info is None:
        return Measured(seconds, 1.0)
    stored_bytes = record.info.size_bytes
    return Measured(seconds, stored_bytes / conversion.likely_bytes(indices), record.half_bytes / stored_bytes)


def _measured(conversion: SplitConversion) -> list[int]:
    """The indices of the first images of the plan, or of those in one group of a source that gathers."""
    order: list[int] = conversion.plan.order.tolist()
    if gatherer := conversion.source.gatherer:
        group = gatherer.group_of(conversion.samples[order[0]])
        order = [index for index in order if gatherer.group_of(conversion.samples[index]) == group]
    return order[:_MEASURED_SAMPLES]


def estimate(conversion: SplitConversion, workers: int) -> Cost:
    """Estimate a split from its first images.

    Args:
        conversion: the planned split.
        workers: number of processes that would convert it.

    Raises:
        WorldError: the source's storage failed.
    """
    measured = measure(conversion)
    shards = [round(measured.growth * conversion.likely_shard_bytes(shard)) for shard in range(conversion.plan.shards)]
    images = len(conversion.plan.order)
    # Besides the shards: the conversion's identity, keys, index, manifest, and listings.
    requests = sum(requests_for(shard_bytes) for shard_bytes in shards) + 8
    everything = range(conversion.plan.shards)
    gathered_bytes = conversion.gathered_bytes(everything, sum(shards))
    reads = math.ceil(conversion.source_bytes(everything) / gathered_bytes) if gathered_bytes else 0
    seconds = measured.seconds * images / workers + reads * conversion.listing_seconds
    half_bytes = round(measured.half_share * sum(shards))
    return Cost(images, len(shards), sum(shards), seconds / 60, requests, gathered_bytes, reads, half_bytes)


def needed_bytes(conversion: SplitConversion, shards: Iterable[int]) -> int:
    """Estimate the bytes of these shards. If images are not stored as they are, the first ones are measured.

    Raises:
        WorldError: the source's storage failed.
    """
    growth = 1.0 if conversion.sizes_known else measure(conversion).growth
    return round(growth * sum(conversion.likely_shard_bytes(shard) for shard in shards))
