output "name" {
  description = "Prefix of every name, for `imagenet-mds aws --name`"
  value       = var.name
}

output "region" {
  description = "Region of everything"
  value       = var.region
}

output "bucket" {
  description = "Bucket for code, launches, runs and the dataset"
  value       = aws_s3_bucket.this.bucket
}

output "group" {
  description = "Auto scaling group of 0 or 1 instances"
  value       = aws_autoscaling_group.this.name
}

output "launch_template" {
  description = "Launch template without user data"
  value       = aws_launch_template.this.name
}

output "log_group" {
  description = "Log group of the instances"
  value       = aws_cloudwatch_log_group.this.name
}

output "subnets" {
  description = "Public subnet of each zone"
  value       = { for zone, subnet in aws_subnet.public : zone => subnet.id }
}
