"""Stored images that do not decode: the run ends and names the one, or goes on without it and says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from imagenet_mds.cache import SplitFiles
from imagenet_mds.config import TrainConfig, parse_config
from imagenet_mds.manifest import read_keys, read_manifest
from imagenet_mds.mds import read_shard
from imagenet_mds_train.data import TrainingImages
from imagenet_mds_train.feed import PADDING_LABEL
from imagenet_mds_train.stream import Undecodable
from tests.command import run

DAMAGED = 5
SMALL = (
    "global_batch_size=16",
    "augment.size_px=16",
    "augment.color_jitter={brightness: 0.2}",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 64, workers_per_rank: 0}",
    "schedule={epochs: 1}",
    "data.verify_shards=false",
)


@pytest.fixture(scope="module")
def damaged(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose training sample number 5 is no picture any more."""
    root = tmp_path_factory.mktemp("damaged") / "mds"
    shutil.copytree(dataset, root)
    shard = root / "train" / "shard.00000.mds"
    image = list(read_shard(shard))[DAMAGED].image
    data = shard.read_bytes()
    assert data.count(image) == 1
    shard.write_bytes(data.replace(image, bytes(len(image))))
    return root


def config(**data: str) -> TrainConfig:
    """A small one."""
    sections = {"augment": {"size_px": 16}, "optimizer": {"lr": 0.1}, "schedule": {"epochs": 1}, "data": data}
    return parse_config({"global_batch_size": 4} | sections, "the test")


@pytest.mark.usefixtures("blocks")
def test_a_damaged_sample_is_named_by_its_key(damaged: Path) -> None:
    images = TrainingImages(config(), SplitFiles(damaged / "train"), 20)
    key = read_keys(damaged / "train")[DAMAGED]
    with pytest.raises(Undecodable, match=rf"sample 5 .*\({key}, shard\.00000\.mds, place 5\) does not decode"):
        images[DAMAGED]
    assert images.counts() == {"decoded_slowly": 0, "damaged": 0}


@pytest.mark.usefixtures("blocks")
def test_a_damaged_sample_can_be_black_without_a_label(damaged: Path) -> None:
    images = TrainingImages(config(damaged="black"), SplitFiles(damaged / "train"), 20)
    view, label = images[DAMAGED]
    assert (label, view.pixels.shape, int(np.abs(view.pixels).max())) == (PADDING_LABEL, (16, 16, 3), 0)
    assert images[DAMAGED - 1][1] >= 0
    assert images.counts()["damaged"] == 1


def test_a_run_ends_at_it_or_goes_on_and_counts_it(damaged: Path, tmp_path: Path) -> None:
    command = ("train", "--config", "demo", "--data", damaged, "--save", tmp_path, *SMALL)
    ended = run(*command, "--run-name", "ended")
    assert ended.status == 1
    assert read_keys(damaged / "train")[DAMAGED] in ended.err
    assert "its last checkpoint stays" in ended.err
    went_on = run(*command, "--run-name", "went-on", "data.damaged=black")
    assert went_on.status == 0, went_on.err
    lines = (tmp_path / "went-on" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    evals = [event for event in map(json.loads, lines) if event["event"] == "eval"]
    assert read_manifest(damaged / "train").samples // 16 * 16 > DAMAGED
    assert [event["damaged"] for event in evals] == [1]
    assert "1 training images did not decode and were black, without weight, so far" in went_on.err
