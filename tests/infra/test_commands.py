"""The commands of `imagenet-mds aws` that start no training, against an account that answers over HTTP."""

import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra import launches, leftovers, volumes
from imagenet_mds_infra.account import RUN_TAG, TAG, Account, tag_of
from imagenet_mds_infra.code import PACKAGES, pack
from imagenet_mds_infra.group import cause_of, vcpu_quota, wait_for_instance
from imagenet_mds_infra.homes import homes
from imagenet_mds_infra.launches import Launch, record
from imagenet_mds_infra.ledger import Ledger, Machine
from imagenet_mds_infra.prices import PHASE_TYPES, TYPES, offers
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.volumes import ways
from tests.infra.conftest import ACCOUNT, NAME, REGION, Cloud
from tests.support.command import run
from tests.support.s3_server import CREDENTIALS, Proxy, proxy_before, s3_server

LAUNCH = ("launch", "--phase", "3", "--data")


@pytest.fixture
def proxy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the account, which the stack of this process uses."""
    with proxy_before(cloud.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


def error(code: str, message: str = "no") -> tuple[int, str]:
    """An error of EC2 or Auto Scaling."""
    return 400, f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"


# What a user gets wrong.


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (("status", "--region", "us-eats-1"), {}, "there is no such region; is us-east-1 meant?"),
        (("status",), {"AWS_DEFAULT_REGION": "us-west-2"}, "run `terraform apply` in infra/aws"),
        (("status", "--name", "other"), {}, "there is no deployment 'other' in us-east-1"),
        (("status", "nothing"), {}, "nothing was launched as 'nothing'"),
        (("logs", "nothing"), {}, "nothing was launched as 'nothing'"),
        (("launch", "--phase", "1", "--data", "s3://b/m"), {}, "phase 1 runs on Colab"),
        (("launch",), {}, "pass --data s3://BUCKET/mds"),
        ((*LAUNCH, "/data/mds"), {}, "pass --data s3://BUCKET/mds"),
        ((*LAUNCH, "s3://b/m", "--instance-type", "p3.2xlarge"), {}, "--instance-type p3.2xlarge: pass one of g4dn"),
        ((*LAUNCH, "s3://b/m", "--instance-type", "g4dn.xlarge"), {}, "the configuration has 4 ranks, and GPUs are: "),
        ((*LAUNCH, "s3://b/m", "--run-name", "a/b"), {}, "--run-name 'a/b': pass up to 63 letters"),
        ((*LAUNCH, "s3://b/m", "optimizer.rl=1"), {}, "did you mean optimizer.lr"),
        ((*LAUNCH, "snap-0123456789abcdef0"), {}, "InvalidSnapshot.NotFound"),
        ((*LAUNCH, "s3://nowhere/mds"), {}, "nowhere"),
        (("volume", "create", "v", "/data/ILSVRC2012"), {}, "pass an s3:// address, which the machine can read"),
        (("volume", "create", "v", "s3://b/i"), {}, "Pass --yes where nobody can be asked"),
        (("volume", "snapshot", "v"), {}, "there is no volume 'v'"),
        (("volume", "restore", "v", "--zone", "us-east-1a"), {}, "there is no snapshot 'v'"),
        (("volume", "restore", "v", "--zone", "nowhere"), {}, "--zone nowhere: pass one of us-east-1a"),
        (("worker",), {}, "IMAGENET_MDS_NAME is not set"),
    ],
)
def test_a_mistake_is_one_line(
    shared: Cloud, arguments: tuple[str, ...], variables: dict[str, str], words: str
) -> None:
    outcome = shared.aws(*arguments, **variables)
    assert outcome.status == 2, outcome
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def shared() -> Iterator[Cloud]:
    """A deployment that no test changes, on a server of its own."""
    with s3_server("tests.infra.aws_server") as port, pytest.MonkeyPatch.context() as patch:
        cloud = Cloud(port)
        for name, value in cloud.variables.items():
            patch.setenv(name, value)
        cloud.make()
        yield cloud


def test_without_credentials(tmp_path: Path) -> None:
    empty = {name: "" for name in CREDENTIALS if name != "AWS_EC2_METADATA_DISABLED"}
    outcome = run(
        "aws",
        "status",
        "--region",
        REGION,
        cwd=tmp_path,
        AWS_CONFIG_FILE=str(tmp_path / "none"),
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
        **empty,
    )
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "there are no AWS credentials: run `aws configure`" in outcome.err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("VcpuLimitExceeded", "quota of vCPUs"),
        ("InsufficientInstanceCapacity", "no such instance free"),
        ("InvalidAMIID.NotFound", "the machine image is gone"),
        ("ExpiredToken", "the credentials have expired"),
        ("UnauthorizedOperation", "lack the permission"),
    ],
)
def test_an_error_of_aws_says_what_to_do(stack: Stack, proxy: Proxy, code: str, words: str) -> None:
    proxy.respond = lambda body: error(code) if "Action=RunInstances" in body else None
    with pytest.raises(UserError, match=words):
        volumes.create(Stack.find(Account.of(NAME, REGION)), "v", "s3://b/i", [])


def test_an_answer_that_is_none_of_aws_is_one_line(stack: Stack, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy of a company gives it."""
    monkeypatch.setattr("imagenet_mds.storage.retry.REQUEST_RETRIES", 1)
    proxy.respond = lambda body: (502, "<html>Bad gateway") if "Action=DescribeAutoScaling" in body else None
    with pytest.raises(WorldError, match="AWS does not answer"):
        Stack.find(Account.of(NAME, REGION))


