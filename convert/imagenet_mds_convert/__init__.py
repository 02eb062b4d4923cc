"""Converts raw images into verified MDS shards."""
