"""What an instance is started for: a record in the bucket, user data, and the group's next instance.

    code/<sha256>.tar.gz                   the program; see `code.py`
    weights/<xxh64>-<name>                 what a run starts from, if that was a file of the user's
    launches/<run>.json                    what its instances run, with which budget
    launches/<run>/<instance id>.json      an instance: type, zone, price, since when and until when; see `ledger.py`
    launches/<run>.end.json                how it ended, if it has
    runs/<run>/                            the run itself; docs/interruption.md

The order of the steps makes a crash between two of them harmless: until the group's size is 1 there is nothing that
costs money but bytes, and `leftovers.py` finds those.
"""

import base64
import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.resources import resource_folder
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, file_xxh64
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_infra.account import RUN_TAG, TAG
from imagenet_mds_infra.code import pack
from imagenet_mds_infra.stack import Stack

FORMAT = 1

USER_DATA_BYTES = 16_384
"""The most that EC2 takes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

DataVolume = Literal["none", "read-only", "fill"]
"""What is done with a second volume: there is none, it holds the dataset, or the dataset is to be written onto it."""

BASE_VERSION = "$Default"
"""The version of the launch template that Terraform made."""

RATE_TAG = "imagenet-mds-volume-initialization-rate"
"""The tag of the launch template that has Terraform's variable: MiB/s at which a volume is filled from its snapshot."""

_BY_PARAMETER = "resolve:ssm:"

DATA_DEVICE = "/dev/sdf"


@dataclass(frozen=True)
class Launch:
    """What an instance runs.

    run: the name of the run, or of the volume that is filled.
    arguments: of `imagenet-mds`.
    spot: whether the instance may be taken away.
    prices: dollars per hour by instance type, or by `type zone`, when it was launched.
    max_dollars, max_hours: over all of its instances; None for no limit.
    first: commands before it, each a list of arguments; one that fails ends the launch.
    in_group: whether the auto scaling group starts its instances; otherwise there is one, which ends itself.
    images_per_epoch: number of training images of an epoch, from which `status` estimates the time left; None for a
        launch that does not train.
    """

    run: str
    arguments: list[str]
    spot: bool
    prices: dict[str, float]
    max_dollars: float | None = None
    max_hours: float | None = None
    first: tuple[list[str], ...] = ()
    in_group: bool = True
    images_per_epoch: int | None = None
    format: int = FORMAT

    @classmethod
    def read(cls, storage: Storage, run: str) -> "Launch":
        """Read a record.

        Raises:
            UserError: there is no such launch, or a later version of the program wrote it.
            OSError: the storage refuses.
        """
        try:
            value = json.loads(storage.read(f"{run}.json"))
        except FileNotFoundError:
            raise UserError(f"nothing was launched as {run!r}: `imagenet-mds aws status` lists what was") from None
        except ValueError:
            raise WorldError(f"{storage.location}/{run}.json is no record of a launch") from None
        if value.get("format", 0) > FORMAT:
            raise UserError(f"{storage.location}/{run}.json was written by a later version of imagenet-mds: use that")
        value["first"] = tuple(value["first"])
        return cls(**value)

    def price(self, instance_type: str, zone: str) -> float | None:
        """Dollars per hour of an instance, None if its type is not in the record."""
        return self.prices.get(f"{instance_type} {zone}", self.prices.get(instance_type))


def launches(bucket: str) -> S3Storage:
    """The storage of the records."""
    return S3Storage(bucket, "launches")


def launched(bucket: str) -> list[str]:
    """The names of all launches, sorted.

    Raises:
        UserError, OSError: the bucket refuses.
    """
    names = [name.removesuffix(".json") for name in launches(bucket).list_names() if name.endswith(".json")]
    return sorted(name for name in names if not name.endswith(".end"))


