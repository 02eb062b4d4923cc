"""Stored images that do not decode: the run stops and names one, or continues without them and says so."""

from pathlib import Path

import numpy as np
import pytest

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import EvaluationConfig, TrainConfig
from imagenet_mds_train.data.device import PADDING_LABEL
from imagenet_mds_train.data.loaders import TrainingImages, ValidationImages
from imagenet_mds_train.data.stream import Undecodable
from tests.support.damage import CUT, FLIPPED, GONE
from tests.support.datasets import keys_at


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
        ((view, label),) = black
        assert (label, int(view.pixels.max()), black.damaged()) == (PADDING_LABEL, 0, 1)
