"""ColorJitter on a batch: torchvision's pixels, sample by sample."""

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from imagenet_mds.seeds import SampleRandom
from imagenet_mds_train.augment.jitter import draw_jitter, jitter, jitter_rows
from imagenet_mds_train.config.augment import ColorJitterConfig

STOCK = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 9, 11, 3), dtype=np.uint8)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("hue", [0.0, 0.3])
def test_every_order_and_factor_gives_torchvisions_pixels(hue: float) -> None:
    config = ColorJitterConfig(brightness=0.9, contrast=0.9, saturation=0.9, hue=hue)
    random = SampleRandom(3)
    drawn = [draw_jitter(random, config) for _ in range(24)]
    rows = [(*map(float, order), *row[4:]) for order, row in zip(itertools.permutations(range(4)), drawn, strict=True)]
    done = jitter(IMAGES, jitter_rows(rows))
    assert done.dtype == torch.uint8
    assert done.is_contiguous(memory_format=torch.channels_last)
    for image, row, result in zip(IMAGES, rows, done, strict=True):
        expected = image
        for operation in map(int, row[:4]):
            if (operation, row[4 + operation]) != (3, 0.0):
                expected = STOCK[operation](expected, row[4 + operation])
        # A sum may be rounded once or twice, by processor: a pixel on the edge between two levels may take the other.
        difference = (result.int() - expected.int()).abs()
        assert int(difference.max()) <= 1 if not hue else float((difference > 1).float().mean()) < 0.01
        assert float((difference > 0).float().mean()) < 0.01


def test_what_is_not_configured_leaves_the_pixels_alone() -> None:
    random = SampleRandom(0)
    rows = jitter_rows([draw_jitter(random, ColorJitterConfig()) for _ in range(24)])
    assert torch.equal(jitter(IMAGES, rows), IMAGES)


def test_a_sample_is_jittered_alike_in_any_batch() -> None:
    random = SampleRandom(1)
    rows = jitter_rows([draw_jitter(random, ColorJitterConfig(brightness=0.4, contrast=0.4)) for _ in range(24)])
    whole = jitter(IMAGES, rows)
    alone = [jitter(IMAGES[n : n + 1], rows[n : n + 1])[0] for n in range(24)]
    assert torch.equal(whole, torch.stack(alone))


def test_factors_are_uniform_around_one() -> None:
    random = SampleRandom(2)
    config = ColorJitterConfig(brightness=0.2, contrast=0.4, saturation=1.0, hue=0.5)
    factors = np.array([draw_jitter(random, config)[4:] for _ in range(4000)])
    for column, (middle, most) in zip(factors.T, [(1, 0.2), (1, 0.4), (1, 1.0), (0, 0.5)], strict=True):
        assert column.min() >= middle - most
        assert column.max() < middle + most
        assert abs(column.mean() - middle) < 0.05 * most
        assert abs(column.std() - most / 3**0.5) < 0.03 * most


@pytest.mark.parametrize("factor", [-0.5, -0.1, 0.0, 0.25, 0.5])
def test_the_hue_of_a_batch_is_torchvisions_bit_for_bit(factor: float) -> None:
    rows = jitter_rows([(0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, factor)] * len(IMAGES))
    expected = torch.stack([functional.adjust_hue(image, factor) for image in IMAGES]) if factor else IMAGES
    assert torch.equal(jitter(IMAGES, rows), expected)
