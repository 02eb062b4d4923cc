"""JPEG internals for the converter: the marker walk, baseline streams, restart tiles."""
