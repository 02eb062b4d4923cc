"""How the worker of an instance takes the end of what it runs."""

import dataclasses
import signal
import time
from collections.abc import Iterator

import pytest

from imagenet_mds.process.metadata import MetadataService
from imagenet_mds_infra.launches import Launch, launches
from imagenet_mds_infra.ledger import Ledger, Machine
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.worker import Worker, read_end
from tests.infra.conftest import Cloud
from tests.support.metadata import Metadata, metadata_service

LAUNCH = Launch("one", ["--version"], spot=True, prices={})
HERE = Machine("i-2", "g4dn.xlarge", "us-east-1a", time.time(), time.time(), None)


@pytest.fixture
def ending(cloud: Cloud) -> Iterator[Metadata]:
    """The metadata service of an instance that its group is about to end; another instance ran before it."""
    Ledger.of(cloud.bucket, LAUNCH.run).write(dataclasses.replace(HERE, instance="i-1", booted=0.0))
    with metadata_service() as service:
        service.bodies["/latest/meta-data/autoscaling/target-lifecycle-state"] = "Terminated"
        yield service


def test_a_run_that_is_asked_to_stop_after_its_last_batch_is_done(
    stack: Stack, ending: Metadata, capfd: pytest.CaptureFixture[str]
) -> None:
    service = MetadataService(ending.variables["AWS_EC2_METADATA_SERVICE_ENDPOINT"])
    worker = Worker(stack.account, stack.bucket, LAUNCH, HERE, service, print, look_seconds=0.0)
    # A command that has finished and is about to exit heeds no SIGTERM. This one inherits that it is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert worker.work() == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert "the group ends this instance" not in capfd.readouterr().out
    end = read_end(launches(stack.bucket), LAUNCH.run)
    assert end is not None
    assert end.reason == "done"
