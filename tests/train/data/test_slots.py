"""Batches handed over in memory that is used again and again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import EvaluationConfig, TrainConfig
from imagenet_mds_train.data.loaders import training_loader, validation_loader
from imagenet_mds_train.data.slots import BatchRef

pytestmark = pytest.mark.usefixtures("blocks")


def config(workers: int, **augment: Any) -> TrainConfig:
    """A small one: 39 batches of 4 an epoch."""
    values = {
        "global_batch_size": 4,
        "data": {"workers_per_rank": workers},
        "augment": {"size_px": 24} | augment,
        "optimizer": {"lr": 0.1},
        "schedule": {"epochs": 3},
    }
    return parse_config(values, "the test")


def batches(dataset: Path, workers: int, epochs: int = 1, **augment: Any) -> list[tuple[torch.Tensor, ...]]:
    """Copies of every batch, each made while the next one is asked for already."""
    loader = training_loader(config(workers, **augment), ShardCache(dataset / "train"), 158)
    copies, before = [], None
    for _ in range(epochs):
        for batch in loader:
            if before is not None:
                copies.append(tuple(tensor.clone() for tensor in before))
            before = batch
    assert before is not None
    return [*copies, tuple(tensor.clone() for tensor in before)]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_those_of_no_workers(dataset: Path, workers: int) -> None:
    expected, handed_over = (batches(dataset, number, epochs=2) for number in (0, workers))
    assert len(expected) == len(handed_over) == 78
    for one, other in zip(expected, handed_over, strict=True):
        assert all(map(torch.equal, one, other))
        assert other[0].is_contiguous(memory_format=torch.channels_last)


def test_what_else_there_is_of_a_batch_comes_with_it(dataset: Path) -> None:
    jitter: dict[str, Any] = {"color_jitter": {"brightness": 0.2}}
    for one, other in zip(batches(dataset, 0, **jitter), batches(dataset, 2, **jitter), strict=True):
        assert len(one) == 3
        assert one[2].dtype == torch.float64
        assert all(map(torch.equal, one, other))


def test_smaller_pictures_of_early_epochs_fit_in(dataset: Path) -> None:
    progressive: dict[str, Any] = {"progressive": {"start_px": 8, "until_epoch": 2, "step_px": 8}}
    sizes = [images.shape[-1] for images, _ in batches(dataset, 2, epochs=3, **progressive)]
    assert sizes == [8] * 39 + [16] * 39 + [24] * 39


def test_a_batch_is_pinned_out_of_its_slot(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's pinning thread calls `pin_memory` of what it does not know; where there is no GPU it is a copy."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    loader = training_loader(config(1), ShardCache(dataset / "train"), 158)
    note = next(super(type(loader), loader).__iter__())
    assert isinstance(note, BatchRef)
    pinned = torch.utils.data._utils.pin_memory.pin_memory(note)  # type: ignore[no-untyped-call] # torch's
    assert all(map(torch.equal, pinned, note.batch()))
    assert pinned[0].data_ptr() != note.batch()[0].data_ptr()


def test_validation_hands_its_batches_over_in_the_same_way(dataset: Path) -> None:
    """Through /dev/shm, of which a container has 64 MB, the first validation of four ranks would end in a bus error."""
    evaluation = EvaluationConfig(resize_px=28, crop_px=24, device_batch_size=8, workers_per_rank=2)
    loader = validation_loader(evaluation, ShardCache(dataset / "val"), 50, rank=0, ranks=1)
    crossing = list(DataLoader.__iter__(loader))
    assert [len(batch.labels) for batch in crossing] == [8, 8, 8, 8, 8, 8, 2]
    assert all(isinstance(batch, BatchRef) for batch in crossing)
    alone = evaluation.model_copy(update={"workers_per_rank": 0})
    expected = validation_loader(alone, ShardCache(dataset / "val"), 50, rank=0, ranks=1)
    # Twice, because the workers and their memory stay for the next validation.
    for _ in range(2):
        for one, other in zip(loader, expected, strict=True):
            assert all(map(torch.equal, one, other))
