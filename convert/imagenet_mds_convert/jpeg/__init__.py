"""JPEG files as the converter takes them apart: the marker walk, baseline streams, restart tiles."""
