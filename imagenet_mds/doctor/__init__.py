"""Measurements of this machine: how fast it feeds a training, and what limits it."""
