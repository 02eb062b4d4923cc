"""Pixels of the fast way: those of Pillow's full decode and antialiased resize, and torchvision's of the same crop."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional

from imagenet_mds.dataset.raw_pixels import encode_raw
from imagenet_mds.seeds import SampleRandom
from imagenet_mds.vocabulary import StoredForm
from imagenet_mds_convert.images.policy import HALF_QUALITY
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.jpeg.tiling import tile_jpeg
from imagenet_mds_train.augment.crop import Crop, draw_crop, on_grid
from imagenet_mds_train.augment.decode import (
    Resize,
    centre,
    decode_fast,
    decode_picture,
    decode_slowly,
    fractions,
    jpeg_size,
    part_of,
    resize,
)
from imagenet_mds_train.augment.views import Augmentation
from imagenet_mds_train.config.augment import AugmentConfig, ProgressiveConfig
from tests.support.drawing import encoded, noise
from tests.support.jpegs import lossless


def natural(width: int, height: int, seed: int) -> Image.Image:
    """A picture with the spectrum of natural ones (1/f)."""
    random = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / max(width, height)) ** 1.1
    shape = (3, height, width // 2 + 1)
    planes = np.fft.irfft2((random.normal(size=shape) + 1j * random.normal(size=shape)) * falloff, (height, width))
    planes = planes / planes.std(axis=(1, 2), keepdims=True)
    return Image.fromarray((128 + 45 * planes).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


FILES = [encoded(natural(500, 375, seed), quality=93) for seed in range(4)]


def decibels(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The peak signal-to-noise ratio; 99 where they are the same."""
    error = float(((one.astype(float) - other.astype(float)) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("size_px", [224, 176, 128])
def test_antialias_is_pillows_result_within_60_decibels(size_px: int) -> None:
    for number, data in enumerate(FILES * 4):
        size = jpeg_size(data)
        assert size == (500, 375)
        drawn = draw_crop(SampleRandom(number), *size, (0.08, 1.0), (3 / 4, 4 / 3))
        crop = on_grid(drawn, *size, size_px, fractions("antialias", b""))
        part = decode_fast(data, crop, size)
        assert part is not None
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        stock = Image.open(io.BytesIO(data)).convert("RGB").crop(box)
        stock = stock.resize((size_px, size_px), Image.Resampling.BILINEAR)
        assert decibels(resize(part, size_px, "antialias"), np.asarray(stock)) > 60


@pytest.mark.parametrize("antialias", [True, False])
def test_a_crop_has_torchvisions_pixels(antialias: bool) -> None:
    whole = decode_slowly(FILES[0])
    image = torch.from_numpy(whole.copy()).permute(2, 0, 1)
    for crop in (Crop(0, 0, 500, 375), Crop(31, 17, 301, 240), Crop(400, 300, 60, 75)):
        theirs = functional.resized_crop(
            image, crop.top, crop.left, crop.height, crop.width, [96, 96], antialias=antialias
        )
        ours = resize(part_of(whole, crop), 96, "antialias" if antialias else "linear")
        assert np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("how", ["antialias", "linear"])
@pytest.mark.parametrize("crop", [Crop(0, 0, 500, 375), Crop(31, 17, 301, 240), Crop(7, 9, 1, 80), Crop(7, 9, 80, 1)])
def test_a_resize_is_torchs_public_one_and_keeps_the_channels_together(how: Resize, crop: Crop) -> None:
    part = part_of(decode_slowly(FILES[0]), crop)
    image = torch.from_numpy(part.copy()).permute(2, 0, 1)[None]
    public = torch.nn.functional.interpolate(image, (96, 96), mode="bilinear", antialias=how == "antialias")
    for flip in (False, True):
        ours = resize(part, 96, how, flip=flip)
        assert np.array_equal(ours, (public.flip(3) if flip else public)[0].permute(1, 2, 0).numpy())
        assert ours.flags.c_contiguous, "collating would gather them byte by byte"


@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(500, 375), (499, 373)])
def test_a_scaled_decode_is_the_crop_made_smaller(denominator: int, size: tuple[int, int]) -> None:
    data = encoded(natural(*size, seed=9), quality=95)
    crop = Crop(96, 48, 160, 208, denominator)
    part = decode_fast(data, crop, size)
    assert part is not None
    assert part.shape == (208 // denominator, 160 // denominator, 3)
    # What falls into one pixel, weighed alike: their mean, which the DCT's first coefficients are near to.
    blocks = part_of(decode_slowly(data), crop).reshape(208 // denominator, denominator, 160 // denominator, -1, 3)
    assert decibels(part, blocks.mean(axis=(1, 3))) > 30


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGB", "PNG")]
)
def test_every_picture_gives_rgb_and_says_which_way_it_went(mode: str, kind: str) -> None:
    picture = natural(90, 60, 1).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    view = Augmentation(AugmentConfig(size_px=32, scale=(1.0, 1.0), ratio=(1.5, 1.5))).view(buffer.getvalue(), 0, 0)
    assert view.pixels.shape == (32, 32, 3)
    assert view.slowly == (kind == "PNG" or mode == "CMYK")
    expected = np.asarray(Image.open(buffer).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    seen = view.pixels[:, ::-1] if view.flip else view.pixels
    assert decibels(seen, expected) > 40


@pytest.mark.parametrize("resize_as", ["antialias", "linear"])
@pytest.mark.parametrize("size_px", [224, 128, 40])
def test_tiles_do_not_change_a_pixel(resize_as: str, size_px: int) -> None:
    view = Augmentation(AugmentConfig.model_validate({"size_px": size_px, "resize": resize_as}))
    for data in FILES:
        tiled = tile_jpeg(data)
        for seed in range(12):
            one, other = view.view(data, seed, 0), view.view(tiled, seed, 0)
            assert one.crop == other.crop
            assert not other.slowly
            assert np.array_equal(one.pixels, other.pixels)


def _half(data: bytes, form: StoredForm = "file") -> bytes:
    return prepare(data, "none", form=form, half_quality=HALF_QUALITY).half


@pytest.mark.parametrize(("resize_as", "least"), [("antialias", 30), ("linear", 26)])
@pytest.mark.parametrize("size", [(500, 375), (499, 373)])
def test_a_large_crop_comes_from_the_half_size_copy(resize_as: str, least: float, size: tuple[int, int]) -> None:
    view = Augmentation(AugmentConfig.model_validate({"size_px": 112, "resize": resize_as}))
    without = Augmentation(AugmentConfig.model_validate({"size_px": 112, "resize": resize_as, "half_copies": False}))
    data = encoded(natural(*size, seed=5), quality=93)
    copies, whole = [_half(data), _half(data, "tiles")], decode_slowly(data)

    def within(crop: Crop) -> bool:
        return min(crop.left, crop.top, size[0] - crop.left - crop.width, size[1] - crop.top - crop.height) >= 0

    assert copies[0] != copies[1]
    fractions_seen = set()
    for seed in range(24):
        plain, one = view.view(data, seed, 0), view.view(data, seed, 0, copies[0])
        assert np.array_equal(without.view(data, seed, 0, copies[0]).pixels, plain.pixels)
        assert np.array_equal(view.view(data, seed, 0, copies[1]).pixels, one.pixels)
        fractions_seen.add(one.crop.denominator)
        if one.crop.denominator == 1:
            assert min(one.crop.width, one.crop.height) < 224
            assert np.array_equal(one.pixels, plain.pixels)
            continue
        assert min(one.crop.width, one.crop.height) >= 224
        assert not np.array_equal(one.pixels, plain.pixels)
        near = {
            (right, down): decibels(one.pixels, resize(part_of(whole, moved), 112, "antialias", flip=one.flip))
            for right, down in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))
            if within(moved := replace(one.crop, left=one.crop.left + right, top=one.crop.top + down))
        }
        assert max(near, key=lambda place: near[place]) == (0, 0)
        assert near[0, 0] > least
    assert fractions_seen == {1, 2}


