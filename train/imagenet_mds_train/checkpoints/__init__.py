"""Checkpoints: where they are kept, what is in them, when they are saved."""
