"""`imagenet-mds aws launch` and what its instances do, from the first one to the end of the run."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra.launches import Launch, launches
from imagenet_mds_infra.ledger import Ledger, Machine
from imagenet_mds_infra.worker import read_end
from tests.infra.conftest import NAME, REGION, Cloud
from tests.support.command import HANG_SECONDS, start, wait_until
from tests.support.metadata import ACTION, TERMINATE, Metadata, metadata_service
from tests.support.states import tree_of

pytestmark = pytest.mark.slow  # starts whole trainings

SMALL = (
    "global_batch_size=8",
    "augment={size_px: 24}",
    "evaluation={resize_px: 28, crop_px: 24, device_batch_size: 16, workers_per_rank: 0, subset: null}",
    "model.depth=10",
    "schedule={epochs: 10, warmup_epochs: 0}",
    "data={subset: 152, workers_per_rank: 0}",
    "augment.randaugment=null",
    "algorithms={ema: null, mixup: null, cutmix: null, blurpool: null}",
    "system={device: cpu, device_microbatch_size: null, precision: fp32}",
    "checkpoint.every_batches=3",
    "logging.every_batches=1",
)
BATCHES = 10 * 19
"""Enough that a notice, which is looked for every 5 s, comes before the end on a fast machine too."""


@pytest.fixture
def data(cloud: Cloud, dataset: Path) -> str:
    """The dataset in the deployment's bucket."""
    client = cloud.client("s3")
    for path in dataset.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), cloud.bucket, f"mds/{path.relative_to(dataset).as_posix()}")
    return f"s3://{cloud.bucket}/mds"


