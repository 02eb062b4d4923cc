"""Where the dataset may be kept between runs, and what each place costs. Figures for the whole of ImageNet-1K."""

from dataclasses import dataclass

from imagenet_mds_infra.prices import (
    GP3_DOLLARS_PER_GB_MONTH,
    GP3_DOLLARS_PER_MBPS_MONTH,
    HOURS_PER_MONTH,
    S3_DOLLARS_PER_GB_MONTH,
    SNAPSHOT_DOLLARS_PER_GB_MONTH,
)
from imagenet_mds_infra.volumes import INITIALIZATION_DOLLARS_PER_GB, S3_MBPS, VOLUME_GB, VOLUME_MBPS

DATASET_GB = 146.0
"""ImageNet-1K as shards."""

BUILD_HOURS = 0.5
"""Converting all of it from S3 on the builder, which its network limits."""

HUGGING_FACE_HOURS = 0.75
"""Downloading 150 GB of parquet files and converting them, on the machine that trains."""

_GET_DOLLARS = 0.0004 / 1000
_GETS = 2_300 * 4
"""A shard of 64 MiB is fetched in ranges of 16 MiB."""


@dataclass(frozen=True)
class Home:
    """A place for the dataset.

    minutes_once: until it is there the first time.
    minutes_a_run: that the instance waits for it.
    dollars_a_month: as long as it is kept.
    dollars_a_run: waiting included.
    """

    name: str
    minutes_once: float
    minutes_a_run: float
    dollars_a_month: float
    dollars_a_run: float

    def monthly(self, runs: float) -> float:
        """Dollars of a month with that many runs."""
        return self.dollars_a_month + runs * self.dollars_a_run


def homes(dollars_per_hour: float, run_hours: float, epochs: int, runs: float) -> list[Home]:
    """The places, the cheapest for that many runs a month first.

    Args:
        dollars_per_hour: of the instance that trains.
        run_hours: of a run.
        epochs: of a run.
        runs: a month.
    """
    volume_month = VOLUME_GB * GP3_DOLLARS_PER_GB_MONTH + (VOLUME_MBPS - 125) * GP3_DOLLARS_PER_MBPS_MONTH
    volume_run = volume_month / HOURS_PER_MONTH * run_hours
    copy_hours = DATASET_GB * 1000 / S3_MBPS[0] / 3600
    found = [
        Home(
            "EBS snapshot, restored for each run",
            BUILD_HOURS * 60,
            0.0,
            DATASET_GB * SNAPSHOT_DOLLARS_PER_GB_MONTH,
            DATASET_GB * INITIALIZATION_DOLLARS_PER_GB + volume_run,
        ),
        Home("EBS volume, kept", BUILD_HOURS * 60, 0.0, volume_month, 0.0),
        Home(
            "S3, copied to the instance's disks",
            BUILD_HOURS * 60,
            copy_hours * 60,
            DATASET_GB * S3_DOLLARS_PER_GB_MONTH,
            copy_hours * dollars_per_hour + _GETS * _GET_DOLLARS,
        ),
        Home(
            "S3, fetched while training, cached",
            BUILD_HOURS * 60,
            0.0,
            DATASET_GB * S3_DOLLARS_PER_GB_MONTH,
            _GETS * _GET_DOLLARS,
        ),
        Home(
            "S3, fetched again in each epoch",
            BUILD_HOURS * 60,
            0.0,
            DATASET_GB * S3_DOLLARS_PER_GB_MONTH,
            epochs * _GETS * _GET_DOLLARS,
        ),
        Home("Hugging Face, for each run", 0.0, HUGGING_FACE_HOURS * 60, 0.0, HUGGING_FACE_HOURS * dollars_per_hour),
    ]
    return sorted(found, key=lambda home: home.monthly(runs))