# The group.


def activity(message: str) -> tuple[int, str]:
    """The answer to DescribeScalingActivities with a failed one."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    member = (
        f"<member><ActivityId>1</ActivityId><AutoScalingGroupName>{NAME}</AutoScalingGroupName><Cause>c</Cause>"
        f"<StartTime>{now}</StartTime><StatusCode>Failed</StatusCode><StatusMessage>{message}</StatusMessage></member>"
    )
    return 200, (
        f"<DescribeScalingActivitiesResponse><DescribeScalingActivitiesResult><Activities>{member}</Activities>"
        f"</DescribeScalingActivitiesResult></DescribeScalingActivitiesResponse>"
    )


VCPUS = (
    "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket that the "
    "specified instance type belongs to. Launching EC2 instance failed."
)
CAPACITY = "We currently do not have sufficient g4dn.12xlarge capacity in zones with support for 'gp3' volumes."
IMAGE = "The image id '[ami-0123]' does not exist. Launching EC2 instance failed."
SPOT = "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request."


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (VCPUS, "VcpuLimitExceeded"),
        (CAPACITY, "InsufficientInstanceCapacity"),
        (IMAGE, "InvalidAMIID.NotFound"),
        (SPOT, "UnfulfillableCapacity"),
        ("Something else.", None),
    ],
)
def test_what_a_scaling_activity_says_is_understood(message: str, code: str | None) -> None:
    assert cause_of(message) == code


def test_without_a_quota_the_group_is_set_to_0_again(stack: Stack, cloud: Cloud, proxy: Proxy) -> None:
    proxy.respond = lambda body: activity(VCPUS) if "Action=DescribeScalingActivities" in body else None
    stack = Stack.find(Account.of(NAME, REGION))
    with pytest.raises(UserError, match=r"no instance was started.*quota of vCPUs"):
        wait_for_instance(stack, 0.0, print, wait_seconds=60.0)
    assert cloud.group["DesiredCapacity"] == 0


def test_without_capacity_the_group_goes_on_trying(stack: Stack, proxy: Proxy) -> None:
    proxy.respond = lambda body: activity(SPOT) if "Action=DescribeScalingActivities" in body else None
    said: list[str] = []
    stack = Stack.find(Account.of(NAME, REGION))
    assert wait_for_instance(stack, 0.0, said.append, wait_seconds=0.5, poll_seconds=0.1) is None
    assert len(said) == 1
    assert "no such instance free" in said[0]


def test_a_quota_that_nobody_tells_is_none(stack: Stack) -> None:
    assert vcpu_quota(stack.account, spot=True) is None


# Prices and places.


def test_offers_are_those_of_the_groups_zones(stack: Stack) -> None:
    found = offers(stack.account, PHASE_TYPES["3"], stack.zones())
    assert {offer.zone for offer in found} == {f"{REGION}a", f"{REGION}b"}
    assert {offer.type.name for offer in found} == set(PHASE_TYPES["3"])
    assert all(offer.spot_dollars_per_hour == 0.00001 for offer in found), "moto's price"
    prices = [offer.dollars_per_hour(spot=True) for offer in found]
    assert prices == sorted(prices)
    assert found[0].dollars_per_hour(spot=False) == TYPES[found[0].type.name].dollars_per_hour


def test_types_of_a_phase_have_its_gpus() -> None:
    assert {TYPES[name].gpus for name in PHASE_TYPES["2"]} == {1}
    assert {TYPES[name].gpus for name in PHASE_TYPES["3"]} == {4}


def test_what_does_not_fit_an_instance_is_not_copied_to_it() -> None:
    small = {way.name for way in ways(150.0, 125, 0.5)}
    large = {way.name: way for way in ways(150.0, 900, 3.912)}
    assert set(large) - small == {"S3 to the instance's disks"}
    copied = large["S3 to the instance's disks"]
    assert copied.minutes == pytest.approx((2.5, 5.0))
    assert copied.dollars == pytest.approx((2.5 / 60 * 3.912, 5 / 60 * 3.912))
    fast = large["snapshot, fast restore"]
    assert fast.dollars == (0.75, 0.75)


def test_a_place_is_dearer_with_more_runs() -> None:
    few, many = (homes(3.912, 13.6, 120, runs) for runs in (0.0, 100.0))
    assert few[0].monthly(0.0) == 0.0, "Hugging Face costs nothing without runs"
    assert few[0].name == "Hugging Face, for each run"
    assert many[-1].name == "Hugging Face, for each run"
    for home in many:
        assert home.monthly(3.0) == pytest.approx(home.dollars_a_month + 3 * home.dollars_a_run)


# The program as an instance installs it.


def test_the_archive_runs_without_the_checkout(tmp_path: Path) -> None:
    packed, digest = pack()
    assert (packed, digest) == pack()
    (tmp_path / "code.tar.gz").write_bytes(packed)
    subprocess.run(["tar", "-xzf", "code.tar.gz"], cwd=tmp_path, check=True)
    assert {path.name for path in (tmp_path / "app").iterdir()} == set(PACKAGES)
    assert (tmp_path / "requirements.lock").is_file()
    assert "ExecStart=" in (tmp_path / "imagenet-mds.service").read_text()
    outcome = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path / 'app')!r}); sys.argv[1:] = "
            "['configs', 'show', 'phase3']; from imagenet_mds.cli import main; main()",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert 'recipe: "medium"' in outcome.stdout


# Volumes.


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


# Dry runs, and what is left.


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


def _snapshot(cloud: Cloud) -> str:
    ec2 = cloud.client("ec2")
    tags = [{"Key": TAG, "Value": NAME}, {"Key": RUN_TAG, "Value": "imagenet"}]
    volume = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=10)["VolumeId"]
    found: str = ec2.create_snapshot(VolumeId=volume, TagSpecifications=[{"ResourceType": "snapshot", "Tags": tags}])[
        "SnapshotId"
    ]
    ec2.delete_volume(VolumeId=volume)
    return found


class Killed(BaseException):
    """The command was killed."""


STEPS = ("create_launch_template_version", "create_or_update_tags", "update_auto_scaling_group", "run_instances")


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


# The ledger.


def test_the_ledger_adds_up_all_instances(stack: Stack, cloud: Cloud) -> None:
    ledger = Ledger.of(cloud.bucket, "one")
    assert ledger.totals() == (0.0, 0.0)
    ledger.write(Machine("i-1", "g4dn.xlarge", "a", 0.0, 3600.0, 0.5, "interrupted"))
    ledger.write(Machine("i-2", "g4dn.xlarge", "b", 7200.0, 9000.0, None))
    assert ledger.totals() == (1.5, 0.5)
    assert ledger.totals(Machine("i-2", "g4dn.xlarge", "b", 7200.0, 10800.0, 1.0)) == (2.0, 1.5)
    assert [machine.instance for machine in ledger.machines()] == ["i-1", "i-2"]


def test_a_launch_has_the_price_of_its_zone() -> None:
    launch = Launch("one", [], spot=True, prices={"g4dn.xlarge": 0.5, "g4dn.xlarge us-east-1a": 0.2})
    assert launch.price("g4dn.xlarge", "us-east-1a") == 0.2
    assert launch.price("g4dn.xlarge", "us-east-1b") == 0.5
    assert launch.price("g5.xlarge", "us-east-1a") is None


def test_a_record_of_a_later_version_is_refused(stack: Stack, cloud: Cloud) -> None:
    S3Storage(cloud.bucket, "launches").write("one.json", b'{"format": 99}')
    outcome = cloud.aws("status", "one")
    assert outcome.status == 2
    assert "later version of imagenet-mds" in outcome.err
    assert ACCOUNT in outcome.err
