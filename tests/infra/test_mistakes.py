"""What a user gets wrong, and what AWS refuses, is one line that says what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra import volumes
from imagenet_mds_infra.account import Account
from imagenet_mds_infra.stack import Stack
from tests.infra.conftest import ACCOUNT, NAME, REGION, Cloud
from tests.support.command import run
from tests.support.s3_server import CREDENTIALS, Proxy, s3_server

LAUNCH = ("launch", "--phase", "3", "--data")


@pytest.fixture(scope="module")
def shared() -> Iterator[Cloud]:
    """A deployment that no test changes, on a server of its own."""
    with s3_server("tests.infra.aws_server") as port, pytest.MonkeyPatch.context() as patch:
        cloud = Cloud(port)
        for name, value in cloud.variables.items():
            patch.setenv(name, value)
        cloud.make()
        yield cloud


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


def error(code: str, message: str = "no") -> tuple[int, str]:
    """An error of EC2 or Auto Scaling."""
    return 400, f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors></Response>"


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
    """A gateway on the way answers with a page of HTML."""
    monkeypatch.setattr("imagenet_mds.storage.retry.REQUEST_RETRIES", 1)
    proxy.respond = lambda body: (502, "<html>Bad gateway") if "Action=DescribeAutoScaling" in body else None
    with pytest.raises(WorldError, match="AWS does not answer"):
        Stack.find(Account.of(NAME, REGION))


def test_a_record_of_a_later_version_is_refused(stack: Stack, cloud: Cloud) -> None:
    S3Storage(cloud.bucket, "launches").write("one.json", b'{"format": 99}')
    outcome = cloud.aws("status", "one")
    assert outcome.status == 2
    assert "later version of imagenet-mds" in outcome.err
    assert ACCOUNT in outcome.err
