"""The data order as set algebra, over ranks and workers, in real processes."""

import contextlib
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imagenet_mds.process.attempt import attempt
from imagenet_mds_train.run.environment import rendezvous
from tests.support.command import HANG_SECONDS, done, environment, run
from tests.support.datasets import keys_at, manifest_at
from tests.support.probe import ALONE_WORKERS, RESUME_AT, WORKERS

RANKS = (1, 2, 4, 8)
NODES = 2
GLOBAL_BATCH_SIZE = 8

CONFIG: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "augment": {
        "size_px": 16,
        "color_jitter": {"brightness": 0.2, "hue": 0.1},
        "randaugment": {"severity": 9, "depth": 2},
    },
    "optimizer": {"lr": 0.1},
    "schedule": {"epochs": 2},
}

# found: (ranks) of {what: (batches) of (device batch) of (sample, digest)}
Found = list[dict[str, list[list[tuple[int, str]]]]]


@dataclass(frozen=True)
class Order:
    """What every topology gave."""

    samples: int
    found: dict[int, Found]

    @property
    def per_epoch(self) -> int:
        """Global batches of an epoch."""
        return self.samples // GLOBAL_BATCH_SIZE

    def global_batches(self, ranks: int, what: str) -> list[list[tuple[int, str]]]:
        """Batches over all ranks, in the order of the ranks: (batches) of (global batch)."""
        of_ranks = [found[what] for found in self.found[ranks]]
        return [
            [(sample, digest) for batch in batches for sample, digest in batch]
            for batches in zip(*of_ranks, strict=True)
        ]


@pytest.fixture(scope="module")
def order(dataset: Path, module_folder: Path) -> Order:
    """Run the probe on each number of ranks."""
    found = {ranks: probe(dataset, module_folder / str(ranks), ranks) for ranks in RANKS}
    return Order(manifest_at(dataset / "train").samples, found)


