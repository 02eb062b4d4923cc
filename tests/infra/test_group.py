"""Waiting for the group's instance: what scaling activities say, quotas, capacity."""

import datetime

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds_infra.account import Account
from imagenet_mds_infra.group import cause_of, vcpu_quota, wait_for_instance
from imagenet_mds_infra.stack import Stack
from tests.infra.conftest import NAME, REGION, Cloud
from tests.support.s3_server import Proxy


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
