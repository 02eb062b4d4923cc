"""Metrics that are exact on any number of ranks."""
