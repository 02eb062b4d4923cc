"""The images that the benchmarks work on: drawn, with what decides how fast ImageNet's are read.

That is the pixels (mostly 500 x 375), the bytes (107 kB on average), where the bytes come from (qualities of 90 to 96,
four of five images with halved chroma) and the spectrum (1/f, as in photographs), which decides how many coefficients a
block has. What the pictures show decides nothing. ImageNet itself would be better still, and is nobody's to pass on.
"""

import multiprocessing
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10

_SIZES = ((500, 375),) * 12 + ((375, 500),) * 3 + ((500, 333),) * 3 + ((333, 500), (640, 480))
"""Widths and heights, each as likely as the next."""

_FALLOFF = 1.1
_CONTRAST, _CONTRAST_SPREAD = 29, 0.3
_GRAIN = 2
"""The power of the frequency with which amplitude falls; the median contrast in levels, and how far its logarithm
strays; the sensor's noise in levels. Together they make the 107 kB."""


def make_image(seed: int, path: Path) -> None:
    """Draw one."""
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
    # Most of what a photograph shows is in its brightness.
    picture = 128 + contrast * (0.85 * grey + 0.3 * np.stack(planes, -1)) + random.normal(0, _GRAIN, (height, width, 1))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
        path,
        "JPEG",
        quality=int(random.integers(90, 97)),
        subsampling="4:2:0" if random.random() < 0.8 else "4:4:4",
    )


def make_tree(root: Path, images: int) -> int:
    """Draw images as a tree of class folders, `root`/train/<wnid>/*.JPEG; return their bytes."""
    jobs = []
    for number in range(images):
        folder = root / "train" / f"n{number % CLASSES:08}"
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((number, folder / f"n{number % CLASSES:08}_{number}.JPEG"))
    with multiprocessing.Pool() as pool:
        pool.starmap(make_image, jobs)
    return sum(path.stat().st_size for _, path in jobs)
