"""Processes: their signals, lifetimes and locks, the resources an attempt at a run takes, and the GPUs."""
