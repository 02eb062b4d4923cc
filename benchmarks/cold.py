"""How long a run on a dataset in S3 waits for its first batch if its cache is empty.

The dataset has as many samples per shard as ImageNet (609). It is in an S3 server on this machine (moto's, a single
Python process, whose bandwidth is the limit here). A round opens the dataset, starts the loader of a rank with 2
workers and takes one batch of 512, first with an empty cache, then with the filled one. It also fetches a single shard,
the unit that the first batch is compared with. Imports are not counted.

Usage: python benchmarks/cold.py [--shards N] [--rounds N] [--json FILE]
"""

import argparse
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.s3_server import BUCKET, CREDENTIALS, direct, s3_server

SAMPLES_PER_SHARD = 609
CONFIG: dict[str, Any] = {
    "global_batch_size": 512,
    "data": {"workers_per_rank": 2},
    "augment": {"size_px": 64},
    "optimizer": {"lr": 0.1},
    "schedule": {"epochs": 1},
}


def make_shards(folder: Path, shards: int) -> list[Any]:
    """Write a training split of small images, with an index and without a manifest."""
    from imagenet_mds.dataset.mds import Layout, Record, describe_shard, index_json, shard_basename
    from imagenet_mds.storage.atomic import write_json
    from tests.support.shards import encode_shard

    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    made = []
    for number in range(shards):
        first = number * SAMPLES_PER_SHARD
        records = [Record(first + n, buffer.getvalue(), (first + n) % 1000) for n in range(SAMPLES_PER_SHARD)]
        data = encode_shard(records, 1 << 26)
        (folder / shard_basename(number)).write_bytes(data)
        made.append(describe_shard(shard_basename(number), data, SAMPLES_PER_SHARD))
    write_json(folder / "index.json", index_json(made, Layout(1 << 26)))
    return made


def first_batch(location: str, cache: Path) -> float:
    """Return the seconds from opening the dataset to the first batch."""
    from imagenet_mds.dataset.access import Dataset
    from imagenet_mds_train.config.load import parse_config
    from imagenet_mds_train.data.loaders import training_loader
    from imagenet_mds_train.data.stream import own_resources

    config = parse_config(CONFIG, "the benchmark")
    with own_resources():
        begun = time.perf_counter()
        train = Dataset.at(location, cache).split("train")
        train.check_available(train.info.shards)
        batches = iter(training_loader(config, train.shard_cache, train.info.samples))
        next(batches)
        seconds = time.perf_counter() - begun
        del batches
    return seconds


def one_shard(location: str, cache: Path, number: int) -> float:
    """Return the seconds it takes to fetch one shard."""
    from imagenet_mds.dataset.access import Dataset

    train = Dataset.at(location, cache).split("train")
    train.check_available(train.info.shards)
    begun = time.perf_counter()
    train.shard_cache.fetch(train.info.shards[number])
    return time.perf_counter() - begun


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(CREDENTIALS)
    found: dict[str, list[float]] = {"cold": [], "warm": [], "one shard": []}
    with tempfile.TemporaryDirectory() as name, s3_server() as port:
        root = Path(name)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        shards = make_shards(root / "mds" / "train", options.shards)
        client = direct(port)
        client.create_bucket(Bucket=BUCKET)
        for path in sorted((root / "mds").rglob("*.*")):
            client.upload_file(str(path), BUCKET, f"mds/{path.relative_to(root / 'mds')}")
        location = f"s3://{BUCKET}/mds"
        first_batch(location, root / "warm-up")  # imports, and the first answers of the server
        for number in range(options.rounds):
            cache = root / f"cache{number}"
            found["cold"].append(first_batch(location, cache))
            found["warm"].append(first_batch(location, cache))
            found["one shard"].append(one_shard(location, root / f"single{number}", number))
    size_mb = statistics.mean(shard.size_bytes for shard in shards) / 1e6
    print(f"{options.shards} shards of {size_mb:.1f} MB, batch 512, 2 workers, {options.rounds} rounds, medians")
    for what, seconds in found.items():
        print(f"{what}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
    excess = [cold - shard for cold, shard in zip(found["cold"], found["one shard"], strict=True)]
    print(f"cold less one shard: {statistics.median(excess):.2f} s")
    if options.json:
        rows = {what: list(itertools.chain(seconds)) for what, seconds in found.items()}
        options.json.write_text(json.dumps(rows | {"shard_mb": size_mb}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
