"""Instance types, their GPUs, and prices: of spot instances now, of everything else as of 2025 in us-east-1."""

import datetime
from dataclasses import dataclass

from imagenet_mds_infra.account import Account

HOURS_PER_MONTH = 730.0
GP3_DOLLARS_PER_GB_MONTH = 0.08
GP3_DOLLARS_PER_MBPS_MONTH = 0.04
"""For each MB/s beyond the first 125."""
SNAPSHOT_DOLLARS_PER_GB_MONTH = 0.05
S3_DOLLARS_PER_GB_MONTH = 0.023
FAST_RESTORE_DOLLARS_PER_HOUR = 0.75
"""For each snapshot and zone, an hour at least."""


@dataclass(frozen=True)
class InstanceType:
    """A machine to train on.

    gpu: the name of its GPUs.
    nvme_gb: its own disks.
    dollars_per_hour: on demand, in us-east-1, 2025.
    """

    name: str
    gpus: int
    gpu: str
    vcpus: int
    nvme_gb: int
    dollars_per_hour: float


TYPES = {
    one.name: one
    for one in (
        InstanceType("g4dn.xlarge", 1, "T4", 4, 125, 0.526),
        InstanceType("g4dn.2xlarge", 1, "T4", 8, 225, 0.752),
        InstanceType("g5.xlarge", 1, "A10G", 4, 250, 1.006),
        InstanceType("g6.xlarge", 1, "L4", 4, 250, 0.8048),
        InstanceType("g4dn.12xlarge", 4, "T4", 48, 900, 3.912),
        InstanceType("g5.12xlarge", 4, "A10G", 48, 3800, 5.672),
        InstanceType("g6.12xlarge", 4, "L4", 48, 3760, 4.6016),
    )
}
BUILDER = InstanceType("c6i.2xlarge", 0, "", 8, 0, 0.34)
"""The machine that converts onto a volume."""

PHASE_TYPES = {
    "2": ("g4dn.xlarge", "g4dn.2xlarge", "g5.xlarge", "g6.xlarge"),
    "3": ("g4dn.12xlarge", "g5.12xlarge", "g6.12xlarge"),
}
"""The types that fit a phase: each has as many GPUs as the phase has ranks."""


@dataclass(frozen=True)
class Offer:
    """A type in a zone. `spot_dollars_per_hour` is None where there is no spot price."""

    type: InstanceType
    zone: str
    spot_dollars_per_hour: float | None

    def dollars_per_hour(self, *, spot: bool) -> float:
        """The price; that on demand where there is no spot price."""
        return (self.spot_dollars_per_hour if spot else None) or self.type.dollars_per_hour


def offers(account: Account, names: tuple[str, ...], zones: list[str]) -> list[Offer]:
    """What can be rented, with spot prices of now, the cheapest first by the hour.

    Args:
        account: where.
        names: of types in `TYPES`.
        zones: to look at.

    Raises:
        UserError, WorldError: AWS does not answer.
    """
    where = account.pages(
        "ec2",
        "describe_instance_type_offerings",
        "InstanceTypeOfferings",
        LocationType="availability-zone",
        Filters=[{"Name": "instance-type", "Values": list(names)}],
    )
    history = account.pages(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=list(names),
        ProductDescriptions=["Linux/UNIX"],
        StartTime=datetime.datetime.now(datetime.timezone.utc),
    )
    prices: dict[tuple[str, str], tuple[datetime.datetime, float]] = {}
    for one in history:
        key, entry = (one["InstanceType"], one["AvailabilityZone"]), (one["Timestamp"], float(one["SpotPrice"]))
        prices[key] = max(prices.get(key, entry), entry)
    found = []
    for name, zone in sorted({(one["InstanceType"], one["Location"]) for one in where}):
        if zone in zones:
            spot = prices.get((name, zone))
            found.append(Offer(TYPES[name], zone, spot[1] if spot else None))
    return sorted(found, key=lambda offer: (offer.spot_dollars_per_hour or offer.type.dollars_per_hour, offer.zone))
