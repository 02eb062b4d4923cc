"""What Terraform made in the account, found by the deployment's name."""

from dataclasses import dataclass
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds_infra.account import Account


@dataclass(frozen=True)
class Stack:
    """The deployment's own resources.

    group: the auto scaling group as AWS describes it.
    bucket: for code, launches, runs and volumes.
    """

    account: Account
    group: dict[str, Any]
    bucket: str

    @classmethod
    def find(cls, account: Account) -> "Stack":
        """Find them.

        Raises:
            UserError: nothing is deployed under this name in this region.
            WorldError: AWS does not answer.
        """
        groups = account.ask("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[account.name])
        if not groups["AutoScalingGroups"]:
            raise UserError(
                f"there is no deployment {account.name!r} in {account.region}: run `terraform apply` in infra/aws "
                f"(docs/aws-account.md), or pass --region or --name"
            )
        number = account.ask("sts", "get_caller_identity")["Account"]
        return cls(account, groups["AutoScalingGroups"][0], f"{account.name}-{number}-{account.region}")

    @property
    def is_busy(self) -> bool:
        """Whether the group has an instance, or is about to."""
        return bool(self.group["DesiredCapacity"] or self.group["Instances"])

    def zones(self) -> list[str]:
        """The availability zones that the group may use."""
        found: list[str] = self.group["AvailabilityZones"]
        return sorted(found)