def probe(dataset: Path, folder: Path, ranks: int, nodes: int = 1, **data: Any) -> Found:
    """What each rank gets.

    Args:
        dataset: what is read.
        folder: for files.
        ranks: how many they are.
        nodes: the machines that they are on.
        data: more of the configuration's section of that name.
    """
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps(CONFIG | {"ranks": ranks, "data": data}), encoding="utf-8")
    outs, here = [folder / f"{rank}.json" for rank in range(ranks)], ranks // nodes
    with contextlib.ExitStack() as stack:
        variables = rendezvous(ranks) | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(here)}
        of_nodes = [stack.enter_context(attempt()).environment() for _ in range(nodes)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.probe", str(dataset), str(config), str(out)],
                env=environment(**(variables | of_nodes[rank // here]), RANK=str(rank), LOCAL_RANK=str(rank % here)),
            )
            for rank, out in enumerate(outs)
        ]
        assert [process.wait(timeout=HANG_SECONDS) for process in processes] == [0] * ranks
    return [json.loads(out.read_bytes()) for out in outs]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ranks", RANKS)
def test_an_epoch_has_each_sample_once_but_for_padding(order: Order, ranks: int, workers: int) -> None:
    batches = order.global_batches(ranks, str(workers))
    assert len(batches) == 2 * order.per_epoch
    for epoch in range(2):
        of_epoch = batches[epoch * order.per_epoch : (epoch + 1) * order.per_epoch]
        seen = [sample for batch in of_epoch for sample, _ in batch]
        assert len(seen) == order.per_epoch * GLOBAL_BATCH_SIZE
        assert set(seen) <= set(range(order.samples))
        # The order is cut to whole batches; ranks that do not divide it are padded by less than one sample each.
        assert len(seen) - len(set(seen)) < ranks


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_global_batch_is_the_same_set_of_pixels_on_any_ranks_and_workers(
    order: Order, ranks: int, workers: int
) -> None:
    reference = order.global_batches(1, "0")
    for number, batch in enumerate(order.global_batches(ranks, str(workers))):
        assert sorted(batch) == sorted(reference[number]), f"global batch {number}"


@pytest.mark.parametrize("ranks", RANKS)
def test_workers_do_not_change_a_rank_at_all(order: Order, ranks: int) -> None:
    for found in order.found[ranks]:
        for workers in ALONE_WORKERS if ranks == 1 else WORKERS:
            assert found[str(workers)] == found["0"]


def test_epochs_have_another_order_and_other_crops(order: Order) -> None:
    batches = order.global_batches(1, "0")
    first, second = batches[: order.per_epoch], batches[order.per_epoch :]
    assert [sample for batch in first for sample, _ in batch] != [sample for batch in second for sample, _ in batch]
    digests = dict(pair for batch in first for pair in batch)
    again = dict(pair for batch in second for pair in batch)
    both = digests.keys() & again.keys()
    assert sum(digests[sample] == again[sample] for sample in both) < len(both) / 10


@pytest.mark.parametrize("at", RESUME_AT)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_resumed_epoch_goes_on_at_the_next_batch(order: Order, ranks: int, at: int) -> None:
    whole = order.global_batches(ranks, "0")[: order.per_epoch]
    assert order.global_batches(ranks, f"resumed {at}") == whole[at:]


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_resumed_at_an_epochs_end_goes_on_with_the_next_epoch(order: Order, ranks: int) -> None:
    """The library alone repeats the epoch that ended."""
    second = order.global_batches(ranks, "0")[order.per_epoch :]
    assert order.global_batches(ranks, f"resumed {order.per_epoch}") == second


def test_ranks_of_several_nodes_get_what_they_get_on_one(dataset: Path, tmp_path: Path, order: Order) -> None:
    assert probe(dataset, tmp_path / "several", 4, NODES) == order.found[4]


def test_canonical_nodes_give_each_node_its_own_samples(dataset: Path, tmp_path: Path) -> None:
    canonical = {"order": {"num_canonical_nodes": NODES}}
    one, several = (
        Order(0, {NODES: probe(dataset, tmp_path / str(nodes), NODES, nodes, **canonical)}) for nodes in (1, NODES)
    )
    what = list(one.found[NODES][0])
    assert len(what) == len(WORKERS) + len(RESUME_AT) + 1
    for name in what:
        batches = one.global_batches(NODES, name), several.global_batches(NODES, name)
        assert [sorted(batch) for batch in batches[0]] == [sorted(batch) for batch in batches[1]]
    first, second = ({sample for batch in found["0"] for sample, _ in batch} for found in several.found[NODES])
    assert len(first & second) <= 1, "one is repeated to make them even"


def test_the_order_is_the_one_it_always_was(order: Order) -> None:
    """A checkpoint of an earlier version continues only while this order stays the same."""
    samples = [[sample for sample, _ in batch] for batch in order.global_batches(1, "0")]
    assert hashlib.sha256(json.dumps(samples).encode()).hexdigest()[:16] == "4edaa3b7499fc927"


def test_a_batch_can_be_looked_at_without_training(dataset: Path, tmp_path: Path, order: Order) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    seen = {}
    for ranks, workers in ((1, 0), (4, 2)):
        where = ("--config", config, "--epoch", 1, "--batch", 3, "--ranks", ranks, "--workers", workers, "--json")
        seen[ranks] = json.loads(done("inspect", dataset, *where).out)
        batch = order.global_batches(ranks, str(workers))[order.per_epoch + 3]
        assert [one["sample"] for one in seen[ranks]] == [sample for sample, _ in batch]
        assert [one["rank"] for one in seen[ranks]] == sorted(list(range(ranks)) * (GLOBAL_BATCH_SIZE // ranks))
    keys = keys_at(dataset / "train")
    classes = {name: number for number, name in enumerate(sorted({key.split("/")[0] for key in keys}))}
    assert all(one["key"] == keys[one["sample"]] for one in seen[1])
    assert all(one["label"] == classes[one["key"].split("/")[0]] for one in seen[1])
    known = ("sample", "label", "crop", "scaled_by", "flip", "size", "pixels_xxh64")
    rows = {ranks: sorted([one[name] for name in known] for one in batch) for ranks, batch in seen.items()}
    assert rows[1] == rows[4]
    # Held: what a sample's seed draws, and, where torch has the vector instructions that all of today's machines have,
    # every byte of the pixels.
    assert _digest([row[:-1] for row in rows[1]]) == "aa3808995dc7fc14"
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert _digest(rows[1]) == "9d35c0bb1ba7a553"
    sheet = tmp_path / "batch.png"
    outcome = done("preview", dataset, sheet, "--augmented", "--config", config, "--epoch", 1, "--batch", 3)
    assert "8 samples of batch 3 of epoch 1" in outcome.out
    with Image.open(sheet) as image:
        assert image.width > image.height
    refused = run("inspect", dataset, "--config", config, "--batch", 19)
    assert (refused.status, refused.err) == (2, "imagenet-mds: --batch 19: an epoch has 19 batches, counted from 0\n")
    refused = run("inspect", dataset, "--config", config, "--epoch", 2)
    assert (refused.status, refused.err) == (
        2,
        "imagenet-mds: --epoch 2: the configuration has 2 epochs, counted from 0\n",
    )
    refused = run("preview", dataset, sheet, "--augmented")
    assert refused.err == "imagenet-mds: 158 images do not fill one batch of 2048: pass another --config\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
