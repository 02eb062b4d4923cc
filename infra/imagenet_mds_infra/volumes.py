"""A volume that is filled once, its snapshot, and volumes made from that in any zone.

A volume from a snapshot reads slowly at first, because its blocks come from S3 when they are first read. `ways` shows
what can be done about it, and what each takes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_infra.account import RUN_TAG, tag_of
from imagenet_mds_infra.launches import (
    DATA_DEVICE,
    RATE_TAG,
    Launch,
    create_version,
    launches,
    record,
    template_data,
    upload_code,
    user_data,
)
from imagenet_mds_infra.prices import BUILDER, FAST_RESTORE_DOLLARS_PER_HOUR
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.worker import read_end

VOLUME_GB = 200
VOLUME_MBPS = 500
VOLUME_IOPS = 3000
"""A gp3 volume's; 500 MB/s are what one of the smaller instances can read."""

POLL_SECONDS = 5.0

VOLUME_INITIALIZATION_MIB_PER_SECOND = 300
"""The highest rate that EC2 offers, and Terraform's default."""

LAZY_MBPS = (40.0, 150.0)
"""What a volume from a snapshot gives while it fills, by what people have published; AWS promises nothing."""

INITIALIZATION_DOLLARS_PER_GB = 0.0072
"""At 300 MiB/s, by the price list of 2025; not verified since."""

S3_MBPS = (500.0, 1000.0)
"""What a g4dn.12xlarge copies from S3 to its own disks."""


def gp3(size_gb: int, **more: Any) -> dict[str, Any]:
    """The `Ebs` of a data volume that outlives its instance, unless `more` says otherwise."""
    return {
        "VolumeSize": size_gb,
        "VolumeType": "gp3",
        "Throughput": VOLUME_MBPS,
        "Iops": VOLUME_IOPS,
        "Encrypted": True,
        "DeleteOnTermination": False,
    } | more


def from_snapshot(stack: Stack, snapshot: str, size_gb: int) -> dict[str, Any]:
    """The `Ebs` of a data volume that an instance makes from a snapshot, and that ends with it.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    return gp3(size_gb, SnapshotId=snapshot, DeleteOnTermination=True, **_rate(stack))


def _rate(stack: Stack) -> dict[str, int]:
    """How fast a volume is filled from its snapshot, as Terraform was told; nothing leaves it to EC2."""
    templates = stack.account.ask("ec2", "describe_launch_templates", LaunchTemplateNames=[stack.account.name])
    value = int(tag_of(templates["LaunchTemplates"][0], RATE_TAG) or VOLUME_INITIALIZATION_MIB_PER_SECOND)
    return {"VolumeInitializationRate": value} if value else {}


def create(stack: Stack, name: str, source: str, arguments: list[str], size_gb: int = VOLUME_GB) -> str:
    """Start a machine that converts onto a new volume and ends itself.

    Args:
        stack: the deployment.
        name: of the volume.
        source: an s3:// address, or what else `convert` takes and the machine can reach.
        arguments: further ones of `convert`.
        size_gb: of the volume.

    Returns:
        The instance's id.

    Raises:
        UserError: a volume of this name is there or is being made, or AWS refuses something the user can change.
        WorldError, OSError: AWS refuses.
    """
    if found := find(stack, name):
        raise UserError(
            f"there is a volume {name!r} already ({found['VolumeId']}): pass another NAME, or remove it with "
            f"`imagenet-mds aws clean`"
        )
    launch = Launch(
        name,
        ["convert", source, "/data/mds", *arguments],
        spot=False,
        prices={BUILDER.name: BUILDER.dollars_per_hour},
        in_group=False,
    )
    digest = upload_code(stack)
    record(stack, launch)
    version = create_version(
        stack, name, template_data(stack, name, user_data(stack, name, digest, "fill"), gp3(size_gb))
    )
    made = stack.account.change(
        "ec2",
        "run_instances",
        LaunchTemplate={"LaunchTemplateName": stack.account.name, "Version": version},
        InstanceType=BUILDER.name,
        SubnetId=_subnet(stack),
        MinCount=1,
        MaxCount=1,
    )
    return str(made["Instances"][0]["InstanceId"])


def _subnet(stack: Stack) -> str:
    found: str = stack.group["VPCZoneIdentifier"].split(",")[0]
    return found


def find(stack: Stack, name: str) -> dict[str, Any] | None:
    """A volume of this deployment by its name or id, as EC2 describes it; None if there is none. Volumes that
    instances started with are not among them.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    volumes = stack.account.pages("ec2", "describe_volumes", "Volumes", Filters=stack.account.filters())
    for volume in volumes:
        is_root = any(one["Device"] not in (DATA_DEVICE, "/dev/xvdf") for one in volume["Attachments"])
        if name in (volume["VolumeId"], tag_of(volume, RUN_TAG)) and not is_root:
            found: dict[str, Any] = volume
            return found
    return None