class Instance:
    """An instance of the group: its metadata service, its disks, and the worker on it."""

    def __init__(self, cloud: Cloud, metadata: Metadata, root: Path, number: int, run: str) -> None:
        self.cloud, self.metadata, self.run = cloud, metadata, run
        self.id = f"i-{number:017x}"
        self.folder = root / self.id
        self.folder.mkdir()
        metadata.bodies.clear()
        metadata.bodies |= {
            "/latest/meta-data/instance-id": self.id,
            "/latest/meta-data/instance-type": "g4dn.xlarge",
            "/latest/meta-data/placement/availability-zone": f"{REGION}a",
            "/latest/meta-data/autoscaling/target-lifecycle-state": "InService",
        }
        variables = {name: value for name, value in metadata.variables.items() if name != "http_proxy"}
        self.process = start(
            "aws",
            "worker",
            log=self.folder / "out",
            **(cloud.variables | variables),
            AWS_REGION=REGION,
            IMAGENET_MDS_NAME=NAME,
            IMAGENET_MDS_BUCKET=cloud.bucket,
            IMAGENET_MDS_LAUNCH=f"launches/{run}.json",
            XDG_CACHE_HOME=str(self.folder / "cache"),
            HOME=str(self.folder),
        )

    def said(self) -> str:
        """The worker's output."""
        return (self.folder / "out").read_text(encoding="utf-8")

    def batches(self) -> list[int]:
        """The batches of the run that this instance has trained, without those of the dry run."""
        found: list[int] = []
        for log in self.folder.glob(f"cache/imagenet-mds/runs/*/{self.run}/log.jsonl"):
            for line in log.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    found += [event["batch"]] if event["event"] == "batch" else []
        return found

    def wait_for_batch(self, batch: int) -> None:
        """Wait until the run has come that far here."""
        wait_until(lambda: max(self.batches(), default=0) >= batch, self.said() or "a batch", self.process)

    def end(self) -> int:
        """Wait for the end of the worker; return its status."""
        try:
            return self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said()) from None

    def ends_in_its_group(self) -> int:
        """Wait for the end of the worker, whose group ends the instance once the run has ended.

        Moto's group ends it too when its size is 0, but does not tell the metadata service.
        """
        try:
            ended = re.compile(f"^{self.run}: ", re.MULTILINE)
            wait_until(lambda: ended.search(self.said()) is not None, "the end of the run", self.process)
            self.metadata.bodies["/latest/meta-data/autoscaling/target-lifecycle-state"] = "Terminated"
            return self.end()
        finally:
            self.kill()

    def kill(self) -> None:
        """End what is left of it."""
        for pid in tree_of(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """The metadata service of whatever instance there is."""
    with metadata_service() as service:
        yield service


def user_data_of(cloud: Cloud, version: str) -> str:
    """The script of a version of the launch template."""
    (found,) = cloud.client("ec2").describe_launch_template_versions(LaunchTemplateName=NAME, Versions=[version])[
        "LaunchTemplateVersions"
    ]
    return base64.b64decode(found["LaunchTemplateData"]["UserData"]).decode()


def status_of(cloud: Cloud, run: str) -> dict[str, Any]:
    """What `status` says of a run."""
    (found,) = json.loads(cloud.aws("status", run, "--json").out)
    row: dict[str, Any] = found
    return row


def test_a_run_goes_from_instance_to_instance_and_leaves_nothing_running(
    cloud: Cloud, metadata: Metadata, data: str, tmp_path: Path
) -> None:
    """One instance is stopped by the group, the next one by a spot notice, and the third ends the run."""
    known = ("launch", "--phase", "2", "--spot", "--data", data, "--instance-type", "g4dn.xlarge", "--run-name", "one")
    launched = cloud.aws(*known, "--yes", *SMALL)
    assert launched.status == 0, launched.err
    assert "one is launched" in launched.out
    group = cloud.group
    assert group["DesiredCapacity"] == 1
    policy = group["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
    version = policy["LaunchTemplate"]["LaunchTemplateSpecification"]["Version"]
    script = user_data_of(cloud, version)
    assert "export IMAGENET_MDS_LAUNCH=launches/one.json" in script
    assert "testing" not in script, "the credentials of the tests"
    code = next(line for line in script.splitlines() if "IMAGENET_MDS_CODE=" in line).partition("=")[2]
    assert S3Storage(cloud.bucket, "").size_bytes(code)
    assert cloud.aws(*known, "--yes", *SMALL).status == 2, "the group has an instance"

    stopped = Instance(cloud, metadata, tmp_path, 1, "one")
    try:
        stopped.wait_for_batch(4)
        assert status_of(cloud, "one")["state"] == "running"
        assert cloud.aws("stop").status == 0
        metadata.bodies["/latest/meta-data/autoscaling/target-lifecycle-state"] = "Terminated"
        assert stopped.end() == 75, stopped.said()
        assert "Saving, then exiting" in stopped.said()
    finally:
        stopped.kill()
    assert status_of(cloud, "one")["state"] == "stopped"
    assert cloud.group["DesiredCapacity"] == 0

    assert cloud.aws(*known, "--yes", *SMALL).status == 0, "it is continued"
    interrupted = Instance(cloud, metadata, tmp_path, 2, "one")
    try:
        interrupted.wait_for_batch(max(stopped.batches()) + 3)
        metadata.bodies[ACTION] = TERMINATE
        assert interrupted.end() == 75, interrupted.said()
        assert "Spot notice" in interrupted.said()
    finally:
        interrupted.kill()
    assert read_end(launches(cloud.bucket), "one") is None
    assert cloud.group["DesiredCapacity"] == 1, "the group starts the next one"
    # What an instance trained follows on what the one before it trained, without a gap or a repetition.
    assert stopped.batches() == list(range(1, max(stopped.batches()) + 1))
    assert interrupted.batches() == list(range(1, max(interrupted.batches()) + 1))

    last = Instance(cloud, metadata, tmp_path, 3, "one")
    assert last.ends_in_its_group() == 0, last.said()
    assert max(last.batches()) == BATCHES
    assert cloud.group["DesiredCapacity"] == 0
    row = status_of(cloud, "one")
    assert (row["state"], row["epoch"], row["epochs"], row["interruptions"]) == ("finished", 10, 10, 1)
    assert row["top1"] is not None
    # They have all been started when this machine was.
    ends = {one["instance"]: one["end"] for one in row["instances"]}
    assert ends == {stopped.id: "stopped", interrupted.id: "interrupted", last.id: "done"}
    assert row["dollars"] > 0
    said = cloud.aws("logs", "one", "--lines", 5000)
    assert "is finished after" in said.out, said.err
    assert "$ imagenet-mds train" in said.out
    shown = cloud.aws("cost")
    assert shown.status == 0, shown.err
    assert shown.out.splitlines()[1].startswith("one ")

    cleaned = cloud.aws("clean", "--yes")
    assert cleaned.status == 0, cleaned.err
    assert "stays" in cleaned.out
    assert not cloud.client("s3").list_objects_v2(Bucket=cloud.bucket, Prefix="code/").get("Contents")
    assert status_of(cloud, "one")["state"] == "finished", "the run stays"


def test_a_budget_ends_a_run_in_good_order(cloud: Cloud, metadata: Metadata, data: str, tmp_path: Path) -> None:
    known = ("launch", "--phase", "2", "--data", data, "--instance-type", "g4dn.xlarge", "--run-name", "dear")
    assert cloud.aws(*known, "--yes", "--max-dollars", "0.01", *SMALL).status == 0
    launch = Launch.read(launches(cloud.bucket), "dear")
    assert (launch.spot, launch.max_dollars) == (False, 0.01)
    # Another instance has spent all of it before.
    spent = {"instance": "i-0", "type": "g4dn.xlarge", "zone": "a", "booted": 0.0, "seen": 3600.0}
    S3Storage(cloud.bucket, "launches/dear").write("i-0.json", json.dumps(spent | {"dollars_per_hour": 0.5}).encode())
    instance = Instance(cloud, metadata, tmp_path, 1, "dear")
    assert instance.ends_in_its_group() == 75, instance.said()
    assert "are spent, the limit is 0.01" in instance.said()
    assert cloud.group["DesiredCapacity"] == 0
    row = status_of(cloud, "dear")
    assert row["state"] == "budget"
    assert row["dollars"] >= 0.5


def test_what_cannot_be_trained_ends_the_launch(cloud: Cloud, metadata: Metadata, data: str, tmp_path: Path) -> None:
    """The dry run fails, and nothing is left running."""
    known = ("launch", "--phase", "2", "--data", data, "--instance-type", "g4dn.xlarge", "--run-name", "bad", "--yes")
    assert cloud.aws(*known, *SMALL, "data.subset=10000").status == 0
    instance = Instance(cloud, metadata, tmp_path, 1, "bad")
    assert instance.ends_in_its_group() == 78, instance.said()
    assert "data.subset asks for 10,000 training images" in instance.said()
    assert cloud.group["DesiredCapacity"] == 0
    assert status_of(cloud, "bad")["state"] == "failed"


def test_an_instance_whose_run_was_taken_over_leaves_the_group_to_its_successor(
    cloud: Cloud, metadata: Metadata, data: str, tmp_path: Path
) -> None:
    """Capacity rebalancing starts the next instance before this one ends; its training ends with status 2 then."""
    known = ("launch", "--phase", "2", "--data", data, "--instance-type", "g4dn.xlarge", "--run-name", "old", "--yes")
    assert cloud.aws(*known, *SMALL, "data.subset=10000").status == 0
    Ledger.of(cloud.bucket, "old").write(
        Machine("i-1", "g4dn.xlarge", f"{REGION}a", time.time() + 1000, time.time() + 1000, 0.5)
    )
    instance = Instance(cloud, metadata, tmp_path, 2, "old")
    assert instance.ends_in_its_group() == 75, instance.said()
    assert "a newer instance continues the run" in instance.said()
    assert cloud.group["DesiredCapacity"] == 1
    assert read_end(launches(cloud.bucket), "old") is None
