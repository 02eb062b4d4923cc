"""Runs in retrospect: what their folders and logs say, compared and drawn. Nothing here imports torch."""
