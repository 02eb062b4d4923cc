"""Dry runs change nothing, and `clean` finds what is left, after a crash too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra import launches, leftovers
from imagenet_mds_infra.account import RUN_TAG, TAG, Account
from imagenet_mds_infra.launches import Launch, record
from imagenet_mds_infra.stack import Stack
from tests.infra.conftest import NAME, REGION, Cloud

LAUNCH = ("launch", "--phase", "3", "--data")


def _snapshot(cloud: Cloud) -> str:
    ec2 = cloud.client("ec2")
    tags = [{"Key": TAG, "Value": NAME}, {"Key": RUN_TAG, "Value": "imagenet"}]
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=10)["VolumeId"]
    found: str = ec2.create_snapshot(VolumeId=volume, TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags}])[
        "SnapshotId"
    ]
    ec2.delete_volume(VolumeId=volume)
    return found


def test_a_dry_run_changes_nothing(cloud: Cloud) -> None:
    def state() -> object:
        ec2 = cloud.client("ec2")
        versions = ec2.describe_launch_template_versions(LaunchTemplateName=NAME)["LaunchTemplateVersions"]
        objects = cloud.client("s3").list_objects_v2(Bucket=cloud.bucket).get("Contents")
        return len(versions), objects, ec2.describe_volumes()["Volumes"], cloud.group["DesiredCapacity"]

    snapshot = _snapshot(cloud)
    before = state()
    for arguments, calls in (
        (
            (*LAUNCH, snapshot, "--spot", "--dry-run"),
            [
                "code/",
                "launches/phase3.json",
                "create_launch_template_version",
                "create_or_update_tags",
                "update_auto_scaling_group",
            ],
        ),
        (("volume", "create", "v", "s3://images/x", "--dry-run"), ["code/", "launches/v.json", "run_instances"]),
        (("volume", "restore", snapshot, "--zone", f"{REGION}a", "--dry-run"), ["create_volume"]),
        (("clean", "--all", "--dry-run"), ["delete_snapshot"]),
    ):
        outcome = cloud.aws(*arguments)
        assert outcome.status == 0, outcome.err
        printed = [line for line in outcome.out.splitlines() if line.startswith("would call ")]
        assert all(any(call in line for line in printed) for call in calls), printed
        assert "testing" not in outcome.out, "the credentials of the tests"
    assert state() == before


class Killed(BaseException):
    """The command was killed."""


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("after", [False, True])
def test_what_a_killed_launch_leaves_is_found(
    stack: Stack, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    """Killed before or after each step, `clean` finds everything that was made, and removes it."""
    count = 0

    def dying(make: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **parameters: Any) -> Any:
            nonlocal count
            mine, count = count, count + 1
            if mine == step and not after:
                raise Killed
            result = make(*arguments, **parameters)
            if mine == step:
                raise Killed
            return result

        return wrapped

    launch = Launch("one", ["train"], spot=True, prices={})
    with monkeypatch.context() as patch:
        patch.setattr(launches, "upload_code", dying(launches.upload_code))
        patch.setattr(launches, "record", dying(launches.record))
        patch.setattr(Account, "change", dying(Account.change))
        with pytest.raises(Killed):
            launches.launch(stack, launch, "none", None, ("g4dn.12xlarge",))
    for one in leftovers.find(Stack.find(stack.account)):
        one.remove()
    assert cloud.group["DesiredCapacity"] == 0
    ec2 = cloud.client("ec2")
    running = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    assert not ec2.describe_instances(Filters=running)["Reservations"]
    left = [one for one in leftovers.find(Stack.find(stack.account)) if one.kind != "template version"]
    assert left == []


def test_what_is_in_use_stays(stack: Stack, cloud: Cloud) -> None:
    record(stack, Launch("one", ["train"], spot=True, prices={}))
    cloud.client("autoscaling").create_or_update_tags(
        Tags=[
            {
                "ResourceId": NAME,
                "ResourceType": "auto-scaling-group",
                "Key": RUN_TAG,
                "Value": "one",
                "PropagateAtLaunch": True,
            }
        ]
    )
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName=NAME, DesiredCapacity=1)
    S3Storage(cloud.bucket, "runs").write("one/log.jsonl", b"{}\n")
    S3Storage(cloud.bucket, "runs").write("old/log.jsonl", b"{}\n")
    snapshot = _snapshot(cloud)
    found = {
        (one.kind, one.of if one.kind == "run" else one.name): one for one in leftovers.find(stack.find(stack.account))
    }
    assert found["group", NAME].in_use
    assert found["run", "one"].in_use
    assert not found["run", "old"].in_use
    assert not found["snapshot", snapshot].in_use
    cleaned = cloud.aws("clean", "--yes")
    assert "nothing is removed" in cleaned.out
    cleaned = cloud.aws("clean", "--yes", "--all")
    assert cleaned.status == 0, cleaned.err
    assert f"removed snapshot {snapshot}" in cleaned.out
    names = {entry.name for entry in S3Storage(cloud.bucket, "runs").walk()}
    assert names == {"one/log.jsonl"}
    assert cloud.group["DesiredCapacity"] == 1


def test_an_ended_run_whose_group_still_has_an_instance_is_found(stack: Stack, cloud: Cloud) -> None:
    test_what_is_in_use_stays(stack, cloud)
    S3Storage(cloud.bucket, "launches").write(
        "one.end.json", json.dumps({"reason": "done", "status": 0, "words": "done"}).encode()
    )
    assert cloud.aws("clean", "--yes").status == 0
    assert cloud.group["DesiredCapacity"] == 0


def test_weights_go_with_a_launch_and_are_left_over_after_it(cloud: Cloud, tmp_path: Path) -> None:
    file = tmp_path / "resnet50.pth"
    file.write_bytes(b"weights")
    known = (*LAUNCH, _snapshot(cloud), "--run-name", "tuned", "--wait-minutes", 0)
    assert cloud.aws(*known, "--pretrained", file, "--dry-run").out.count("weights/") == 3
    launched = cloud.aws(*known, "--pretrained", file, "--yes")
    assert launched.status == 0, launched.err
    launch = Launch.read(launches.launches(cloud.bucket), "tuned")
    address = launch.arguments[launch.arguments.index("--pretrained") + 1]
    folder, _, name = address.rpartition("/")
    assert name.endswith("-resnet50.pth")
    assert S3Storage.at(folder).read(name) == b"weights"
    assert "--pretrained" in launch.first[0]

    def left() -> list[tuple[str, bool]]:
        found = leftovers.find(Stack.find(Account.of(NAME, REGION)))
        return [(one.name, one.in_use) for one in found if one.kind == "weights"]

    assert left() == [(address, True)]
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName=NAME, DesiredCapacity=0)
    assert left() == [(address, False)]
    assert cloud.aws("clean", "--yes").status == 0
    assert left() == []


def test_weights_that_are_none_are_refused_before_anything_is_made(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for given in ("none.pth", tmp_path / "notes.txt", tmp_path):
        refused = cloud.aws(*LAUNCH, "s3://bucket/mds", "--pretrained", given, "--yes")
        assert refused.status == 2
        assert "pass a file that ends in .pth, .bin, .safetensors, or an s3:// address" in refused.err
