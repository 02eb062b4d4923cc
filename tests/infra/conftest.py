"""A deployment as `infra/aws` makes it, on a moto server of its own."""

import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from imagenet_mds_infra.account import TAG, Account
from imagenet_mds_infra.stack import Stack
from tests.support.command import Outcome, run
from tests.support.s3_server import CREDENTIALS, Proxy, proxy_before, s3_server

NAME = "imagenet-mds"
ACCOUNT = "123456789012"
REGION = "us-east-1"


@dataclass(frozen=True)
class Cloud:
    """A deployment.

    port: of the server.
    """

    port: int

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads a program here."""
        return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    @property
    def bucket(self) -> str:
        """The deployment's bucket."""
        return f"{NAME}-{ACCOUNT}-{REGION}"

    def client(self, service: str) -> Any:
        """A client of the server."""
        return boto3.client(service, endpoint_url=f"http://127.0.0.1:{self.port}", region_name=REGION)

    def aws(self, *arguments: object, **more: str) -> Outcome:
        """Run `imagenet-mds aws ARGUMENTS`."""
        return run("aws", *arguments, cwd=None, **(self.variables | more))

    @property
    def group(self) -> dict[str, Any]:
        """The group now."""
        (found,) = self.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[NAME])[
            "AutoScalingGroups"
        ]
        group: dict[str, Any] = found
        return group

    def make(self) -> None:
        """Make what Terraform makes, as far as commands need it."""
        ec2, autoscaling = self.client("ec2"), self.client("autoscaling")
        self.client("s3").create_bucket(Bucket=self.bucket)
        self.client("logs").create_log_group(logGroupName=f"/imagenet-mds/{NAME}")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{place}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"][
                "SubnetId"
            ]
            for place, zone in enumerate("ab")
        ]
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        tags = [{"Key": TAG, "Value": NAME}]
        ec2.create_launch_template(
            LaunchTemplateName=NAME,
            LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge"},
            TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
        )
        autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=NAME,
            MinSize=0,
            MaxSize=1,
            DesiredCapacity=0,
            VPCZoneIdentifier=",".join(subnets),
            MixedInstancesPolicy={
                "LaunchTemplate": {
                    "LaunchTemplateSpecification": {"LaunchTemplateName": NAME, "Version": "1"},
                    "Overrides": [{"InstanceType": "g4dn.12xlarge"}],
                },
                "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 0},
            },
            Tags=[
                {
                    "ResourceId": NAME,
                    "ResourceType": "auto-scaling-group",
                    "Key": TAG,
                    "Value": NAME,
                    "PropagateAtLaunch": True,
                }
            ],
        )
        autoscaling.put_lifecycle_hook(
            LifecycleHookName=f"{NAME}-terminating",
            AutoScalingGroupName=NAME,
            LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
        )


@pytest.fixture(scope="module")
def aws_port() -> Iterator[int]:
    """The port of a server for the tests of a module."""
    with s3_server("tests.infra.aws_server") as port:
        yield port


@pytest.fixture
def cloud(aws_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """An account with a new deployment, which this process uses too."""
    from imagenet_mds.storage.s3_client import reset_client

    urllib.request.urlopen(f"http://127.0.0.1:{aws_port}/moto-api/reset", data=b"").close()
    cloud = Cloud(aws_port)
    for name, value in cloud.variables.items():
        monkeypatch.setenv(name, value)
    reset_client()
    cloud.make()
    yield cloud
    reset_client()


@pytest.fixture
def stack(cloud: Cloud) -> Stack:
    """The deployment."""
    assert os.environ["AWS_ENDPOINT_URL"]
    return Stack.find(Account.of(NAME, REGION))


@pytest.fixture
def proxy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the account, which the stack of this process uses."""
    with proxy_before(cloud.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy
