"""Raw ImageNet-1K to verified MDS shards to a trained ResNet-50, resumable at every point.

This package holds the command line and what the two stages share: the dataset with its manifest, storage, fingerprints.
It does not import torch, so that every command answers at once.
"""

__version__ = "0.1.0"
