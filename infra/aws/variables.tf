variable "name" {
  description = "Prefix of every name, and value of the tag imagenet-mds. Two groups in one account need two names, in two regions too, because the names of roles are global."
  type        = string
  default     = "imagenet-mds"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "The name must have 3 to 30 lower-case letters, digits and hyphens, begin with a letter and not end with a hyphen, because a bucket is named after it."
  }
}

variable "region" {
  description = "Region for everything, for example us-east-1. Data in other regions is read over the internet and billed."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "The region must look like us-east-1, without the letter of a zone."
  }
}

variable "zones" {
  description = "Availability zones for the subnets. All zones of the region by default: the more zones, the more spot capacity."
  type        = list(string)
  default     = null

  validation {
    condition     = var.zones == null || try(length(var.zones) > 0 && length(distinct(var.zones)) == length(var.zones), false)
    error_message = "Name at least one zone, each once, or leave zones out."
  }
}

variable "instance_types" {
  description = "Instance types of a new group, with equal numbers of GPUs. `imagenet-mds aws launch` replaces them by those that it was asked for; a change here does not reach a group that exists."
  type        = list(string)
  default     = ["g4dn.12xlarge", "g5.12xlarge", "g6.12xlarge"]

  validation {
    condition     = length(var.instance_types) > 0 && alltrue([for type in var.instance_types : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))])
    error_message = "Name at least one instance type, such as g4dn.12xlarge."
  }
}

variable "image_parameter" {
  description = "Public SSM parameter that holds the id of the image. EC2 resolves it at each launch, so that the image is always the newest. It must be an Ubuntu with NVIDIA's driver, Python 3.10 to 3.12 and the AWS CLI."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"

  validation {
    condition     = startswith(var.image_parameter, "/")
    error_message = "The parameter's name must begin with a slash."
  }
}

variable "root_gb" {
  description = "Size of an instance's root volume in GB. The image takes about 60 GB of it."
  type        = number
  default     = 100

  validation {
    condition     = var.root_gb >= 75
    error_message = "The image needs a root volume of at least 75 GB."
  }
}

variable "volume_initialization_rate" {
  description = "Rate in MiB/s at which EBS fetches a data volume's blocks from its snapshot, 100 to 300; 0 fetches each block when it is first read, which is slow. `imagenet-mds aws launch` reads it from a tag of the launch template and sets it on the data volume that it adds. It is billed by the snapshot's GB."
  type        = number
  default     = 300

  validation {
    condition     = var.volume_initialization_rate == 0 || (var.volume_initialization_rate >= 100 && var.volume_initialization_rate <= 300)
    error_message = "EBS takes rates from 100 to 300 MiB/s, or 0 for none."
  }
}

variable "checkpoint_days" {
  description = "Days for which checkpoints and uploaded code are kept in the bucket."
  type        = number
  default     = 90

  validation {
    condition     = var.checkpoint_days >= 1 && floor(var.checkpoint_days) == var.checkpoint_days
    error_message = "Checkpoints must be kept for a whole number of days, at least 1."
  }
}

variable "log_days" {
  description = "Days for which CloudWatch keeps the logs of instances."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400], var.log_days)
    error_message = "CloudWatch takes 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365 or 400 days."
  }
}

variable "data_buckets" {
  description = "Names of other buckets from which instances may read datasets."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for bucket in var.data_buckets : can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", bucket))])
    error_message = "Each entry must be a bucket's name alone, without s3:// and without a wildcard."
  }
}

variable "ssm" {
  description = "Whether a shell on an instance can be opened with Session Manager (aws ssm start-session). No port is open for it."
  type        = bool
  default     = true
}

variable "force_destroy" {
  description = "Whether `terraform destroy` removes the bucket with everything in it: dataset, runs and checkpoints. Apply it before the destroy."
  type        = bool
  default     = false
}
