"""infra/aws without an account: validated, planned with a mocked provider, and applied to moto's server.

What the API says then is compared through boto3. The tests of an applied configuration share it, and the last one of
them removes it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.infra.terraform import SOURCE, Terraform, prepare_terraform
from tests.support.s3_server import CREDENTIALS, s3_server

pytestmark = pytest.mark.slow

REGION = "us-east-1"
NAME = "imagenet-mds"
BUCKET = f"{NAME}-123456789012-{REGION}"

WITHOUT_NAMES = {
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "ec2:DescribeInstances",
    "ec2:DescribeSpotPriceHistory",
    "ec2:DescribeVolumes",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}
"""Actions of the role for which AWS lets nobody name a resource, by its Service Authorization Reference."""

INVENTED_BY_MOTO = {
    "aws_autoscaling_lifecycle_hook.terminating": {"notification_target_arn", "role_arn"},
    "aws_launch_template.this": {"tag_specifications", "default_version", "latest_version"},
}
"""What moto adds of its own, so that Terraform wants it away: a queue and a role for the hook, and the tags of the
launch template among those of its instances."""

A_FALSE_TEST = """mock_provider "aws" {}

variables {
  region = "us-east-1"
  zones  = ["us-east-1a"]
}

run "false" {
  command = plan

  assert {
    condition     = aws_autoscaling_group.this.max_size == 2
    error_message = "one, not two"
  }
}
"""


@dataclass(frozen=True)
class Account:
    """An account in moto's server, to which the configuration is applied."""

    terraform: Terraform
    endpoint: str

    def client(self, service: str) -> Any:
        """A client of boto3."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def group(self) -> dict[str, Any]:
        """The auto scaling group."""
        (group,) = self.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[NAME])[
            "AutoScalingGroups"
        ]
        assert isinstance(group, dict)
        return group

    def template(self, version: str = "$Default") -> dict[str, Any]:
        """The data of a version of the launch template."""
        versions = self.client("ec2").describe_launch_template_versions(LaunchTemplateName=NAME, Versions=[version])
        data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]
        assert isinstance(data, dict)
        return data

    def tagged(self, kind: str) -> list[dict[str, Any]]:
        """What EC2 has of a kind, such as vpcs, with our tag."""
        answer = getattr(self.client("ec2"), f"describe_{kind}")(
            Filters=[{"Name": "tag:imagenet-mds", "Values": [NAME]}]
        )
        (found,) = (value for value in answer.values() if isinstance(value, list))
        return list(found)


@pytest.fixture(scope="module")
def account(module_folder: Path) -> Iterator[Account]:
    """An account with the configuration applied."""
    variables = {"TF_VAR_region": REGION, "TF_VAR_data_buckets": '["datasets"]'}
    (module_folder / "applied").mkdir()
    with s3_server("tests.infra.aws_server") as port:
        endpoint = f"http://127.0.0.1:{port}"
        more = CREDENTIALS | variables | {"AWS_ENDPOINT_URL": endpoint}
        terraform = prepare_terraform(module_folder / "applied", **more)
        terraform.run("apply", "-auto-approve", "-input=false")
        yield Account(terraform, endpoint)


@pytest.fixture(scope="module")
def terraform(module_folder: Path) -> Terraform:
    """The configuration without an account."""
    (module_folder / "alone").mkdir()
    return prepare_terraform(module_folder / "alone")


def test_the_configuration_is_valid_and_formatted(terraform: Terraform) -> None:
    terraform.run("validate")
    terraform.run("fmt", "-check", "-recursive", "-diff")


def test_what_is_planned_with_a_mocked_provider(terraform: Terraform) -> None:
    # The run that must fail tells that the others are looked at.
    (terraform.folder / "tests" / "false.tftest.hcl").write_text(A_FALSE_TEST, encoding="utf-8")
    out = terraform.run("test", status=1)
    count = (SOURCE / "tests" / "plan.tftest.hcl").read_text(encoding="utf-8").count('\nrun "')
    assert f"{count} passed, 1 failed" in out, out
    assert "one, not two" in out


def test_the_outputs_are_what_the_command_asks_for(account: Account) -> None:
    outputs = account.terraform.outputs()
    subnets = outputs.pop("subnets")
    assert outputs == {
        "name": NAME,
        "region": REGION,
        "bucket": BUCKET,
        "group": NAME,
        "launch_template": NAME,
        "log_group": f"/imagenet-mds/{NAME}",
    }
    zones = account.client("ec2").describe_availability_zones()["AvailabilityZones"]
    assert sorted(subnets) == sorted(zone["ZoneName"] for zone in zones)


def test_the_bucket_is_closed_and_encrypted(account: Account) -> None:
    s3 = account.client("s3")
    block = s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert block == dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
    )
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (owner,) = s3.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"]
    assert owner["ObjectOwnership"] == "BucketOwnerEnforced"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


def test_half_done_uploads_and_old_checkpoints_go_and_logs_stay(account: Account) -> None:
    rules = account.client("s3").get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    by_name = {rule["ID"]: rule for rule in rules}
    assert all(rule["Status"] == "Enabled" for rule in rules)
    assert by_name["unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert by_name["unfinished-uploads"]["Filter"].get("Prefix", "") == ""
    checkpoints = by_name["checkpoints"]
    assert checkpoints["Expiration"]["Days"] == 90
    # A log of a long run has some MB, a checkpoint of the smallest network 40.
    assert checkpoints["Filter"]["And"] == {"Prefix": "runs/", "ObjectSizeGreaterThan": 16 << 20}
    assert by_name["code"]["Filter"] == {"Prefix": "code/"}
    expiring = {rule["ID"] for rule in rules if "Expiration" in rule}
    assert expiring == {"checkpoints", "code"}, "the dataset and the launches must stay"


def test_the_role_names_all_that_it_may_touch(account: Account) -> None:
    iam = account.client("iam")
    assert iam.list_role_policies(RoleName=f"{NAME}-instance")["PolicyNames"] == ["instance"]
    assert iam.list_attached_role_policies(RoleName=f"{NAME}-instance")["AttachedPolicies"] == []
    policy = iam.get_role_policy(RoleName=f"{NAME}-instance", PolicyName="instance")["PolicyDocument"]
    allowed: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert "*" not in action
            allowed.setdefault(action, set()).update(statement["Resource"])
    assert {action for action, resources in allowed.items() if "*" in resources} == WITHOUT_NAMES
    group = account.group()["AutoScalingGroupARN"]
    for action in ("CompleteLifecycleAction", "RecordLifecycleActionHeartbeat", "SetDesiredCapacity"):
        assert allowed[f"autoscaling:{action}"] == {group}
    logs = f"arn:aws:logs:{REGION}:123456789012:log-group:/imagenet-mds/{NAME}"
    assert allowed["logs:CreateLogStream"] == allowed["logs:PutLogEvents"] == {logs, f"{logs}:log-stream:*"}
    assert allowed["s3:GetObject"] == {f"arn:aws:s3:::{BUCKET}/*", "arn:aws:s3:::datasets/*"}
    assert allowed["s3:PutObject"] == allowed["s3:DeleteObject"] == {f"arn:aws:s3:::{BUCKET}/*"}
    (profile,) = iam.list_instance_profiles()["InstanceProfiles"]
    assert [role["RoleName"] for role in profile["Roles"]] == [f"{NAME}-instance"]


def test_nothing_can_connect_to_an_instance(account: Account) -> None:
    (group,) = account.tagged("security_groups")
    assert group["IpPermissions"] == []
    assert sorted((rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in group["IpPermissionsEgress"]) == [
        (80, 80, "tcp"),
        (443, 443, "tcp"),
    ]
    assert account.template()["SecurityGroupIds"] == [group["GroupId"]]


def test_each_zone_has_a_public_subnet_and_s3_its_own_way(account: Account) -> None:
    subnets = account.tagged("subnets")
    assert all(subnet["MapPublicIpOnLaunch"] for subnet in subnets)
    assert {subnet["SubnetId"] for subnet in subnets} == set(account.terraform.outputs()["subnets"].values())
    assert set(account.group()["VPCZoneIdentifier"].split(",")) == {subnet["SubnetId"] for subnet in subnets}
    (endpoint,) = account.tagged("vpc_endpoints")
    assert (endpoint["VpcEndpointType"], endpoint["ServiceName"]) == ("Gateway", f"com.amazonaws.{REGION}.s3")
    (table,) = account.tagged("route_tables")
    assert endpoint["RouteTableIds"] == [table["RouteTableId"]]
    assert {link["SubnetId"] for link in table["Associations"]} == {subnet["SubnetId"] for subnet in subnets}
    (gateway,) = account.tagged("internet_gateways")
    assert gateway["InternetGatewayId"] in {route.get("GatewayId") for route in table["Routes"]}


def test_an_instance_is_started_as_the_template_says(account: Account) -> None:
    template = account.template()
    options = template["MetadataOptions"]
    assert options["HttpTokens"] == "required"
    assert options["HttpPutResponseHopLimit"] == 2
    assert options["InstanceMetadataTags"] == "enabled"
    (root,) = template["BlockDeviceMappings"]
    assert root["DeviceName"] == "/dev/sda1"
    expected = {"VolumeType": "gp3", "VolumeSize": 100, "Encrypted": True, "DeleteOnTermination": True}
    assert {name: root["Ebs"][name] for name in expected} == expected
    assert template["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert template["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu")
    assert template["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{NAME}-instance")
    assert template["Monitoring"] == {"Enabled": False}
    assert not template.get("UserData")
    tags = {tagged["ResourceType"]: tagged["Tags"] for tagged in template["TagSpecifications"]}
    for kind in ("instance", "volume"):
        assert {"Key": "imagenet-mds", "Value": NAME} in tags[kind]
    (described,) = account.client("ec2").describe_launch_templates(LaunchTemplateNames=[NAME])["LaunchTemplates"]
    assert {"Key": "imagenet-mds-volume-initialization-rate", "Value": "300"} in described["Tags"]


def test_the_group_is_empty_spot_and_in_all_zones(account: Account) -> None:
    group = account.group()
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 1, 0)
    assert group["CapacityRebalance"] is True
    assert group["HealthCheckType"] == "EC2"
    assert [process["ProcessName"] for process in group["SuspendedProcesses"]] == ["AZRebalance"]
    policy = group["MixedInstancesPolicy"]
    distribution = policy["InstancesDistribution"]
    assert distribution["OnDemandBaseCapacity"] == distribution["OnDemandPercentageAboveBaseCapacity"] == 0
    assert distribution["SpotAllocationStrategy"] == "price-capacity-optimized"
    types = [override["InstanceType"] for override in policy["LaunchTemplate"]["Overrides"]]
    assert types == ["g4dn.12xlarge", "g5.12xlarge", "g6.12xlarge"]
    tags = {tag["Key"]: (tag["Value"], tag["PropagateAtLaunch"]) for tag in group["Tags"]}
    assert tags["imagenet-mds"] == (NAME, True)
    (hook,) = account.client("autoscaling").describe_lifecycle_hooks(AutoScalingGroupName=NAME)["LifecycleHooks"]
    assert hook["LifecycleHookName"] == f"{NAME}-terminating"
    assert hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_TERMINATING"
    assert (hook["HeartbeatTimeout"], hook["DefaultResult"]) == (300, "CONTINUE")


def test_the_logs_are_kept_for_a_month(account: Account) -> None:
    (group,) = account.client("logs").describe_log_groups()["logGroups"]
    assert (group["logGroupName"], group["retentionInDays"]) == (f"/imagenet-mds/{NAME}", 30)


def test_a_second_apply_changes_nothing(account: Account) -> None:
    assert account.terraform.changes() == INVENTED_BY_MOTO


def test_an_apply_in_the_middle_of_a_run_leaves_it_alone(account: Account) -> None:
    """With what `imagenet-mds aws launch` does: a version of the template, other types, a tag, size 1.

    Without user data, because moto starts no instance from a version with it.
    """
    ec2, scaling = account.client("ec2"), account.client("autoscaling")
    data = {"ImageId": "ami-12c6146b"}
    made = ec2.create_launch_template_version(LaunchTemplateName=NAME, SourceVersion="1", LaunchTemplateData=data)
    version = str(made["LaunchTemplateVersion"]["VersionNumber"])
    specification = {"LaunchTemplateName": NAME, "Version": version}
    policy = {
        "LaunchTemplate": {
            "LaunchTemplateSpecification": specification,
            "Overrides": [{"InstanceType": "g4dn.xlarge"}],
        },
        "InstancesDistribution": {"OnDemandPercentageAboveBaseCapacity": 100},
    }
    scaling.update_auto_scaling_group(AutoScalingGroupName=NAME, MixedInstancesPolicy=policy, DesiredCapacity=1)
    tag = {"ResourceId": NAME, "ResourceType": "auto-scaling-group", "Key": "run", "Value": "phase3"}
    scaling.create_or_update_tags(Tags=[tag | {"PropagateAtLaunch": True}])
    account.terraform.run("apply", "-auto-approve", "-input=false")
    group = account.group()
    assert group["DesiredCapacity"] == 1
    assert len(group["Instances"]) == 1
    used = group["MixedInstancesPolicy"]["LaunchTemplate"]
    assert used["LaunchTemplateSpecification"]["Version"] == version
    assert used["Overrides"] == [{"InstanceType": "g4dn.xlarge"}]
    assert "run" in {tag["Key"] for tag in group["Tags"]}
    assert account.template(version)["ImageId"] == data["ImageId"]
    assert account.template()["ImageId"].startswith("resolve:ssm:"), "the default version must stay Terraform's"


def test_a_destroy_keeps_the_bucket_as_long_as_something_is_in_it_and_then_leaves_nothing(account: Account) -> None:
    s3, ec2 = account.client("s3"), account.client("ec2")
    # It denies what does not come over TLS, as these requests do.
    s3.delete_bucket_policy(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="runs/phase3/result.json", Body=b"{}")
    assert "BucketNotEmpty" in account.terraform.run("destroy", "-auto-approve", "-input=false", status=1)
    assert s3.get_object(Bucket=BUCKET, Key="runs/phase3/result.json")["Body"].read() == b"{}"
    s3.delete_object(Bucket=BUCKET, Key="runs/phase3/result.json")
    account.terraform.run("destroy", "-auto-approve", "-input=false")
    assert s3.list_buckets()["Buckets"] == []
    assert account.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert ec2.describe_launch_templates()["LaunchTemplates"] == []
    for kind in ("vpcs", "subnets", "security_groups", "internet_gateways", "route_tables"):
        assert account.tagged(kind) == [], kind
    assert {point["State"] for point in ec2.describe_vpc_endpoints()["VpcEndpoints"]} <= {"deleted"}
    reservations = ec2.describe_instances()["Reservations"]
    assert {one["State"]["Name"] for found in reservations for one in found["Instances"]} <= {"terminated"}
    assert account.client("iam").list_roles()["Roles"] == []
    assert account.client("iam").list_instance_profiles()["InstanceProfiles"] == []
    assert account.client("logs").describe_log_groups()["logGroups"] == []
