"""One deployment in an AWS account: its clients, its tags, calls that a dry run prints, and errors in words.

Credentials come from boto3's chain and are never written anywhere.
"""

import difflib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import botocore.exceptions
import botocore.parsers
from botocore.config import Config

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import retry

TAG = "imagenet-mds"
"""The tag of everything that belongs to a deployment; its value is the deployment's name."""

RUN_TAG = "imagenet-mds:run"
"""The tag that names the run or the volume that something was made for."""

_WITHOUT_CREDENTIALS = (
    "there are no AWS credentials: run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)
_BAD_KEYS = "AWS does not accept the credentials: renew them, or check AWS_PROFILE"
_NO_QUOTA = (
    "the account's quota of vCPUs for these instances is too small (it is 0 in a new account): ask for more under "
    "Service Quotas, EC2, `All G and VT Spot Instance Requests` or `Running On-Demand G and VT instances`"
)
_NO_CAPACITY = "AWS has no such instance free in any of the zones now: try again later, or pass other --instance-type"
_GONE = "it does not exist in this region, or is gone: list what there is with `imagenet-mds aws status`, or --region"

HINTS = {
    "AuthFailure": _BAD_KEYS,
    "InvalidClientTokenId": _BAD_KEYS,
    "UnrecognizedClientException": _BAD_KEYS,
    "SignatureDoesNotMatch": _BAD_KEYS,
    "ExpiredToken": "the credentials have expired: renew them and run the same command again",
    "ExpiredTokenException": "the credentials have expired: renew them and run the same command again",
    "RequestExpired": "the credentials have expired, or this machine's clock is wrong",
    "OptInRequired": "the account is not enabled for this service or region: enable it in the console",
    "VcpuLimitExceeded": _NO_QUOTA,
    "MaxSpotInstanceCountExceeded": _NO_QUOTA,
    "InsufficientInstanceCapacity": _NO_CAPACITY,
    "UnfulfillableCapacity": _NO_CAPACITY,
    "InvalidAMIID.NotFound": "the machine image is gone: set the variable `image_parameter` in infra/aws and run "
    "`terraform apply`",
    "InvalidSnapshot.NotFound": _GONE,
    "InvalidVolume.NotFound": _GONE,
    "NoSuchBucket": "the bucket is gone: run `terraform apply` in infra/aws",
}
"""What the user can do, by AWS's error code."""

_DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Translate boto3's errors.

    Args:
        what: was tried, for messages.

    Raises:
        UserError: something that the user can fix, with a hint.
        WorldError: anything else.
    """
    try:
        yield
    except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError):
        raise UserError(_WITHOUT_CREDENTIALS) from None
    except botocore.exceptions.ProfileNotFound as error:
        raise UserError(f"{error}: check AWS_PROFILE") from None
    except botocore.exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in HINTS:
            raise UserError(f"{what}: {HINTS[code]} ({code})") from None
        if code in _DENIED:
            raise UserError(f"{what}: the credentials lack the permission for it ({error})") from None
        raise WorldError(f"{what}: AWS answers {code}: {error.response.get('Error', {}).get('Message', '')}") from error
    except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError) as error:
        raise WorldError(f"{what}: AWS does not answer ({error}): check --region and the network") from error


class Planned:
    """The answer to a call that was only printed: any field of it is a name in angle brackets."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, key: str | int) -> "Planned":
        return self if isinstance(key, int) else Planned(key)

    def __str__(self) -> str:
        return f"<{self._name}>"


@dataclass
class Account:
    """A deployment of `infra/aws` in one region.

    Args:
        name: the deployment's, as Terraform's variable `name`.
        region: where it is.
        dry_run: called with each call that would change something, instead of making it; None makes it.
    """

    name: str
    region: str
    dry_run: Callable[[str], None] | None = None
    _clients: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, region: str | None, dry_run: Callable[[str], None] | None = None) -> "Account":
        """The deployment of a name, in the region that was typed or that boto3's chain has.

        Raises:
            UserError: no region is known, or there is none of that name.
        """
        with explained("reading the AWS configuration"):
            session = boto3.session.Session()
            region = region or session.region_name
            known = session.get_available_regions("ec2")
        if region is None:
            raise UserError("there is no AWS region: pass --region, or set AWS_DEFAULT_REGION")
        if region not in known:
            near = difflib.get_close_matches(region, known, n=1)
            raise UserError(f"--region {region}: there is no such region" + (f"; is {near[0]} meant?" if near else ""))
        return cls(name, region, dry_run)

    @property
    def log_group(self) -> str:
        """The name of the log group."""
        return f"/imagenet-mds/{self.name}"

    @property
    def hook(self) -> str:
        """The name of the hook that lets an instance finish before it is terminated."""
        return f"{self.name}-terminating"

    def empty_group(self) -> None:
        """Have the group end its instance, which saves first, and start none.

        Raises:
            UserError, WorldError: see `explained`.
        """
        self.change("autoscaling", "set_desired_capacity", AutoScalingGroupName=self.name, DesiredCapacity=0)

    def client(self, service: str) -> Any:
        """A client of a service, made once. Calls may be made from several threads."""
        if service not in self._clients:
            self._clients[service] = boto3.session.Session().client(
                service,
                region_name=self.region,
                config=Config(
                    retries={"mode": "adaptive", "max_attempts": retry.REQUEST_RETRIES},
                    connect_timeout=retry.CONNECT_TIMEOUT_SECONDS,
                    read_timeout=retry.READ_TIMEOUT_SECONDS,
                ),
            )
        return self._clients[service]

    def ask(self, service: str, operation: str, **parameters: Any) -> Any:
        """Make a call that changes nothing.

        Raises:
            UserError, WorldError: see `explained`.
        """
        with explained(f"{service} {operation}"):
            return getattr(self.client(service), operation)(**parameters)

    def pages(self, service: str, operation: str, key: str, **parameters: Any) -> list[Any]:
        """All items of a call that answers in pages.

        Raises:
            UserError, WorldError: see `explained`.
        """
        with explained(f"{service} {operation}"):
            pages = self.client(service).get_paginator(operation).paginate(**parameters)
            return [item for page in pages for item in page.get(key, [])]

    def change(self, service: str, operation: str, **parameters: Any) -> Any:
        """Make a call that changes something, or print it in a dry run.

        Raises:
            UserError, WorldError: see `explained`.
        """
        if self.dry_run:
            self.dry_run(f"{service} {operation} {json.dumps(parameters, default=str)}")
            return Planned(operation)
        return self.ask(service, operation, **parameters)

    def tags(self, run: str, name: str | None = None) -> list[dict[str, str]]:
        """The tags of something that is made for a run or volume."""
        found = {TAG: self.name, RUN_TAG: run, "Name": name or f"{self.name} {run}"}
        return [{"Key": key, "Value": value} for key, value in found.items()]

    def filters(self, **more: str) -> list[dict[str, Any]]:
        """EC2 filters for what belongs to this deployment."""
        return [{"Name": f"tag:{TAG}", "Values": [self.name]}] + [
            {"Name": name.replace("_", "-"), "Values": [value]} for name, value in more.items()
        ]


def tag_of(item: dict[str, Any], key: str) -> str | None:
    """The value of a tag of what EC2 or Auto Scaling describes, None if it has none."""
    return next((tag["Value"] for tag in item.get("Tags", []) if tag["Key"] == key), None)