def refuse_name(option: str, name: str) -> None:
    """Refuse a name that tags, keys and folders cannot have.

    Raises:
        UserError: it is one.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{option} {name!r}: pass up to 63 letters, digits, dots, dashes and underscores")


def upload_code(stack: Stack) -> str:
    """Put the program into the bucket, unless it is there; return its sha256.

    Raises:
        UserError, WorldError: it cannot be written.
        OSError: likewise.
    """
    packed, digest = pack()
    if stack.account.dry_run:
        stack.account.dry_run(f"s3 put_object code/{digest}.tar.gz ({len(packed):,} bytes)")
        return digest
    storage = S3Storage(stack.bucket, "code")
    if storage.size_bytes(f"{digest}.tar.gz") != len(packed):
        storage.write(f"{digest}.tar.gz", packed)
    return digest


def upload_weights(stack: Stack, file: Path) -> str:
    """Put a file of weights into the bucket, unless it is there; return its address.

    Raises:
        UserError, WorldError: it cannot be written.
        OSError: likewise, or it cannot be read.
    """
    storage, name = S3Storage(stack.bucket, "weights"), f"{file_xxh64(file)}-{file.name}"
    size_bytes = file.stat().st_size
    if stack.account.dry_run:
        stack.account.dry_run(f"s3 put_object weights/{name} ({size_bytes:,} bytes)")
    elif storage.size_bytes(name) != size_bytes:
        storage.write(name, file.read_bytes())
    return f"{storage.location}/{name}"


def user_data(stack: Stack, run: str, digest: str, data: DataVolume) -> str:
    """The script that an instance runs at its first boot, in base64. It holds no credentials: the instance has a role.

    Raises:
        WorldError: it is longer than EC2 takes.
    """
    variables = {
        "AWS_REGION": stack.account.region,
        "IMAGENET_MDS_NAME": stack.account.name,
        "IMAGENET_MDS_BUCKET": stack.bucket,
        "IMAGENET_MDS_LAUNCH": f"launches/{run}.json",
        "IMAGENET_MDS_CODE": f"code/{digest}.tar.gz",
        "IMAGENET_MDS_CODE_SHA256": digest,
        "IMAGENET_MDS_DATA": data,
    }
    lines = ["#!/bin/bash", *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())]
    script = "\n".join(lines) + "\n" + (resource_folder("infra/aws") / "setup.sh").read_text(encoding="utf-8")
    encoded = script.encode()
    if len(encoded) > USER_DATA_BYTES:
        raise WorldError(f"the user data has {len(encoded):,} bytes and EC2 takes {USER_DATA_BYTES:,}")
    return base64.b64encode(encoded).decode()


def template_data(stack: Stack, run: str, user_data: str, device: dict[str, Any] | None = None) -> dict[str, Any]:
    """What instances of a launch start from: Terraform's launch template with user data, tags and a second volume.

    EC2 can take over an older version by itself, but then a list such as that of the volumes replaces the older one.

    Args:
        stack: the deployment.
        run: see `Launch`.
        user_data: in base64.
        device: the `Ebs` of the second volume; None for none.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    account = stack.account
    found: dict[str, Any] = dict(base_version(stack)["LaunchTemplateData"])
    # A group with several types may not take the name of a parameter.
    if (image := found.get("ImageId", "")).startswith(_BY_PARAMETER):
        name = image.removeprefix(_BY_PARAMETER)
        found["ImageId"] = account.ask("ssm", "get_parameter", Name=name)["Parameter"]["Value"]
    tags = account.tags(run)
    found["UserData"] = user_data
    found["TagSpecifications"] = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
    if device:
        found["BlockDeviceMappings"] = [
            *found.get("BlockDeviceMappings", []),
            {"DeviceName": DATA_DEVICE, "Ebs": device},
        ]
    return found


def base_version(stack: Stack) -> dict[str, Any]:
    """The version of the launch template that Terraform made, as EC2 describes it.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    (base,) = stack.account.ask(
        "ec2", "describe_launch_template_versions", LaunchTemplateName=stack.account.name, Versions=[BASE_VERSION]
    )["LaunchTemplateVersions"]
    found: dict[str, Any] = base
    return found


def create_version(stack: Stack, run: str, data: dict[str, Any]) -> str:
    """Make a version of the launch template; return its number.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    made = stack.account.change(
        "ec2",
        "create_launch_template_version",
        LaunchTemplateName=stack.account.name,
        VersionDescription=run,
        LaunchTemplateData=data,
    )
    return str(made["LaunchTemplateVersion"]["VersionNumber"])


def record(stack: Stack, launch: Launch) -> None:
    """Write the record of a launch, in place of that of an earlier one of this run.

    Raises:
        UserError, OSError: the bucket refuses.
    """
    if stack.account.dry_run:
        stack.account.dry_run(f"s3 put_object launches/{launch.run}.json {json.dumps(asdict(launch))}")
        return
    storage = launches(stack.bucket)
    storage.delete(f"{launch.run}.end.json")
    storage.write(f"{launch.run}.json", json_bytes(asdict(launch)))


def start_group(stack: Stack, launch: Launch, version: str, types: tuple[str, ...]) -> None:
    """Have the group start an instance for a launch.

    Args:
        stack: the deployment.
        launch: what it runs.
        version: of the launch template.
        types: that it may be.

    Raises:
        UserError, WorldError: AWS refuses.
    """
    account = stack.account
    account.change(
        "autoscaling",
        "create_or_update_tags",
        Tags=[
            {
                "ResourceId": account.name,
                "ResourceType": "auto-scaling-group",
                "Key": key,
                "Value": value,
                "PropagateAtLaunch": True,
            }
            for key, value in ((TAG, account.name), (RUN_TAG, launch.run))
        ],
    )
    account.change(
        "autoscaling",
        "update_auto_scaling_group",
        AutoScalingGroupName=account.name,
        DesiredCapacity=1,
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateName": account.name, "Version": version},
                "Overrides": [{"InstanceType": name} for name in types],
            },
            "InstancesDistribution": {
                "OnDemandBaseCapacity": 0,
                "OnDemandPercentageAboveBaseCapacity": 0 if launch.spot else 100,
                "SpotAllocationStrategy": "price-capacity-optimized",
            },
        },
    )


def launch(
    stack: Stack, launch: Launch, data: DataVolume, device: dict[str, Any] | None, types: tuple[str, ...]
) -> None:
    """Start a launch on the group: code, record, template version, group, in this order.

    Raises:
        UserError: another launch has the group, or AWS refuses something that the user can change.
        WorldError, OSError: AWS refuses.
    """
    if stack.is_busy:
        raise UserError(
            f"the group {stack.account.name} has an instance already: wait for its end (`imagenet-mds aws status`) or "
            f"stop it (`imagenet-mds aws stop`)"
        )
    digest = upload_code(stack)
    record(stack, launch)
    version = create_version(
        stack, launch.run, template_data(stack, launch.run, user_data(stack, launch.run, digest, data), device)
    )
    start_group(stack, launch, version, types)
