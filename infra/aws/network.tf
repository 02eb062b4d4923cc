data "aws_availability_zones" "all" {
  state = "available"

  # Without local zones and Wavelength, which have no such instances.
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

locals {
  zones = sort(var.zones == null ? data.aws_availability_zones.all.names : var.zones)
}

resource "aws_vpc" "this" {
  cidr_block           = "10.83.0.0/16"
  enable_dns_support   = true
  enable_dns_hostnames = true
  tags                 = { Name = var.name }
}

resource "aws_internet_gateway" "this" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = var.name }
}

resource "aws_route_table" "public" {
  vpc_id = aws_vpc.this.id
  tags   = { Name = var.name }

  route {
    cidr_block = "0.0.0.0/0"
    gateway_id = aws_internet_gateway.this.id
  }
}

# Public addresses instead of a NAT gateway, which costs more a month at rest than everything else here, and bills each
# gigabyte. Nothing can connect to them: see the security group.
resource "aws_subnet" "public" {
  for_each = toset(local.zones)

  vpc_id                  = aws_vpc.this.id
  availability_zone       = each.key
  cidr_block              = cidrsubnet(aws_vpc.this.cidr_block, 4, index(local.zones, each.key))
  map_public_ip_on_launch = true
  tags                    = { Name = "${var.name}-${each.key}" }

  lifecycle {
    precondition {
      condition     = startswith(each.key, var.region)
      error_message = "The zone ${each.key} is not in the region ${var.region}: correct zones or region."
    }
  }
}

resource "aws_route_table_association" "public" {
  for_each = aws_subnet.public

  subnet_id      = each.value.id
  route_table_id = aws_route_table.public.id
}

# Free, and the way for the dataset and the checkpoints: S3 is not reached over the internet.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${var.region}.s3"
  route_table_ids   = [aws_route_table.public.id]
  tags              = { Name = var.name }
}

# No rule for incoming connections. Amazon's DNS, time server and instance metadata are reached without a rule, because
# security groups do not filter their link-local addresses.
resource "aws_security_group" "instance" {
  name        = var.name
  description = "Instances of ${var.name}: nothing comes in, HTTP and HTTPS go out"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = var.name }
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.instance.id
  description       = "S3, the APIs of AWS, package indexes, Weights & Biases"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_egress_rule" "http" {
  security_group_id = aws_security_group.instance.id
  description       = "Ubuntu's package archives"
  ip_protocol       = "tcp"
  from_port         = 80
  to_port           = 80
  cidr_ipv4         = "0.0.0.0/0"
}
