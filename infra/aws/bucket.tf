# Prefixes: code/ (archives of the program), weights/ (files that runs start from), launches/ (what an instance is to do),
# runs/ (one folder a run), mds/ (the dataset) and volumes/ (what is known of volumes and snapshots).
resource "aws_s3_bucket" "this" {
  bucket        = "${var.name}-${local.account}-${var.region}"
  force_destroy = var.force_destroy
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })

  # S3 refuses two changes of a bucket's access at once.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  # A filter cannot say runs/*/checkpoints/. The smallest checkpoint, a ResNet-10's, has 40 MB, and the log of a long run
  # a few; so a size between the two tells checkpoints from logs, results and reports, which are kept.
  rule {
    id     = "checkpoints"
    status = "Enabled"

    filter {
      and {
        prefix                   = "runs/"
        object_size_greater_than = 16 * 1024 * 1024
      }
    }

    expiration {
      days = var.checkpoint_days
    }
  }

  rule {
    id     = "code"
    status = "Enabled"

    filter {
      prefix = "code/"
    }

    expiration {
      days = var.checkpoint_days
    }
  }
}
