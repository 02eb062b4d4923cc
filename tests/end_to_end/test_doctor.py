"""`doctor --data`: what it measures is there, fits together, and is said."""

import json
import shutil
from pathlib import Path

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.doctor.loader import Findings, measure_dataset
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data import speed
from imagenet_mds_train.run.estimate import HIGH, T4
from tests.support.command import done, run
from tests.support.datasets import keys_at
from tests.support.shards import read_shard

SMALL = ("augment.size_px=32", "global_batch_size=16")
GROWING = ("augment.progressive={start_px: 16, until_epoch: 1, step_px: 8}",)
RATES = {"storage_bytes_per_second", "image_bytes", "read", "decode", "crop", "view", "processors"}
TABLES = {"loader", "sizes", "forms"}


def test_it_measures_every_part_and_says_what_limits(dataset: Path) -> None:
    outcome = done("doctor", "--data", dataset, "--config", "demo", "--json", *SMALL, *GROWING)
    found = json.loads(outcome.out)
    assert found.keys() >= RATES | TABLES
    assert all(found[name] > 0 for name in RATES)
    assert {"0", "1", "2"} <= found["loader"].keys()
    assert found["forms"].keys() == {
        "--tiles",
        "--tiles --half",
        "--max-side 400",
        "--max-side 400 --tiles",
        "--raw --min-side 256",
    }
    assert all(figure > 0 for name in TABLES - {"forms"} for figure in found[name].values())
    assert all(form.keys() == {"16", "32"} for form in found["forms"].values()), "of the first epoch, and the largest"
    assert all(figure > 0 for form in found["forms"].values() for figure in form.values())
    assert found["forms"]["--max-side 400"] == {"16": 1, "32": 1}, "the pictures are smaller"
    assert found["sizes"].keys() == {"224", "176", "128", "88"}
    assert found["read"] > found["view"]
    assert str(found["workers"]) in found["loader"]
    assert str(found["automatic"]) in found["loader"]
    assert found["limit"]
    assert "Traceback" not in outcome.err


def test_everything_is_measured_at_the_largest_size(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: set[int] = set()
    batches: set[int] = set()

    def rate_of(config: TrainConfig, *_: object) -> float:
        measured.add(config.augment.size_at(0, config.schedule.epochs))
        batches.add(config.global_batch_size)
        return 1.0

    for part in ("measure_loader", "view_rate"):
        monkeypatch.setattr(speed, part, rate_of)
    monkeypatch.setattr(speed, "view_ratio", lambda first, second: 2.0)
    split = Dataset.at(str(dataset)).split("train")
    found = measure_dataset(Dataset.at(str(dataset)), "demo", (*SMALL, *GROWING, "global_batch_size=2048"))
    assert measured == {32}
    assert found.size_px == 32
    assert max(batches) <= max(1, split.info.samples // (8 * found.processors)), "every worker has several of an epoch"


def test_what_it_cannot_measure_is_said_in_a_line(tmp_path: Path) -> None:
    outcome = run("doctor", "--data", tmp_path)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "has no train/" in outcome.err


def test_a_damaged_image_is_named(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "mds"))
    shard = copy / "train" / "shard.00000.mds"
    data = shard.read_bytes()
    image = next(read_shard(shard)).image
    shard.write_bytes(data.replace(image, image[: len(image) // 2] + bytes(len(image) - len(image) // 2)))
    outcome = run("doctor", "--data", copy, "--config", "demo", *SMALL)
    _, line = outcome.err.splitlines()
    assert outcome.status == 1
    assert f"({keys_at(copy / 'train')[0]}, shard.00000.mds, place 0) does not decode" in line


@pytest.mark.parametrize(
    ("changes", "limit", "workers"),
    [
        ({}, "most of their time goes into decoding", 4),
        ({"view": 100.0}, "most of their time goes into RandAugment", 4),
        ({"loader": {0: 300.0, 1: 300.0, 2: 590.0, 4: 600.0}}, "more workers do not help", 2),
        ({"read": 550.0}, "reading samples", 4),
        ({"storage_bytes_per_second": 1e8}, "the storage", 4),
    ],
)
def test_the_limit_follows_from_the_figures(changes: dict[str, object], limit: str, workers: int) -> None:
    figures: dict[str, object] = {
        "storage_bytes_per_second": 1e9,
        "image_bytes": 1e5,
        "read": 20_000.0,
        "decode": 400.0,
        "crop": 500.0,
        "view": 480.0,
        "loader": {0: 400.0, 1: 450.0, 2: 900.0, 4: 1700.0},
        "sizes": {224: 1.0, 176: 1.25, 128: 2.0},
        "forms": {},
        "automatic": 4,
        "processors": 4,
        "size_px": 224,
    }
    found = Findings(**(figures | changes))  # type: ignore[arg-type] # of a table
    assert limit in found.limit
    assert found.workers == workers
    assert found.loader_at(128) == 2 * max(found.loader.values())
    assert found.t4_needs()[4][224] == 4 * T4.at(224, HIGH), "the rates that the hours of `train --plan` are from"
