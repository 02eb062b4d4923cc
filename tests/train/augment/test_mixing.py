"""MixUp, CutMix, ColOut and soft labels: labels are the true shares of the pixels, drawn once for a global batch."""

import random
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from imagenet_mds.seeds import batch_seed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing torchvision
    from imagenet_mds_train.augment.mixing import Box, Mixing, col_out, cut_mix, draw_box, mix_up, soft_labels
    from imagenet_mds_train.config.recipe import AlgorithmsConfig, ColOutConfig

SAMPLES, CLASSES, SIZE_PX = 6, 8, 16
LEVELS = torch.arange(SAMPLES, dtype=torch.uint8) * 40
"""The gray level of each image."""


def gray_images() -> Tensor:
    """Images of one gray level each, channels last, as the loader gives them."""
    levels = LEVELS.view(-1, 1, 1, 1).expand(-1, 3, SIZE_PX, SIZE_PX)
    return levels.contiguous(memory_format=torch.channels_last)


def mixing(seed: int = 5, **algorithms: Any) -> Mixing:
    """A recipe's mixing."""
    return Mixing(AlgorithmsConfig.model_validate(algorithms), CLASSES, seed)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "algorithms",
    [
        {},
        {"mixup": {"alpha": 1.0}},
        {"cutmix": {"alpha": 1.0}},
        {"mixup": {"alpha": 0.2}, "cutmix": {"alpha": 1.0}},
        {"mixup": {"alpha": 0.2}, "cutmix": {"alpha": 1.0}, "colout": {"rows": 0.15, "columns": 0.3}},
    ],
)
def test_labels_are_the_shares_of_the_pixels(algorithms: dict[str, Any], smoothing: float) -> None:
    """The mean gray level of a mixed image says how much of it is of each image, and so must its label."""
    if smoothing:
        algorithms = algorithms | {"label_smoothing": {"smoothing": smoothing}}
    recipe, labels = mixing(**algorithms), torch.arange(SAMPLES)
    for batch in range(40):
        images, targets = recipe(gray_images(), labels, batch)
        assert images.is_contiguous(memory_format=torch.channels_last)
        levels = images.double().mean((1, 2, 3))
        own, neighbour = LEVELS.double(), LEVELS.double().roll(1)
        shares = (levels - neighbour) / (own - neighbour)
        expected = torch.zeros(SAMPLES, CLASSES, dtype=torch.float64)
        expected[labels, labels] = shares
        expected[labels, labels.roll(1)] = 1 - shares
        expected = expected * (1 - smoothing) + smoothing / CLASSES
        torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-6)


def test_a_batch_gets_one_of_the_two_by_a_fair_coin() -> None:
    both = mixing(mixup={"alpha": 1.0}, cutmix={"alpha": 1.0})
    kinds = Counter(both(gray_images(), torch.arange(SAMPLES), batch)[0].dtype for batch in range(400))
    assert set(kinds) == {torch.float32, torch.uint8}  # of MixUp, and of CutMix
    assert 160 < kinds[torch.uint8] < 240


def test_all_ranks_and_starts_draw_the_same_and_each_batch_something_else() -> None:
    labels, recipe = torch.arange(SAMPLES), mixing(mixup={"alpha": 1.0}, cutmix={"alpha": 1.0})
    first = [recipe(gray_images(), labels, batch)[1] for batch in range(9)]
    torch.manual_seed(1)
    random.seed(1)
    again = [recipe(gray_images(), labels, batch)[1] for batch in range(9)]
    # A rank with the last three samples mixes its first one with its last one, by the same share.
    part = [recipe(gray_images()[3:], labels[3:], batch)[1] for batch in range(9)]
    for one, other, rank in zip(first, again, part, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(rank.diagonal(3), one[3:].diagonal(3))
    assert len({float(targets[0, 0]) for targets in first}) == 9
    other_seed = mixing(seed=6, mixup={"alpha": 1.0}, cutmix={"alpha": 1.0})
    assert not torch.equal(other_seed(gray_images(), labels, 0)[1], first[0])


def test_the_draws_are_those_they_always_were() -> None:
    """A checkpoint of an earlier version continues only while they stay the same."""
    assert batch_seed(17, 3) == 0x48BBFB5282AA16FE
    recipe = mixing(mixup={"alpha": 0.2}, cutmix={"alpha": 1.0})
    shares = [float(recipe(gray_images(), torch.arange(SAMPLES), batch)[1][0, 0]) for batch in range(8)]
    always = [0.5625, 0.95365, 0.96413, 0.4375, 0.9375, 0.453125, 1.0, 0.578125]
    assert shares == pytest.approx(always, abs=1e-5)


def test_a_sample_without_weight_has_a_row_of_zeros() -> None:
    targets = soft_labels(torch.tensor([2, -1]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.0, 0.0, 0.0, 0.0]]))


def test_images_that_are_mixed_stay_as_they_were() -> None:
    """They lie in memory that the loader uses again, and a second pass over the batch may follow."""
    images, targets = gray_images(), soft_labels(torch.arange(SAMPLES), CLASSES)
    before = images.clone(), targets.clone()
    mix_up(images, targets, 0.3)
    cut_mix(images, targets, Box(2, 3, 9, 16))
    col_out(images, random.Random(1), ColOutConfig())
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])


def test_a_box_lies_within_the_image_and_covers_what_was_drawn() -> None:
    boxes = [draw_box(random.Random(seed), 1.0, 20, 30) for seed in range(500)]
    assert all(0 <= box.top <= box.bottom <= 20 and 0 <= box.left <= box.right <= 30 for box in boxes)
    # Uniform areas, of which the edges cut some off.
    assert 0.2 < sum(box.area for box in boxes) / 500 / 600 < 0.4


def test_colout_keeps_rows_and_columns_in_order() -> None:
    rows = torch.arange(20, dtype=torch.uint8).view(1, 1, 20, 1).expand(2, 3, 20, 20)
    left = col_out(rows, random.Random(3), ColOutConfig(rows=0.15, columns=0.5))
    assert left.shape == (2, 3, 17, 10)
    kept = left[0, 0, :, 0].tolist()
    assert kept == sorted(set(kept))
