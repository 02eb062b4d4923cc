"""moto's server, with three of its defects corrected.

- A group whose launch template's second or later version has user data cannot start an instance: moto asserts a type
  that it gives to the first version's alone.
- The instances of a group have the type of its launch template, and none of its overrides.
- It does not know CompleteLifecycleAction. Its groups terminate instances at once, so there is nothing to complete.
"""

from typing import Any

from moto.autoscaling.models import FakeAutoScalingGroup
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import EmptyResult
from moto.ec2.models.launch_templates import LaunchTemplateVersion
from moto.ec2.utils import parse_user_data
from moto.server import main

LaunchTemplateVersion.user_data = property(lambda self: parse_user_data(self.data.get("UserData")))


def _type_of(self: Any) -> str:
    overrides = (self.mixed_instances_policy or {}).get("LaunchTemplate", {}).get("Overrides", [])
    return str(overrides[0]["InstanceType"]) if overrides else ""


FakeAutoScalingGroup.instance_type = property(_type_of)
AutoScalingResponse.complete_lifecycle_action = lambda self: EmptyResult()

if __name__ == "__main__":
    main()
