"""Stored images that do not decode: the run stops and names one, or continues without them and says so."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import EvaluationConfig, TrainConfig
from imagenet_mds_train.data.device import PADDING_LABEL
from imagenet_mds_train.data.loaders import TrainingImages, ValidationImages
from imagenet_mds_train.data.stream import Undecodable
from imagenet_mds_train.run.folder import find_checkpoint
from tests.command import run
from tests.support.datasets import keys_at, manifest_at
from tests.support.shards import read_shard

SMALL = (
    "global_batch_size=79",  # half of all: none is left over
    "augment.size_px=16",
    "augment.color_jitter={brightness: 0.2}",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 64, workers_per_rank: 0}",
    "schedule={epochs: 1}",
    "data.verify_shards=false",
)


GONE, CUT, FLIPPED = 5, 6, 4
"""Samples that are damaged: all of the file is zeros, its second half is, bytes of its second half are others."""


def _zeroed(image: bytes) -> bytes:
    return bytes(len(image))


def _cut(image: bytes) -> bytes:
    half = len(image) // 2
    return image[:half] + bytes(len(image) - half)


def _flipped(image: bytes) -> bytes:
    half = len(image) // 2
    return image[:half] + bytes(byte ^ 0x55 if at % 7 == 0 else byte for at, byte in enumerate(image[half:]))


def damage(dataset: Path, root: Path, split: str, **samples: Callable[[bytes], bytes]) -> Path:
    """A copy of a dataset with samples of the first shard of a split damaged, `_<number>=how`."""
    shutil.copytree(dataset, root, dirs_exist_ok=True)
    shard = root / split / "shard.00000.mds"
    for name, how in samples.items():
        image = list(read_shard(shard))[int(name[1:])].image
        data = shard.read_bytes()
        assert data.count(image) == 1
        shard.write_bytes(data.replace(image, how(image)))
    return root


@pytest.fixture(scope="module")
def damaged(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with three damaged training samples."""
    root = tmp_path_factory.mktemp("damaged") / "mds"
    return damage(dataset, root, "train", _5=_zeroed, _6=_cut, _4=_flipped)


def config(**data: str) -> TrainConfig:
    """A small one."""
    sections = {"augment": {"size_px": 16}, "optimizer": {"lr": 0.1}, "schedule": {"epochs": 1}, "data": data}
    return parse_config({"global_batch_size": 4} | sections, "the test")


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("sample", [GONE, CUT, FLIPPED])
def test_a_damaged_sample_is_named_by_its_key(damaged: Path, sample: int) -> None:
    images = TrainingImages(config(), ShardCache(damaged / "train"), 20)
    key = keys_at(damaged / "train")[sample]
    with pytest.raises(
        Undecodable, match=rf"sample {sample} .*\({key}, shard\.00000\.mds, place {sample}\) does not decode"
    ):
        images[sample]
    assert images.counts() == {"decoded_slowly": 0, "damaged": 0}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("sample", [GONE, CUT, FLIPPED])
def test_a_damaged_sample_can_be_black_without_a_label(damaged: Path, sample: int) -> None:
    images = TrainingImages(config(damaged="black"), ShardCache(damaged / "train"), 20)
    view, label = images[sample]
    assert (label, view.pixels.shape, int(np.abs(view.pixels).max())) == (PADDING_LABEL, (16, 16, 3), 0)
    assert images[GONE - 2][1] >= 0
    assert images.counts()["damaged"] == 1


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("resize", ["reference", "antialias", "linear"])
def test_validation_finds_damage_too(damaged: Path, resize: str) -> None:
    how = EvaluationConfig.model_validate({"resize": resize, "device_batch_size": 8, "workers_per_rank": 0})
    files = ShardCache(damaged / "train")
    for sample in (GONE, CUT, FLIPPED):
        with pytest.raises(Undecodable, match=f"sample {sample} "):
            list(ValidationImages(how, files, 20, rank=sample, ranks=20))
        black = ValidationImages(how, files, 20, rank=sample, ranks=20, replace_damaged=True)
        ((pixels, label),) = black
        assert (label, int(pixels.max()), black.damaged()) == (PADDING_LABEL, 0, 1)


def test_a_run_ends_at_it_or_goes_on_and_counts_it(damaged: Path, tmp_path: Path) -> None:
    both = damage(damaged, tmp_path / "both", "val", _3=_cut)
    command = ("train", "--config", "demo", "--data", both, "--save", tmp_path, *SMALL)
    ended = run(*command, "--run-name", "ended")
    assert ended.status == 1
    said = next(line for line in ended.err.splitlines() if line.startswith("imagenet-mds: sample"))
    assert any(keys_at(both / "train")[sample] in said for sample in (GONE, CUT, FLIPPED))
    assert "Traceback" not in ended.err
    assert "Its checkpoints are kept" in ended.err
    went_on = run(*command, "--run-name", "went-on", "data.damaged=black")
    assert went_on.status == 0, went_on.err
    lines = (tmp_path / "went-on" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    evals = [event for event in map(json.loads, lines) if event["event"] == "eval"]
    assert manifest_at(both / "train").samples % 79 == 0
    assert [(event["damaged"], event["damaged_val"]) for event in evals] == [(3, 1)]
    assert "3 training images so far did not decode; they were black and had no weight" in went_on.err
    assert "1 validation images so far did not decode" in went_on.err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing Composer and loading its checkpoint deprecate
        from imagenet_mds_train.evaluation.evaluate import evaluate

        # Not the command, which compares the shards' hashes first: an image may be damaged from the start.
        figures = evaluate(find_checkpoint(str(tmp_path / "went-on")), Dataset.at(str(both)).split("val"))
    assert figures.damaged == 1
    assert figures.top1 == pytest.approx(evals[0]["top1"])
