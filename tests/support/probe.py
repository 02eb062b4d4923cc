"""One rank that writes down what its training loader gives: run by the order tests, a process a rank.

Usage: python -m tests.support.probe DATASET CONFIG.json OUT.json; the distributed variables say which rank it is.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch.utils.data import DataLoader

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.loaders import TrainingImages
from imagenet_mds_train.data.stream import use_own_blocks
from tests.support.datasets import manifest_at

EPOCHS = 2
WORKERS = (0, 2)
ALONE_WORKERS = (0, 1, 2, 8)
"""Of one rank alone: eight workers of eight ranks would be more processes than the test is worth."""

RESUME_AT = (1, 7, 18)
"""Batches after which a second loader takes over in the first epoch."""

RESUME_WORKERS = {1: 0, 7: 2, 18: 1}
"""How many workers the second loader has; the first had none."""

PREFETCH = {1: 5, 2: 1, 8: 3}
"""Batches that each worker keeps ready, by the number of workers."""


class Probe(TrainingImages):
    """The training images with their numbers."""

    def __getitem__(self, sample: int) -> Any:  # type: ignore[override] # as in the class it derives from
        """The sample's number and a digest of its pixels and label."""
        view, label = super().__getitem__(sample)
        return int(sample), xxhash.xxh64_hexdigest(view.pixels.tobytes() + repr((view.jitter, label)).encode())


def batches(dataset: Probe, config: TrainConfig, workers: int, epochs: int) -> list[list[tuple[int, str]]]:
    """Every batch of some epochs: (sample, digest) in order."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=config.device_batch_size,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH.get(workers),
        collate_fn=list,
    )
    return [batch for _ in range(epochs) for batch in loader]


def main(dataset: Path, config_path: Path, out: Path) -> None:
    """Write {"<workers>": batches, "resumed <workers> <at>": batches}."""
    config = parse_config(json.loads(config_path.read_bytes()), "the test")
    use_own_blocks()
    torch.distributed.init_process_group("gloo")
    samples = manifest_at(dataset / "train").samples
    per_epoch = samples // config.global_batch_size
    found: dict[str, Any] = {}
    for workers in ALONE_WORKERS if config.ranks == 1 else WORKERS:
        found[f"{workers}"] = batches(Probe(config, ShardCache(dataset / "train"), samples), config, workers, EPOCHS)
    for at in (*RESUME_AT, per_epoch):
        before = Probe(config, ShardCache(dataset / "train"), samples)
        # As the trainer has it: samples of the epoch so far, none once the epoch is over.
        batches(before, config, 0, 1)
        state = before.state_dict(at % per_epoch * config.global_batch_size, from_beginning=True)
        after = Probe(config, ShardCache(dataset / "train"), samples)
        after.load_state_dict(state)
        found[f"resumed {at}"] = batches(after, config, RESUME_WORKERS.get(at, 0), 1)
    out.write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
