"""`imagenet-mds inspect`: a dataset in a screen."""

import json

from imagenet_mds.cli.convert import read_dataset, report_exceptions
from imagenet_mds.manifest import Manifest


def run_inspect(dataset: str, *, as_json: bool) -> None:
    """Print what each split holds."""
    manifests = [manifest for _, manifest in read_dataset(dataset)]
    if as_json:
        print(json.dumps({manifest.split: manifest.model_dump(mode="json") for manifest in manifests}, indent=2))
        return
    for manifest in manifests:
        _print_split(manifest)


def _print_split(manifest: Manifest) -> None:
    counts = [entry.samples for entry in manifest.classes]
    print(f"{manifest.split}: {manifest.fingerprint}")
    print(f"  {manifest.samples:,} images in {len(counts):,} classes, {min(counts):,} to {max(counts):,} in each")
    print(f"  {len(manifest.shards):,} shards, {manifest.size_bytes:,} bytes")
    policy = ", ".join(f"{name} {value}" for name, value in manifest.policy.model_dump().items() if value is not None)
    source = manifest.source
    print(f"  from a {source.kind} of {source.samples:,} images ({source.fingerprint}); {policy}")
    print(f"  written with {', '.join(f'{name} {version}' for name, version in sorted(manifest.versions.items()))}")
    report_exceptions(manifest)