def test_a_small_size_takes_a_fraction_of_the_copy_where_that_is_allowed() -> None:
    half = _half(FILES[0])
    for how, expected in (("antialias", {2}), ("linear", {2, 4, 8})):
        view = Augmentation(AugmentConfig.model_validate({"size_px": 40, "resize": how}))
        assert {view.view(FILES[0], seed, 0, half).crop.denominator for seed in range(40)} == expected


def test_a_raw_sample_is_cut_and_resized_as_its_picture() -> None:
    view = Augmentation(AugmentConfig(size_px=96))
    raw = encode_raw(decode_slowly(FILES[0]))
    for seed in range(12):
        one, other = view.view(FILES[0], seed, 0), view.view(raw, seed, 0)
        assert one.crop == other.crop
        assert not other.slowly
        assert np.array_equal(one.pixels, other.pixels)


def _stored(form: str) -> bytes:
    """A picture of whole numbers, the same on every machine, as a form of the dataset has it."""
    random = np.random.Generator(np.random.PCG64(3))
    coarse = random.integers(0, 256, (375 // 15, 500 // 20, 3), dtype=np.uint8)
    image = encoded(Image.fromarray(coarse.repeat(15, 0).repeat(20, 1)), quality=93)
    if form == "raw":
        return encode_raw(decode_slowly(image))
    return tile_jpeg(image) if form == "tiles" else image


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch rounds otherwise without AVX2"
)
@pytest.mark.parametrize("form", ["file", "tiles"])
def test_views_of_half_size_copies_never_change(form: StoredForm) -> None:
    """Held for crops from the image, from its copy, and from a half and a quarter of the copy."""
    data = _stored("file")
    half = _half(data, form)
    expected = {
        ("antialias", 112): "3bbdab489e6a29b6",
        ("antialias", 40): "c5e13a95ceebf9b9",
        ("linear", 112): "bc8adcc8b0144e93",
        ("linear", 40): "a5c93587afdb2e90",
    }
    for (resize_as, size_px), digest in expected.items():
        view = Augmentation(AugmentConfig.model_validate({"size_px": size_px, "resize": resize_as}))
        seen = [view.view(data, seed, 0, half) for seed in range(8)]
        together = b"".join(one.pixels.tobytes() + repr((one.crop, one.flip)).encode() for one in seen)
        assert xxhash.xxh64_hexdigest(together) == digest, (resize_as, size_px)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch rounds otherwise without AVX2"
)
@pytest.mark.parametrize("form", ["file", "tiles", "raw"])
def test_every_form_has_the_pixels_it_always_had(form: str) -> None:
    """Held, as the order is: (resize, epoch) of a run that grows from 96 to 160 px. Raw has no colour to smooth."""
    linear = ("3f641fad7f3b32fb", "e4a57e473872c049") if form == "raw" else ("47d35be7d31cf38e", "fdac2956991dab4d")
    expected = {
        ("antialias", 0): "31aa8cbe326d5eb0",
        ("antialias", 2): "10a4372af982f7d0",
        ("linear", 0): linear[0],
        ("linear", 2): linear[1],
    }
    progressive = {"start_px": 96, "until_epoch": 2}
    for (resize_as, epoch), digest in expected.items():
        config = {"size_px": 160, "resize": resize_as, "progressive": progressive, "color_jitter": {"hue": 0.1}}
        view = Augmentation(AugmentConfig.model_validate(config))
        seen = [view.view(_stored(form), seed, epoch) for seed in range(8)]
        together = b"".join(one.pixels.tobytes() + repr((one.crop, one.flip, one.jitter)).encode() for one in seen)
        assert xxhash.xxh64_hexdigest(together) == digest, (resize_as, epoch)


