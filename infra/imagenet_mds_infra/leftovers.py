"""What a deployment has that costs money or is of no use any more, and its removal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra.account import RUN_TAG, tag_of
from imagenet_mds_infra.launches import launches
from imagenet_mds_infra.prices import (
    GP3_DOLLARS_PER_GB_MONTH,
    GP3_DOLLARS_PER_MBPS_MONTH,
    S3_DOLLARS_PER_GB_MONTH,
    SNAPSHOT_DOLLARS_PER_GB_MONTH,
)
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.worker import read_end

Kind = Literal["group", "instance", "volume", "snapshot", "template version", "code", "weights", "run"]


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed.

    name: its id or key.
    of: the run or volume that it was made for.
    dollars_per_month: what it costs as long as it is there.
    in_use: whether a run needs it now.
    remove: removes it.
    holds_work: whether it is removed only if that is asked for.
    """

    kind: Kind
    name: str
    of: str
    dollars_per_month: float
    in_use: bool
    remove: Callable[[], object]
    holds_work: bool = False


def find(stack: Stack) -> list[Leftover]:
    """Everything that commands have made in the account, by the deployment's tag and name.

    Raises:
        UserError, WorldError, OSError: AWS refuses.
    """
    return [*_machines(stack), *_volumes(stack), *_snapshots(stack), *_versions(stack), *_objects(stack)]


def _machines(stack: Stack) -> list[Leftover]:
    account, group = stack.account, stack.group
    run = tag_of(group, RUN_TAG) or "-"
    found = []
    if stack.is_busy:
        ended = run != "-" and read_end(launches(stack.bucket), run) is not None
        found.append(
            Leftover(
                "group",
                account.name,
                run,
                0.0,
                not ended,
                account.empty_group,
            )
        )
    members = {one["InstanceId"] for one in group["Instances"]}
    states = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    reservations = account.pages("ec2", "describe_instances", "Reservations", Filters=account.filters() + states)
    for instance in (one for reservation in reservations for one in reservation["Instances"]):
        if instance["InstanceId"] in members:
            continue
        of = tag_of(instance, RUN_TAG) or "-"
        fills = of != "-" and read_end(launches(stack.bucket), of) is None
        found.append(Leftover("instance", instance["InstanceId"], of, 0.0, fills, _terminate(stack, instance)))
    return found


def _terminate(stack: Stack, instance: dict[str, Any]) -> Callable[[], object]:
    return lambda: stack.account.change("ec2", "terminate_instances", InstanceIds=[instance["InstanceId"]])


def _volumes(stack: Stack) -> list[Leftover]:
    account = stack.account

    def removal(volume: str) -> Callable[[], object]:
        return lambda: account.change("ec2", "delete_volume", VolumeId=volume)

    volumes = account.pages("ec2", "describe_volumes", "Volumes", Filters=account.filters())
    snapshots = account.pages("ec2", "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=account.filters())
    saved = {tag_of(one, RUN_TAG) for one in snapshots if one["State"] == "completed"}

    def is_filled(run: str | None) -> bool:
        end = read_end(launches(stack.bucket), run) if run else None
        return end is not None and end.reason == "done"

    return [
        Leftover(
            "volume",
            one["VolumeId"],
            tag_of(one, RUN_TAG) or "-",
            one["Size"] * GP3_DOLLARS_PER_GB_MONTH
            + max(one.get("Throughput", 125) - 125, 0) * GP3_DOLLARS_PER_MBPS_MONTH,
            one["State"] != "available",
            removal(one["VolumeId"]),
            holds_work=tag_of(one, RUN_TAG) not in saved and is_filled(tag_of(one, RUN_TAG)),
        )
        for one in volumes
    ]


def _snapshots(stack: Stack) -> list[Leftover]:
    account = stack.account

    def removal(snapshot: str) -> Callable[[], object]:
        return lambda: account.change("ec2", "delete_snapshot", SnapshotId=snapshot)

    found = account.pages("ec2", "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=account.filters())
    return [
        Leftover(
            "snapshot",
            one["SnapshotId"],
            tag_of(one, RUN_TAG) or "-",
            one["VolumeSize"] * SNAPSHOT_DOLLARS_PER_GB_MONTH,
            False,
            removal(one["SnapshotId"]),
            holds_work=True,
        )
        for one in found
    ]


def _versions(stack: Stack) -> list[Leftover]:
    account = stack.account
    policy = stack.group.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {})
    used = policy.get("LaunchTemplateSpecification", {}).get("Version")

    def removal(version: str) -> Callable[[], object]:
        return lambda: account.change(
            "ec2", "delete_launch_template_versions", LaunchTemplateName=account.name, Versions=[version]
        )

    versions = account.pages(
        "ec2", "describe_launch_template_versions", "LaunchTemplateVersions", LaunchTemplateName=account.name
    )
    return [
        Leftover(
            "template version",
            str(one["VersionNumber"]),
            one.get("VersionDescription", "-"),
            0.0,
            str(one["VersionNumber"]) == used,
            removal(str(one["VersionNumber"])),
        )
        for one in versions
        if not one["DefaultVersion"]
    ]


def _objects(stack: Stack) -> list[Leftover]:
    """What a launch that has not ended needs, the program's archives and weights, and the runs."""
    found = []
    for kind in ("code", "weights"):
        storage = S3Storage(stack.bucket, kind)
        for entry in storage.walk():
            found.append(_object(stack, kind, storage, [entry.name], entry.name, entry.size_bytes, stack.is_busy))
    runs = S3Storage(stack.bucket, "runs")
    sizes: dict[str, list[tuple[str, int]]] = {}
    for entry in runs.walk():
        sizes.setdefault(entry.name.split("/")[0], []).append((entry.name, entry.size_bytes))
    for run, entries in sorted(sizes.items()):
        busy = stack.is_busy and tag_of(stack.group, RUN_TAG) == run
        names = [name for name, _ in entries]
        found.append(_object(stack, "run", runs, names, run, sum(size for _, size in entries), busy))
    return found


def _object(
    stack: Stack, kind: Kind, storage: S3Storage, names: list[str], name: str, size_bytes: int, in_use: bool
) -> Leftover:
    def remove() -> None:
        for one in names:
            if stack.account.dry_run:
                stack.account.dry_run(f"s3 delete_object {storage.location}/{one}")
            else:
                storage.delete(one)

    dollars = size_bytes / 1e9 * S3_DOLLARS_PER_GB_MONTH
    is_run = kind == "run"
    place, of = f"{storage.location}/{name}", name if is_run else "-"
    return Leftover(kind, place, of, dollars, in_use, remove, holds_work=is_run)


def dollars_per_month(found: list[Leftover]) -> float:
    """What all of it costs a month, instances not included."""
    return sum(one.dollars_per_month for one in found)
