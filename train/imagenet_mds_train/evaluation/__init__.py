"""Evaluating a checkpoint."""
