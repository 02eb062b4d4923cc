"""A run before its ranks start: what it is, where it is kept, how ranks are launched. Nothing here imports torch."""