def snapshot(stack: Stack, name: str, say: Callable[[str], None], poll_seconds: float = POLL_SECONDS) -> str:
    """Make a snapshot of a filled volume, and wait until it is whole.

    Returns:
        Its id.

    Raises:
        UserError: there is no such volume, or it is not filled.
        WorldError: the snapshot failed.
    """
    account = stack.account
    volume = find(stack, name)
    if volume is None:
        raise UserError(f"there is no volume {name!r}: make it with `imagenet-mds aws volume create`")
    run = tag_of(volume, RUN_TAG) or name
    end = read_end(launches(stack.bucket), run)
    if volume["State"] != "available" or end is None:
        raise UserError(
            f"volume {name!r} is in use, most likely because it is still being filled: `imagenet-mds aws status {run}`"
        )
    if end.reason != "done":
        raise UserError(f"volume {name!r} is not filled: {end.words}. Remove it with `imagenet-mds aws clean`")
    made = account.change(
        "ec2",
        "create_snapshot",
        VolumeId=volume["VolumeId"],
        Description=f"imagenet-mds dataset {run}",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": account.tags(run)}],
    )
    found = str(made["SnapshotId"])
    say(f"{found} of {volume['VolumeId']} is being made")

    def state() -> dict[str, Any]:
        (one,) = account.ask("ec2", "describe_snapshots", SnapshotIds=[found])["Snapshots"]
        return dict(one)

    if not account.dry_run:
        _wait(state, "completed", f"AWS could not make {found} of {volume['VolumeId']}", poll_seconds)
    return found


