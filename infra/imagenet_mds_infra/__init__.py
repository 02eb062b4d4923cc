"""Machines, volumes and what they cost: drives AWS through boto3. Never imports torch."""
