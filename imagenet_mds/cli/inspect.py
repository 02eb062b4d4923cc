"""`imagenet-mds inspect` and `preview`: a dataset in a screen, a sample, a picture."""

import io
import itertools
import json
from pathlib import Path

import xxhash
from PIL import Image

from imagenet_mds.cli.convert import read_dataset, report_exceptions
from imagenet_mds.contact_sheet import contact_sheet
from imagenet_mds.dataset import stored_samples
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.files import write_atomic
from imagenet_mds.manifest import Manifest, read_keys, read_manifest
from imagenet_mds.storage import Storage, open_storage


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


def inspect_sample(dataset: str, split_name: str, sample: int, *, as_json: bool) -> None:
    """Print what one sample is and where it stands.

    Raises:
        UserError: the split has no such sample.
    """
    split, manifest = _split_with(dataset, split_name, sample)
    stored = next(stored_samples(split, manifest, sample))
    record, entry = stored.record, manifest.classes[stored.record.label]
    with Image.open(io.BytesIO(record.jpeg)) as image:
        facts: dict[str, object] = {
            "sample": sample,
            "key": read_keys(split)[sample],
            "class": record.label,
            "wnid": entry.wnid,
            "name": entry.name,
            "shard": stored.shard,
            "place": stored.place,
            "source_index": record.index,
            "bytes": len(record.jpeg),
            "xxh64": xxhash.xxh64_hexdigest(record.jpeg),
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
        }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name + ':':14} {value}")


def run_preview(dataset: str, file: Path, *, split: str, start: int, count: int, columns: int) -> None:
    """Write a contact sheet of stored samples, in stored order.

    Raises:
        UserError: no PNG's name, or the split has no sample `start`.
        WorldError: the file cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise UserError(f"{file}: give a name that ends in .png")
    storage, manifest = _split_with(dataset, split, start)
    pictures = [
        (manifest.classes[stored.record.label].name, Image.open(io.BytesIO(stored.record.jpeg)))
        for stored in itertools.islice(stored_samples(storage, manifest, start), count)
    ]
    buffer = io.BytesIO()
    contact_sheet(pictures, columns=min(columns, len(pictures))).save(buffer, "PNG")
    try:
        write_atomic(file, buffer.getvalue())
    except OSError as error:
        raise WorldError(f"{file} cannot be written: {error.strerror}") from None
    print(f"{file}: {len(pictures)} samples of {storage.location} from number {start:,} on")


def _split_with(dataset: str, split: str, sample: int) -> tuple[Storage, Manifest]:
    storage = open_storage(dataset).child(split)
    manifest = read_manifest(storage)
    if sample >= manifest.samples:
        raise UserError(f"{storage.location} has no sample {sample:,}: it has {manifest.samples:,}, counted from 0")
    return storage, manifest
