"""A volume from its creation to a restored one."""

import json

from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra import launches, leftovers
from imagenet_mds_infra.account import RUN_TAG, TAG, tag_of
from imagenet_mds_infra.launches import Launch
from imagenet_mds_infra.stack import Stack
from tests.infra.conftest import NAME, REGION, Cloud


def test_a_volume_from_its_making_to_a_restored_one(cloud: Cloud, stack: Stack) -> None:
    made = cloud.aws("volume", "create", "imagenet", "s3://images/ILSVRC2012", "--yes", "--", "--tiles")
    assert made.status == 0, made.err
    launch = Launch.read(launches.launches(cloud.bucket), "imagenet")
    assert launch.arguments == ["convert", "s3://images/ILSVRC2012", "/data/mds", "--tiles"]
    ec2 = cloud.client("ec2")
    tagged = [{"Name": f"tag:{RUN_TAG}", "Values": ["imagenet"]}]
    (reservation,) = ec2.describe_instances(Filters=tagged)["Reservations"]
    (builder,) = reservation["Instances"]
    assert builder["InstanceType"] == "c6i.2xlarge"
    (version,) = [
        one
        for one in ec2.describe_launch_template_versions(LaunchTemplateName=NAME)["LaunchTemplateVersions"]
        if one.get("VersionDescription") == "imagenet"
    ]
    (device,) = version["LaunchTemplateData"]["BlockDeviceMappings"]
    assert device["DeviceName"] == "/dev/sdf"
    wanted = {"VolumeSize": 200, "VolumeType": "gp3", "DeleteOnTermination": False, "Encrypted": True}
    assert device["Ebs"].items() >= wanted.items()
    # moto makes no second volume for an instance, so this one stands for it.
    volume = ec2.create_volume(
        AvailabilityZone=f"{REGION}a",
        Size=200,
        VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": stack.account.tags("imagenet")}],
    )["VolumeId"]
    early = cloud.aws("volume", "snapshot", "imagenet")
    assert (early.status, "still being filled" in early.err) == (2, True)
    assert cloud.aws("volume", "create", "imagenet", "s3://images/x", "--yes").status == 2

    ec2.terminate_instances(InstanceIds=[builder["InstanceId"]])
    S3Storage(cloud.bucket, "launches").write(
        "imagenet.end.json", json.dumps({"reason": "failed", "status": 1, "words": "failed with status 1"}).encode()
    )
    assert "is not filled: failed with status 1" in cloud.aws("volume", "snapshot", "imagenet").err
    S3Storage(cloud.bucket, "launches").write(
        "imagenet.end.json", json.dumps({"reason": "done", "status": 0, "words": "done"}).encode()
    )
    assert [one.holds_work for one in leftovers.find(stack) if one.name == volume] == [True]
    snapshot = cloud.aws("volume", "snapshot", "imagenet")
    assert [one.holds_work for one in leftovers.find(stack) if one.name == volume] == [False]
    assert snapshot.status == 0, snapshot.err
    (found,) = ec2.describe_snapshots(Filters=tagged)["Snapshots"]
    assert found["VolumeId"] == volume
    restored = cloud.aws("volume", "restore", "imagenet", "--zone", f"{REGION}b")
    assert restored.status == 0, restored.err
    (other,) = [one for one in ec2.describe_volumes()["Volumes"] if one.get("SnapshotId") == found["SnapshotId"]]
    assert other["AvailabilityZone"] == f"{REGION}b"
    assert tag_of(other, TAG) == NAME
