resource "aws_cloudwatch_log_group" "this" {
  name              = "/imagenet-mds/${var.name}"
  retention_in_days = var.log_days
}

# The template has no user data. `imagenet-mds aws launch` makes a version of it with the user data of a run, and with the
# data volume as /dev/sdf where the data is a snapshot.
resource "aws_launch_template" "this" {
  name                                 = var.name
  description                          = "Instances of imagenet-mds, without user data"
  image_id                             = "resolve:ssm:${var.image_parameter}"
  instance_initiated_shutdown_behavior = "terminate"
  update_default_version               = true
  vpc_security_group_ids               = [aws_security_group.instance.id]
  tags                                 = { imagenet-mds-volume-initialization-rate = var.volume_initialization_rate }

  iam_instance_profile {
    arn = aws_iam_instance_profile.instance.arn
  }

  # A hop limit of 2 lets a container on the instance ask, too.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
    instance_metadata_tags      = "enabled"
  }

  monitoring {
    enabled = false
  }

  block_device_mappings {
    device_name = "/dev/sda1"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_gb
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = var.name })
    }
  }
}

resource "aws_autoscaling_group" "this" {
  name                      = var.name
  min_size                  = 0
  max_size                  = 1
  desired_capacity          = 0
  vpc_zone_identifier       = [for subnet in aws_subnet.public : subnet.id]
  capacity_rebalance        = true
  default_instance_warmup   = 0
  health_check_type         = "EC2"
  health_check_grace_period = 3600
  force_delete              = true
  wait_for_capacity_timeout = "0"

  # An instance in the middle of a training must not be replaced to even out zones.
  suspended_processes = ["AZRebalance"]

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = 0
      on_demand_percentage_above_base_capacity = 0
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this.id
        version            = "$Default"
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  dynamic "tag" {
    for_each = merge(local.tags, { Name = var.name })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  # `imagenet-mds aws` changes these while a run lasts, and an apply meanwhile must not undo it.
  lifecycle {
    ignore_changes = [desired_capacity, mixed_instances_policy, tag]
  }
}

# The time in which an instance that is about to end saves its run. It ends the wait itself as soon as it has.
resource "aws_autoscaling_lifecycle_hook" "terminating" {
  name                   = "${var.name}-terminating"
  autoscaling_group_name = aws_autoscaling_group.this.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = 300
  default_result         = "CONTINUE"
}
