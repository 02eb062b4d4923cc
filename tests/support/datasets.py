"""Looks at datasets on this machine's disk by their paths."""

from pathlib import Path

from imagenet_mds.dataset.manifest import Manifest, read_keys, read_manifest
from imagenet_mds.dataset.split_info import SplitInfo, read_split_info
from imagenet_mds.storage.local import LocalStorage


def manifest_at(split: Path) -> Manifest:
    """`read_manifest` of a folder."""
    return read_manifest(LocalStorage(split))


def keys_at(split: Path) -> list[str]:
    """`read_keys` of a folder."""
    return read_keys(LocalStorage(split))


def info_at(split: Path) -> SplitInfo:
    """`read_split_info` of a folder."""
    return read_split_info(LocalStorage(split))
