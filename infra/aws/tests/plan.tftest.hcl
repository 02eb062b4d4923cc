# What is planned, with a mocked provider: no account, no network. `terraform test` in infra/aws runs it.

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = {
      account_id = "123456789012"
    }
  }

  mock_data "aws_partition" {
    defaults = {
      partition = "aws"
    }
  }

  mock_data "aws_availability_zones" {
    defaults = {
      names = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
    }
  }

  mock_resource "aws_s3_bucket" {
    defaults = {
      arn = "arn:aws:s3:::trainers-123456789012-eu-west-1"
    }
  }

  mock_resource "aws_iam_instance_profile" {
    defaults = {
      arn = "arn:aws:iam::123456789012:instance-profile/trainers-instance"
    }
  }

  mock_resource "aws_autoscaling_group" {
    defaults = {
      arn = "arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:1b2c:autoScalingGroupName/trainers"
    }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = {
      arn = "arn:aws:logs:eu-west-1:123456789012:log-group:/imagenet-mds/trainers"
    }
  }
}

variables {
  name   = "trainers"
  region = "eu-west-1"
}

run "everything_has_the_name" {
  command = plan

  assert {
    condition     = aws_s3_bucket.this.bucket == "trainers-123456789012-eu-west-1"
    error_message = "The bucket is not named after group, account and region."
  }

  assert {
    condition     = aws_autoscaling_group.this.name == "trainers" && aws_launch_template.this.name == "trainers" && aws_iam_instance_profile.instance.name == "trainers-instance"
    error_message = "A name differs from what imagenet-mds aws looks for."
  }

  assert {
    condition     = aws_autoscaling_lifecycle_hook.terminating.name == "trainers-terminating" && aws_cloudwatch_log_group.this.name == "/imagenet-mds/trainers"
    error_message = "A name differs from what imagenet-mds aws looks for."
  }
}

run "the_group_is_empty_and_spot" {
  command = plan

  assert {
    condition     = aws_autoscaling_group.this.min_size == 0 && aws_autoscaling_group.this.max_size == 1 && aws_autoscaling_group.this.desired_capacity == 0
    error_message = "The group must be of size 0 to 1, and empty at first."
  }

  assert {
    condition     = aws_autoscaling_group.this.capacity_rebalance && contains(aws_autoscaling_group.this.suspended_processes, "AZRebalance")
    error_message = "Capacity rebalancing must be on, and the rebalancing of zones off."
  }

  assert {
    condition     = aws_autoscaling_group.this.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0
    error_message = "The group must start spot instances alone."
  }

  assert {
    condition     = [for override in aws_autoscaling_group.this.mixed_instances_policy[0].launch_template[0].override : override.instance_type] == ["g4dn.12xlarge", "g5.12xlarge", "g6.12xlarge"]
    error_message = "The group does not have the default instance types."
  }
}

run "an_instance_is_closed" {
  command = plan

  assert {
    condition     = aws_launch_template.this.metadata_options[0].http_tokens == "required" && aws_launch_template.this.metadata_options[0].http_put_response_hop_limit == 2
    error_message = "Instance metadata must ask for a token, and answer containers."
  }

  assert {
    condition     = alltrue([for rule in [aws_vpc_security_group_egress_rule.http, aws_vpc_security_group_egress_rule.https] : contains([80, 443], rule.from_port) && rule.from_port == rule.to_port])
    error_message = "Only HTTP and HTTPS may go out."
  }

  assert {
    condition     = tobool(aws_launch_template.this.block_device_mappings[0].ebs[0].encrypted) && aws_launch_template.this.block_device_mappings[0].ebs[0].volume_type == "gp3"
    error_message = "The root volume must be gp3 and encrypted."
  }
}

run "each_zone_has_a_subnet" {
  command = plan

  assert {
    condition     = join(" ", keys(aws_subnet.public)) == "eu-west-1a eu-west-1b eu-west-1c"
    error_message = "A zone of the region has no subnet."
  }

  assert {
    condition     = length(distinct([for subnet in aws_subnet.public : subnet.cidr_block])) == 3
    error_message = "Two subnets overlap."
  }
}

run "zones_can_be_chosen" {
  command = plan

  variables {
    zones = ["eu-west-1c"]
  }

  assert {
    condition     = join(" ", keys(aws_subnet.public)) == "eu-west-1c"
    error_message = "The zones are not those that were named."
  }
}

run "no_policy_grants_a_star_on_what_has_a_name" {
  command = apply

  variables {
    data_buckets = ["datasets"]
  }

  assert {
    condition = alltrue(flatten([
      for statement in jsondecode(aws_iam_role_policy.instance.policy).Statement : [
        for action in statement.Action :
        can(regex("^(autoscaling|ec2):Describe[A-Za-z]+$|^ssmmessages:[A-Za-z]+$", action)) if contains(statement.Resource, "*")
      ]
    ]))
    error_message = "A statement has * as its resource for an action whose resource can be named."
  }

  assert {
    condition = alltrue(flatten([
      for statement in jsondecode(aws_iam_role_policy.instance.policy).Statement : [
        for action in statement.Action : !strcontains(action, "*")
      ]
    ]))
    error_message = "A statement allows more actions than it names."
  }

  assert {
    condition = alltrue(flatten([
      for statement in jsondecode(aws_iam_role_policy.instance.policy).Statement : [
        for action in statement.Action : action == "s3:GetObject" || action == "s3:ListBucket" || action == "s3:GetBucketLocation"
      ] if length([for resource in statement.Resource : resource if strcontains(resource, ":::datasets")]) > 0
    ]))
    error_message = "A bucket of data may only be read."
  }
}

run "no_data_buckets_no_statements" {
  command = apply

  assert {
    condition     = length([for statement in jsondecode(aws_iam_role_policy.instance.policy).Statement : statement if startswith(statement.Sid, "Data")]) == 0
    error_message = "There is a statement for no bucket."
  }
}

run "session_manager_can_be_left_out" {
  command = apply

  variables {
    ssm = false
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.instance.policy, "ssm")
    error_message = "Session Manager is allowed although ssm is false."
  }
}

run "a_zone_of_another_region_is_refused" {
  command = plan

  variables {
    zones = ["us-east-1a"]
  }

  expect_failures = [aws_subnet.public]
}

run "values_that_cannot_work_are_refused" {
  command = plan

  variables {
    name                       = "Trainers"
    region                     = "eu-west-1a"
    zones                      = []
    instance_types             = []
    image_parameter            = "ami-0123456789abcdef0"
    root_gb                    = 8
    volume_initialization_rate = 50
    checkpoint_days            = 0
    log_days                   = 31
    data_buckets               = ["s3://datasets"]
  }

  expect_failures = [
    var.name, var.region, var.zones, var.instance_types, var.image_parameter, var.root_gb, var.volume_initialization_rate,
    var.checkpoint_days, var.log_days, var.data_buckets,
  ]
}
