"""Small image files and trees of them, and the comparison of folders."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    """An image that compresses badly, so that its entropy-coded data is long."""
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image encoded as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_tree(root: Path, **images_per_class: int) -> Path:
    """`train/` and `val/` with the given classes, every image different."""
    for split, counts in (("train", images_per_class), ("val", dict.fromkeys(images_per_class, 1))):
        for label, (name, count) in enumerate(counts.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                jpeg = encoded(noise(seed=1000 * label + number + 500 * (split == "val")))
                (folder / f"{name}_{number}.JPEG").write_bytes(jpeg)
    return root


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, hidden ones included, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def folders(folder: Path) -> list[str]:
    """Every folder below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir())
