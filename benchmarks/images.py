"""Images for the benchmarks: photographs of the user's, or drawn ones, which take as long to read as those of ImageNet.

Drawn images match ImageNet in size (mostly 500 x 375 pixels), in bytes (107 kB on average), in encoding (qualities of
90 to 96, four of five images with halved chroma) and in their spectrum (1/f, as in photographs), which decides how many
coefficients a block has. What they show does not matter. ImageNet itself may not be passed on; a user may have it.
"""

import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10

_SIZES = ((500, 375),) * 12 + ((375, 500),) * 3 + ((500, 333),) * 3 + ((333, 500), (640, 480))
"""Widths and heights, all with the same probability."""

_FALLOFF = 1.1
_CONTRAST, _CONTRAST_SPREAD = 29, 0.3
_GRAIN = 2
"""The exponent of the falloff of amplitude with frequency; the median contrast in levels, and the standard deviation of
its logarithm; the sensor noise in levels. Together they give 107 kB."""


def make_image(seed: int, path: Path) -> None:
    """Draw the image of a seed and write it as a JPEG."""
    random = np.random.Generator(np.random.PCG64(seed))
    width, height = _SIZES[random.integers(len(_SIZES))]
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / width) ** _FALLOFF
    planes = []
    for _ in range(3):
        noise = random.normal(size=(2, height, width // 2 + 1))
        plane = np.fft.irfft2((noise[0] + 1j * noise[1]) * falloff, (height, width))
        planes.append(plane / plane.std())
    grey = planes[0][..., None]
    contrast = _CONTRAST * random.lognormal(0, _CONTRAST_SPREAD)
    # Most of the contrast of photographs is in their brightness.
    pixels = 128 + contrast * (0.85 * grey + 0.3 * np.stack(planes, -1)) + random.normal(0, _GRAIN, (height, width, 1))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
        path,
        "JPEG",
        quality=int(random.integers(90, 97)),
        subsampling="4:2:0" if random.random() < 0.8 else "4:4:4",
    )


def make_tree(root: Path, images: int) -> int:
    """Draw images as a tree of class folders, `root`/train/<wnid>/*.JPEG; return their size in bytes."""
    places = _places(root, images)
    with multiprocessing.Pool() as pool:
        pool.starmap(make_image, enumerate(places))
    return sum(path.stat().st_size for path in places)


def photos_in(folder: Path) -> list[Path]:
    """The JPEG files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def copy_tree(root: Path, photos: Sequence[Path]) -> None:
    """Copy photographs into a tree as `make_tree` draws it."""
    for photo, place in zip(photos, _places(root, len(photos)), strict=True):
        shutil.copyfile(photo, place)


def _places(root: Path, images: int) -> list[Path]:
    places = []
    for number in range(images):
        folder = root / "train" / f"n{number % CLASSES:08}"
        folder.mkdir(parents=True, exist_ok=True)
        places.append(folder / f"n{number % CLASSES:08}_{number}.JPEG")
    return places