def describe_snapshot(stack: Stack, name: str) -> dict[str, Any]:
    """A whole snapshot by its id, or the newest one by the name of its volume, as EC2 describes it.

    Raises:
        UserError: there is none, or it is not whole yet.
        WorldError: AWS does not answer.
    """
    account = stack.account
    if name.startswith("snap-"):
        found = account.ask("ec2", "describe_snapshots", SnapshotIds=[name])["Snapshots"]
    else:
        tagged = account.pages("ec2", "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=account.filters())
        found = [one for one in tagged if tag_of(one, RUN_TAG) == name]
    if not found:
        raise UserError(f"there is no snapshot {name!r}: make it with `imagenet-mds aws volume snapshot`")
    newest: dict[str, Any] = max(found, key=lambda one: one["StartTime"])
    if newest["State"] != "completed":
        raise UserError(f"{newest['SnapshotId']} is not whole yet ({newest.get('Progress', '0%')}): wait for it")
    return newest


def restore(stack: Stack, name: str, zone: str, say: Callable[[str], None], poll_seconds: float = POLL_SECONDS) -> str:
    """Make a volume from a snapshot.

    Args:
        stack: the deployment.
        name: the snapshot's id, or the name of the volume that it is of.
        zone: the availability zone.
        say: prints a line.
        poll_seconds: between two looks at the volume.

    Returns:
        Its id.

    Raises:
        UserError: there is no such snapshot or zone.
        WorldError: AWS could not make the volume.
    """
    account = stack.account
    zones = [one["ZoneName"] for one in account.ask("ec2", "describe_availability_zones")["AvailabilityZones"]]
    if zone not in zones:
        raise UserError(f"--zone {zone}: pass one of {', '.join(sorted(zones))}")
    source = describe_snapshot(stack, name)
    run = tag_of(source, RUN_TAG) or name
    made = account.change(
        "ec2",
        "create_volume",
        AvailabilityZone=zone,
        SnapshotId=source["SnapshotId"],
        VolumeType="gp3",
        Throughput=VOLUME_MBPS,
        Iops=VOLUME_IOPS,
        Encrypted=True,
        **_rate(stack),
        TagSpecifications=[{"ResourceType": "volume", "Tags": account.tags(run)}],
    )
    found = str(made["VolumeId"])
    say(f"{found} in {zone} is being made from {source['SnapshotId']}")

    def state() -> dict[str, Any]:
        (one,) = account.ask("ec2", "describe_volumes", VolumeIds=[found])["Volumes"]
        return dict(one)

    if not account.dry_run:
        _wait(state, "available", f"AWS could not make {found} from {source['SnapshotId']}", poll_seconds)
    return found


def _wait(state: Callable[[], dict[str, Any]], wanted: str, failure: str, poll_seconds: float) -> None:
    """Wait until what EC2 describes is in a state.

    Raises:
        WorldError: it has failed.
    """
    while (now := state())["State"] != wanted:
        if now["State"] == "error":
            raise WorldError(f"{failure}: {now.get('StateMessage', 'it gives no reason')}. Run the same command again")
        time.sleep(poll_seconds)


@dataclass(frozen=True)
class Way:
    """How an instance gets its data: the minutes until it reads at full speed, and the dollars of that, waiting
    included."""

    name: str
    minutes: tuple[float, float]
    dollars: tuple[float, float]
    note: str


def ways(data_gb: float, nvme_gb: int, dollars_per_hour: float) -> list[Way]:
    """The ways to have a dataset at full speed, the cheapest first.

    Args:
        data_gb: of the dataset.
        nvme_gb: of the instance's own disks.
        dollars_per_hour: of the instance that waits.
    """

    def way(name: str, mbps: tuple[float, float], fee: float, note: str) -> Way:
        fast, slow = (data_gb * 1000 / rate / 60 for rate in sorted(mbps, reverse=True))
        cost = [fee + minutes / 60 * dollars_per_hour for minutes in (fast, slow)]
        return Way(name, (fast, slow), (cost[0], cost[1]), note)

    initialization = VOLUME_INITIALIZATION_MIB_PER_SECOND * 1.048576
    found = [
        way("snapshot, as it comes", LAZY_MBPS, 0.0, "training starts at once and waits for data meanwhile"),
        way(
            "snapshot, initialization rate",
            (initialization, initialization),
            data_gb * INITIALIZATION_DOLLARS_PER_GB,
            "training starts at once; the default of `launch --data snap-...`",
        ),
        Way(
            "snapshot, fast restore",
            (0.0, 0.0),
            (FAST_RESTORE_DOLLARS_PER_HOUR, FAST_RESTORE_DOLLARS_PER_HOUR),
            "an hour at least for each zone, and enabled an hour before (60 min a TiB)",
        ),
        way("snapshot, read once before", LAZY_MBPS, 0.0, "training waits for all of it"),
    ]
    if data_gb <= nvme_gb:
        note = "training starts at once and fetches ahead; the default of `launch --data s3://...`"
        found.append(way("S3 to the instance's disks", S3_MBPS, 0.0, note))
    return sorted(found, key=lambda one: one.dollars[1])
