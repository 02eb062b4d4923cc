"""What becomes of a source image, and how large it will be."""

from dataclasses import dataclass
from typing import Literal

from imagenet_mds_convert.sources.base import MAX_FILE_BYTES

REENCODE_QUALITY = 95
"""Of the few images that are not RGB or grayscale JPEG; without chroma subsampling."""


@dataclass(frozen=True)
class Stored:
    """The bytes to store; `change` says what format was turned into RGB JPEG, None if none was; `scaled` whether the
    picture was made smaller, `tiled` whether it is stored with restart tiles."""

    image: bytes
    change: str | None = None
    scaled: bool = False
    tiled: bool = False


Form = Literal["file", "tiles", "raw"]
"""How a picture is stored: the file as it is, the file with restart tiles where it can have them, pixels."""


@dataclass(frozen=True)
class Scaling:
    """Makes larger pictures smaller, never smaller ones larger: the longer side to `max_side` pixels, or the shorter
    one to `min_side`; what is made smaller is stored as JPEG of this `quality`."""

    max_side: int | None = None
    min_side: int | None = None
    quality: int = 90

    def target(self, width: int, height: int) -> tuple[int, int] | None:
        """The size that a picture is made, None where it stays as it is."""
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
        """The pixels of a photograph of 4:3, which most have, when it is scaled; None where nothing is."""
        if self.max_side is not None:
            return self.max_side * (self.max_side * 3 // 4)
        if self.min_side is not None:
            return self.min_side * (self.min_side * 4 // 3)
        return None


_JPEG_TABLES_BYTES = 600


def likely_bytes(size_bytes: int, scaling: Scaling, form: Form) -> int:
    """How long an image will most likely be as it is stored, by no more than the size of its file, which every source
    of the same images has alike: pixels of 3 bytes, or JPEG of half a byte a pixel and its tables where it is made
    smaller.

    Args:
        size_bytes: of the file in the source.
        scaling: as `prepare` has it; raw pixels have one.
        form: as `prepare` has it.
    """
    if size_bytes > MAX_FILE_BYTES:
        return 0
    pixels = scaling.most_pixels
    if form == "raw":
        assert pixels is not None
        return 3 * pixels
    return size_bytes if pixels is None else min(size_bytes, _JPEG_TABLES_BYTES + pixels // 2)


_AS_IT_IS = Scaling()