def test_a_damaged_table_of_tiles_costs_time_and_no_pixel() -> None:
    view = Augmentation(AugmentConfig(size_px=64))
    tiled = bytearray(tile_jpeg(FILES[0]))
    at = tiled.index(b"MDSTILES") + 20
    tiled[at] ^= 1
    assert np.array_equal(view.view(bytes(tiled), 3, 0).pixels, view.view(FILES[0], 3, 0).pixels)


def test_what_does_not_decode_raises() -> None:
    view = Augmentation(AugmentConfig(size_px=32))
    for data in (b"", b"no picture", FILES[0][:200], b"\xff\xd8" + bytes(100)):
        with pytest.raises(OSError, match=r"(?i)cannot identify|truncated"):
            view.view(data, 0, 0)


def test_the_size_is_a_function_of_the_epoch() -> None:
    config = AugmentConfig(
        size_px=192, progressive=ProgressiveConfig(start_px=128, from_epoch=2, until_epoch=6, step_px=16)
    )
    assert [config.size_at(epoch, 9) for epoch in range(9)] == [128, 128, 128, 144, 160, 176, 192, 192, 192]
    view = Augmentation(config)
    # What comes next copies nothing: the channels of a pixel lie together.
    assert all(view.view(FILES[0], seed, 0).pixels.flags.c_contiguous for seed in range(8))
    assert [view.view(FILES[0], 5, epoch).pixels.shape[0] for epoch in (0, 3, 7)] == [128, 144, 192]
    shares = config.model_copy(
        update={"progressive": ProgressiveConfig(start_px=128, from_epoch="20%", until_epoch="60%", step_px=16)}
    )
    assert [shares.size_at(epoch, 10) for epoch in range(10)] == [config.size_at(epoch, 9) for epoch in range(10)]
    with pytest.raises(ValueError, match=r"progressive\.start_px 256 is larger than size_px 192"):
        AugmentConfig(size_px=192, progressive=ProgressiveConfig(start_px=256, until_epoch=3))
    same = AugmentConfig(size_px=192, progressive=ProgressiveConfig(from_epoch="50%", until_epoch="52%"))
    with pytest.raises(ValueError, match="progressive goes from epoch 5 to epoch 5: choose a later end"):
        same.refuse_wrong_steps(10)


def test_randaugment_and_the_flip_come_from_the_seed() -> None:
    config = AugmentConfig.model_validate({"size_px": 32, "randaugment": {"severity": 9, "depth": 2}})
    view = Augmentation(config)
    flips = []
    for seed in range(40):
        one, other = view.view(FILES[0], seed, 0), view.view(FILES[0], seed, 0)
        assert np.array_equal(one.pixels, other.pixels)
        flips.append(one.flip)
    assert 8 < sum(flips) < 32


@pytest.mark.parametrize("how", ["antialias", "linear"])
def test_a_lossless_jpeg_is_never_decoded_at_a_fraction(how: Resize) -> None:
    """libjpeg's scaled decode of it writes past the buffer. Stock datasets may hold some."""
    gray = np.asarray(noise(320, 240).convert("L"))
    data = lossless(gray)
    assert jpeg_size(data) is None
    assert np.array_equal(decode_slowly(data)[..., 0], gray)
    assert centre(data, 32, 28, how).shape == (28, 28, 3)
    assert np.array_equal(np.asarray(decode_picture(data))[..., 0], gray)


def test_16_bit_gray_of_a_stock_dataset_is_not_white() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    assert np.array_equal(decode_slowly(encoded(Image.fromarray(ramp), "PNG"))[..., 0], ramp >> 8)
