resource "aws_iam_role" "instance" {
  name        = "${var.name}-instance"
  description = "What an instance of the group ${var.name} may do"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_instance_profile" "instance" {
  name = "${var.name}-instance"
  role = aws_iam_role.instance.name
}

locals {
  data_bucket_arns = [for bucket in var.data_buckets : "arn:${data.aws_partition.current.partition}:s3:::${bucket}"]

  bucket_statements = [
    {
      Sid      = "Bucket"
      Effect   = "Allow"
      Action   = ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
      Resource = [aws_s3_bucket.this.arn]
    },
    {
      Sid      = "Objects"
      Effect   = "Allow"
      Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
      Resource = ["${aws_s3_bucket.this.arn}/*"]
    },
  ]

  data_statements = [for statement in [
    {
      Sid      = "DataBuckets"
      Effect   = "Allow"
      Action   = ["s3:GetBucketLocation", "s3:ListBucket"]
      Resource = local.data_bucket_arns
    },
    {
      Sid      = "DataObjects"
      Effect   = "Allow"
      Action   = ["s3:GetObject"]
      Resource = [for arn in local.data_bucket_arns : "${arn}/*"]
    },
  ] : statement if length(local.data_bucket_arns) > 0]

  machine_statements = [
    {
      Sid    = "Group"
      Effect = "Allow"
      Action = [
        "autoscaling:CompleteLifecycleAction",
        "autoscaling:RecordLifecycleActionHeartbeat",
        "autoscaling:SetDesiredCapacity",
      ]
      Resource = [aws_autoscaling_group.this.arn]
    },
    {
      Sid      = "Logs"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = [aws_cloudwatch_log_group.this.arn, "${aws_cloudwatch_log_group.this.arn}:log-stream:*"]
    },
    {
      # The machine that fills a volume is in no group, and ends itself.
      Sid       = "OwnEnd"
      Effect    = "Allow"
      Action    = ["ec2:TerminateInstances"]
      Resource  = ["arn:${data.aws_partition.current.partition}:ec2:${var.region}:${data.aws_caller_identity.current.account_id}:instance/*"]
      Condition = { StringEquals = { "ec2:ResourceTag/imagenet-mds" = var.name } }
    },
    {
      # The one star: AWS lets nobody name a resource for these calls, which only read.
      Sid    = "Describe"
      Effect = "Allow"
      Action = [
        "autoscaling:DescribeAutoScalingGroups",
        "autoscaling:DescribeAutoScalingInstances",
        "ec2:DescribeInstances",
        "ec2:DescribeSpotPriceHistory",
        "ec2:DescribeVolumes",
      ]
      Resource = ["*"]
    },
  ]

  # Not AWS's own AmazonSSMManagedInstanceCore, which lets an instance read every parameter of the account.
  session_statements = [for statement in [
    {
      Sid      = "SessionManagerAgent"
      Effect   = "Allow"
      Action   = ["ssm:UpdateInstanceInformation"]
      Resource = ["arn:${data.aws_partition.current.partition}:ec2:${var.region}:${local.account}:instance/*"]
    },
    {
      # The channels of a session have no names either.
      Sid    = "SessionManagerChannels"
      Effect = "Allow"
      Action = [
        "ssmmessages:CreateControlChannel",
        "ssmmessages:CreateDataChannel",
        "ssmmessages:OpenControlChannel",
        "ssmmessages:OpenDataChannel",
      ]
      Resource = ["*"]
    },
  ] : statement if var.ssm]
}

resource "aws_iam_role_policy" "instance" {
  name = "instance"
  role = aws_iam_role.instance.id

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = concat(local.bucket_statements, local.data_statements, local.machine_statements, local.session_statements)
  })
}
