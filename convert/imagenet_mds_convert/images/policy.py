"""Decides what becomes of a source image, and estimates how large it will be. Pure functions."""

from dataclasses import dataclass
from typing import Literal

from imagenet_mds.dataset.manifest import DEFAULT_QUALITY
from imagenet_mds.vocabulary import StoredForm
from imagenet_mds_convert.jpeg.walk import Frame
from imagenet_mds_convert.sources.base import MAX_FILE_BYTES

REENCODE_QUALITY = 95
"""JPEG quality of the few images that are not RGB or grayscale JPEG; stored without chroma subsampling."""

HALF_QUALITY = 90
"""JPEG quality of half-size copies. With tiles they add 18% to the bytes of ImageNet's images at 90, and 26% at 95,
which brings crops nearer to those of the whole image by 1.2 dB."""

HALF_FROM_PX = 128
"""Images with a shorter side get no half-size copy: a crop of them is hardly ever twice as large as a training size."""

_LIKELY_HALF_SHARE = 6
"""An image has about this many times the bytes of its half-size copy."""

_COMPILED_CHECK_FROM = 100_000
_JPEG_TABLES_BYTES = 600


@dataclass(frozen=True)
class Stored:
    """The bytes to store. `change` names the format that was turned into RGB JPEG, None if none was. `scaled` is
    whether the image was scaled down, `tiled` whether it has restart tiles. `half` is its half-size copy, if any."""

    image: bytes
    change: str | None = None
    scaled: bool = False
    tiled: bool = False
    half: bytes = b""


@dataclass(frozen=True)
class Scaling:
    """Scales larger images down and never smaller ones up: the longer side to `max_side` pixels, or the shorter one to
    `min_side`. Scaled images are stored as JPEG of this `quality`."""

    max_side: int | None = None
    min_side: int | None = None
    quality: int = DEFAULT_QUALITY

    def target(self, width: int, height: int) -> tuple[int, int] | None:
        """Width and height that an image is scaled to, None if it is not scaled."""
        if self.max_side is not None:
            wanted, given = self.max_side, max(width, height)
        elif self.min_side is not None:
            wanted, given = self.min_side, min(width, height)
        else:
            return None
        if given <= wanted:
            return None
        # Integers, rounded half up: no platform's floating point decides a byte of the dataset.
        first, second = ((2 * side * wanted + given) // (2 * given) for side in (width, height))
        return max(1, first), max(1, second)

    @property
    def most_pixels(self) -> int | None:
        """Pixels of a scaled photograph of 4:3, the most common shape; None if nothing is scaled."""
        if self.max_side is not None:
            return self.max_side * (self.max_side * 3 // 4)
        if self.min_side is not None:
            return self.min_side * (self.min_side * 4 // 3)
        return None


AS_IT_IS = Scaling()

Action = Literal["keep", "scale", "reencode", "pixels"]
"""Keep the file; scale it down as JPEG; turn it into RGB JPEG; store its pixels."""


def decide(frame: Frame | None, scaling: Scaling, form: StoredForm) -> Action:
    """Decide what becomes of an image.

    Args:
        frame: its JPEG header, None if it is not a JPEG.
        scaling: scales larger images down.
        form: how images are stored.
    """
    if form == "raw":
        return "pixels"
    if frame is None or not frame.is_stock:
        return "reencode"
    return "scale" if scaling.target(frame.width, frame.height) else "keep"


def compiled_check_pays(images: int) -> bool:
    """Whether checking this many images is faster by the compiled walk than by a decoder. Loading it takes each process
    a second, and it saves a fifth of a millisecond per image, which 20 processes gain from at this number."""
    return images >= _COMPILED_CHECK_FROM


def likely_bytes(size_bytes: int, scaling: Scaling, form: StoredForm, *, half: bool = False) -> int:
    """Estimate the size of an image as stored. It depends on nothing but the size of its file, which all sources of the
    same images agree on: raw images take 3 bytes per pixel, scaled JPEG half a byte per pixel plus its tables.

    Args:
        size_bytes: size of the file in the source.
        scaling: as in `prepare`; raw images need one.
        form: as in `prepare`.
        half: there is a half-size copy beside it.
    """
    if size_bytes > MAX_FILE_BYTES:
        return 0
    pixels = scaling.most_pixels
    if form == "raw":
        assert pixels is not None
        return 3 * pixels
    likely = size_bytes if pixels is None else min(size_bytes, _JPEG_TABLES_BYTES + pixels // 2)
    return likely + likely // _LIKELY_HALF_SHARE if half else likely
