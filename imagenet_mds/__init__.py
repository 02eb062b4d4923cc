"""Raw ImageNet-1K to verified MDS shards to a trained ResNet-50, resumable at every point.

This package is the command line and what the two stages share: the shard format, the manifest, the configuration, the
fingerprints. It never imports torch at module level, so that every command answers at once.
"""

__version__ = "0.1.0"
