"""Waits for the group's instance, and says in words why there is none."""

import re
import time
from collections.abc import Callable
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_infra.account import HINTS, Account
from imagenet_mds_infra.stack import Stack

POLL_SECONDS = 5.0
WAIT_SECONDS = 300.0

LASTING = ("VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InvalidAMIID.NotFound")
"""Causes that waiting does not remove."""

_WORDS = {
    "vcpu": "VcpuLimitExceeded",
    "vCPU": "VcpuLimitExceeded",
    "Max spot instance count exceeded": "MaxSpotInstanceCountExceeded",
    "do not have sufficient": "InsufficientInstanceCapacity",
    "no Spot capacity": "UnfulfillableCapacity",
    "image id": "InvalidAMIID.NotFound",
}
"""How Auto Scaling words a cause, which it gives as text."""

QUOTAS = {True: "L-3819A6DF", False: "L-DB2E81BA"}
"""Service Quotas' codes of the vCPUs of G instances that may run, on spot and on demand."""


def cause_of(message: str) -> str | None:
    """The error code that a scaling activity's message stands for, None if it is not known."""
    known = re.search("|".join(map(re.escape, HINTS)), message)
    if known:
        return known[0]
    return next((code for words, code in _WORDS.items() if words in message), None)


def wait_for_instance(
    stack: Stack, since: float, say: Callable[[str], None], wait_seconds: float, poll_seconds: float = POLL_SECONDS
) -> dict[str, Any] | None:
    """Wait until the group has an instance.

    Args:
        stack: the deployment.
        since: seconds since 1970; what the group did before is not looked at.
        say: prints a line.
        wait_seconds: how long to wait.
        poll_seconds: between two looks.

    Returns:
        The instance as Auto Scaling describes it; None if there is none yet.

    Raises:
        UserError: it cannot have one until somebody changes something; its size is 0 again.
        WorldError: AWS does not answer.
    """
    account = stack.account
    until = time.monotonic() + wait_seconds
    said = ""
    while True:
        (group,) = account.ask("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[account.name])[
            "AutoScalingGroups"
        ]
        if group["Instances"]:
            found: dict[str, Any] = group["Instances"][0]
            return found
        for message in _failures(account, since):
            code = cause_of(message)
            if code in LASTING:
                account.empty_group()
                raise UserError(f"no instance was started: {HINTS[code]} ({code})")
            words = HINTS[code] if code else message
            if words != said:
                said = words
                say(f"not yet: {words}")
        if time.monotonic() >= until:
            return None
        time.sleep(poll_seconds)


def _failures(account: Account, since: float) -> list[str]:
    """Why the group could not start an instance, the newest first."""
    activities = account.ask("autoscaling", "describe_scaling_activities", AutoScalingGroupName=account.name)
    return [
        one.get("StatusMessage", "")
        for one in activities["Activities"]
        if one["StatusCode"] in ("Failed", "Cancelled") and one["StartTime"].timestamp() >= since
    ]


def vcpu_quota(account: Account, *, spot: bool) -> float | None:
    """How many vCPUs of G instances may run; None if the account does not say, as without the permission."""
    try:
        answer = account.ask("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=QUOTAS[spot])
    except (UserError, WorldError):
        return None
    return float(answer["Quota"]["Value"])
