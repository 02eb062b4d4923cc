"""The random crop: torchvision's distribution, and edges that a scaled picture has."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from imagenet_mds.seeds import SampleRandom, sample_seed
from imagenet_mds_train.augment.crop import DCT_DENOMINATORS, Crop, draw_crop, on_grid

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
DRAWS = 100_000


def test_the_crop_has_torchvisions_distribution() -> None:
    width, height = 500, 375
    ours = [draw_crop(SampleRandom(sample_seed(1, 2, n)), width, height, SCALE, RATIO) for n in range(DRAWS)]
    stock: Any = v2.RandomResizedCrop(224, scale=SCALE, ratio=RATIO)
    picture = torch.empty(3, height, width, dtype=torch.uint8)
    torch.manual_seed(0)
    theirs: list[dict[str, int]] = [stock.make_params([picture]) for _ in range(DRAWS // 4)]
    stock_crops = [Crop(p["left"], p["top"], p["width"], p["height"]) for p in theirs]
    measures: dict[str, Callable[[Crop], float]] = {
        "scale": lambda crop: crop.width * crop.height,
        "ratio": lambda crop: crop.width / crop.height,
        "left": lambda crop: crop.left,
        "top": lambda crop: crop.top,
    }
    for name, measure in measures.items():
        result = ks_2samp([measure(crop) for crop in ours], [measure(crop) for crop in stock_crops])
        assert result.pvalue > 0.001, (name, result)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 900), (900, 1), (3, 2), (20_000, 7)])
def test_pictures_of_any_shape_give_a_crop_within(width: int, height: int) -> None:
    for seed in range(200):
        crop = draw_crop(SampleRandom(seed), width, height, SCALE, RATIO)
        assert 0 <= crop.left <= crop.left + crop.width <= width
        assert 0 <= crop.top <= crop.top + crop.height <= height
        assert crop.width
        assert crop.height


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(0, 1 << 40),
    st.integers(8, 400),
    st.sampled_from([DCT_DENOMINATORS, (2,), ()]),
)
def test_a_crop_on_the_grid_is_the_nearest_one_there(
    width: int, height: int, seed: int, size_px: int, denominators: tuple[int, ...]
) -> None:
    drawn = draw_crop(SampleRandom(seed), width, height, SCALE, RATIO)
    crop = on_grid(drawn, width, height, size_px, denominators)
    d = crop.denominator
    assert all(value % d == 0 for value in (crop.left, crop.top, crop.width, crop.height))
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert abs(crop.width - drawn.width) <= d
    assert abs(crop.height - drawn.height) <= d
    assert abs(crop.left - drawn.left) <= d
    assert abs(crop.top - drawn.top) <= d
    if d == 1:
        assert crop == drawn
    else:
        assert min(crop.width, crop.height) >= d * size_px


@given(st.integers(0, (1 << 64) - 1))
def test_draws_are_in_their_ranges(seed: int) -> None:
    random = SampleRandom(seed)
    assert 0 <= random.bits() < 1 << 64
    assert 2.5 <= random.uniform(2.5, 3.5) < 3.5
    assert 0 <= random.integer(7) < 7
    assert sorted(random.permutation(4)) == [0, 1, 2, 3]


def test_draws_are_uniform_and_never_change() -> None:
    random = SampleRandom(0)
    # Vigna's splitmix64.c, seeded with 0, gives these.
    assert [random.bits() for _ in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    counts = np.bincount([random.integer(10) for _ in range(20_000)], minlength=10)
    assert np.abs(counts - 2000).max() < 5 * math.sqrt(2000)
    orders = {tuple(random.permutation(4)) for _ in range(1000)}
    assert len(orders) == 24


def test_unlike_pictures_get_unlike_grids() -> None:
    large = Crop(101, 51, 1001, 901)
    assert on_grid(large, 2000, 1500, 112, DCT_DENOMINATORS) == Crop(104, 48, 1000, 904, 8)
    assert on_grid(large, 2000, 1500, 224, DCT_DENOMINATORS) == Crop(100, 52, 1000, 900, 4)
    assert on_grid(large, 2000, 1500, 224, (2,)) == Crop(102, 52, 1002, 902, 2)
    assert on_grid(large, 2000, 1500, 500, DCT_DENOMINATORS) == large
    assert on_grid(large, 2000, 1500, 224, (2,)).halved == Crop(51, 26, 501, 451, 1)
