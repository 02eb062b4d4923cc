"""Images of more than 8 bits and with transparency: what is stored of them, and what is said."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imagenet_mds.dataset.raw_pixels import decode_raw
from imagenet_mds_convert.images.policy import Scaling, Stored
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.sources.base import Unusable
from tests.support.drawing import encoded, noise


def _opened(image: Image.Image, kind: str, **options: Any) -> tuple[Stored, Image.Image]:
    data = encoded(image, kind, **options)
    stored = prepare(data, "decode")
    return stored, Image.open(io.BytesIO(stored.image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_gray_keeps_its_upper_8_bits(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    stored, image = _opened(Image.fromarray(ramp), kind)
    assert np.abs(np.asarray(image.convert("L")).astype(int) - (ramp >> 8)).max() <= 2
    assert stored.change is not None
    assert stored.change.endswith("to RGB JPEG, 16 bits scaled to 8")
    raw = prepare(encoded(Image.fromarray(ramp), kind), "decode", Scaling(max_side=64), "raw")
    assert raw.change is not None
    assert raw.change.endswith("to RGB, 16 bits scaled to 8")
    assert np.array_equal(decode_raw(raw.image)[..., 0], ramp >> 8)


@pytest.mark.parametrize(
    ("values", "change", "expected"),
    [
        (np.linspace(0, 1, 64), "0 to 1 scaled to 8 bits", np.linspace(0, 255, 64)),
        (np.linspace(0, 255, 64), None, np.linspace(0, 255, 64)),
    ],
)
def test_floats_are_scaled_by_their_range(values: NDArray[Any], change: str | None, expected: NDArray[Any]) -> None:
    picture = Image.fromarray(np.tile(values.astype(np.float32), (48, 1)))
    stored, image = _opened(picture, "TIFF")
    assert stored.change == "F TIFF to RGB JPEG" + (f", {change}" if change else "")
    assert np.abs(np.asarray(image.convert("L"))[0] - expected).max() <= 2


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 1]], np.float32),
        np.array([[0, 5000]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, 1 << 20]], np.int32),
    ],
)
def test_values_of_an_unknown_range_leave_an_image_out_with_the_reason(values: NDArray[Any]) -> None:
    with pytest.raises(Unusable, match=r"TIFF of 2 x 1 pixels cannot be RGB JPEG \(it"):
        prepare(encoded(Image.fromarray(values), "TIFF"), "decode")


def test_a_tiff_with_white_as_zero_is_not_stored_inverted() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    data = encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0})
    with Image.open(io.BytesIO(prepare(data, "decode").image)) as image:
        assert np.abs(np.asarray(image.convert("L")).astype(int) - (255 - (ramp >> 8))).max() <= 2


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_transparency_is_dropped_as_everywhere_and_said(mode: str, kind: str, alpha: int) -> None:
    picture = noise(32, 24).convert(mode)
    picture.putalpha(alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    stored, image = _opened(picture, kind, **options)
    assert stored.change is not None
    assert stored.change.endswith(", without its transparency") == (alpha < 255)
    difference = np.asarray(image).astype(int) - np.asarray(picture.convert("RGB"))
    assert np.abs(difference).mean() <= 4  # of noise, the worst case for JPEG


def test_a_palette_with_a_transparent_colour_is_said() -> None:
    stored, _ = _opened(noise(32, 24).convert("P"), "PNG", transparency=3)
    assert stored.change == "P PNG to RGB JPEG, without its transparency"
