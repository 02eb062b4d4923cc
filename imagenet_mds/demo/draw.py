"""A small drawn image set in the ILSVRC2012 tree layout, learnable, and with the oddities of ImageNet.

It has ten classes, each a shape of random colour, position, size and rotation on a noisy background, so that only the
shape tells the class. Image sizes vary. Some images are grayscale, one is a CMYK JPEG, one a PNG named .JPEG, one
truncated, and one is not an image.
"""

import io
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from imagenet_mds.storage.atomic import write_atomic

Point = tuple[float, float]
Brush = Callable[[ImageDraw.ImageDraw, Callable[[float, float], Point], float, tuple[int, int, int]], None]
"""Draws a shape: `at(x, y)` maps the unit circle to pixels, followed by the scale in pixels and the colour."""

_SUPERSAMPLING = 2
_SHORT_SIDE_PX, _LONG_SIDE_PX = 80, 144
_GRAYSCALE_SHARE = 0.05
_QUALITY = 90


def _disc(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    x, y = at(0, 0)
    draw.ellipse((x - scale, y - scale, x + scale, y + scale), fill=colour)


def _ring(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    x, y = at(0, 0)
    draw.ellipse((x - scale, y - scale, x + scale, y + scale), outline=colour, width=max(2, round(scale * 0.3)))


def _polygon(corners: int, inner: float = 1.0) -> Brush:
    """Return a brush for a regular polygon or, with `inner` below 1, a star."""

    def draw_it(
        draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
    ) -> None:
        points = 2 * corners if inner < 1 else corners
        radii = [inner if inner < 1 and place % 2 else 1.0 for place in range(points)]
        angles = [2 * math.pi * place / points for place in range(points)]
        draw.polygon([at(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=colour)

    return draw_it


def _cross(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    width = max(2, round(scale * 0.45))
    draw.line((at(-1, 0), at(1, 0)), fill=colour, width=width)
    draw.line((at(0, -1), at(0, 1)), fill=colour, width=width)


def _bars(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    for place in (-0.8, 0.0, 0.8):
        draw.line((at(-1, place), at(1, place)), fill=colour, width=max(2, round(scale * 0.28)))


def _dots(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    radius = scale * 0.22
    for row in (-0.8, 0.0, 0.8):
        for column in (-0.8, 0.0, 0.8):
            x, y = at(column, row)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _checks(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    for row in range(4):
        for column in range(4):
            if (row + column) % 2 == 0:
                x, y = column / 2 - 1, row / 2 - 1
                corners = [at(x, y), at(x + 0.5, y), at(x + 0.5, y + 0.5), at(x, y + 0.5)]
                draw.polygon(corners, fill=colour)


def _spiral(
    draw: ImageDraw.ImageDraw, at: Callable[[float, float], Point], scale: float, colour: tuple[int, int, int]
) -> None:
    turns = [step / 60 for step in range(61)]
    points = [at(t * math.cos(5 * math.pi * t), t * math.sin(5 * math.pi * t)) for t in turns]
    draw.line(points, fill=colour, width=max(2, round(scale * 0.16)), joint="curve")


SHAPES: dict[str, Brush] = {
    "disc": _disc,
    "ring": _ring,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "star": _polygon(5, inner=0.4),
    "cross": _cross,
    "bars": _bars,
    "dots": _dots,
    "checks": _checks,
    "spiral": _spiral,
}


def wnid(shape: str) -> str:
    """Return the class folder's name of a shape: a wnid from a range that WordNet does not use."""
    return f"n9000{list(SHAPES).index(shape):04}"


def draw_image(shape: str, seed: str) -> Image.Image:
    """Draw an image. The same shape and seed give the same image."""
    dice = random.Random(f"{shape} {seed}")
    width, height = (dice.randint(_SHORT_SIDE_PX, _LONG_SIDE_PX) for _ in range(2))
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    dark, light = ([dice.randint(low, low + 90) for _ in range(3)] for low in (10, 150))
    ground, colour = (dark, light) if dice.random() < 0.5 else (light, dark)
    image = Image.new("RGB", size, (ground[0], ground[1], ground[2]))
    scale = min(size) * dice.uniform(0.28, 0.42)
    centre = (size[0] * dice.uniform(0.42, 0.58), size[1] * dice.uniform(0.42, 0.58))
    turn = dice.uniform(0, 2 * math.pi)

    def at(x: float, y: float) -> Point:
        return (
            centre[0] + scale * (x * math.cos(turn) - y * math.sin(turn)),
            centre[1] + scale * (x * math.sin(turn) + y * math.cos(turn)),
        )

    SHAPES[shape](ImageDraw.Draw(image), at, scale, (colour[0], colour[1], colour[2]))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    noise = np.random.Generator(np.random.PCG64(dice.getrandbits(32))).normal(0, 14, (height, width, 3))
    noisy = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return noisy.convert("L") if dice.random() < _GRAYSCALE_SHARE else noisy


def jpeg(image: Image.Image) -> bytes:
    """Encode an image as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def draw_tree(root: Path, *, train_per_class: int, val_per_class: int) -> int:
    """Draw the image set.

    Four training files are odd on purpose: a CMYK JPEG, a PNG named .JPEG, a truncated JPEG, and one that is not an
    image.

    Args:
        root: folder for `train/`, `val/` and the file with the class names.
        train_per_class: number of training images per class.
        val_per_class: number of validation images per class.

    Returns:
        The number of image files.
    """
    files = 0
    for split, count in (("train", train_per_class), ("val", val_per_class)):
        for shape in SHAPES:
            folder = root / split / wnid(shape)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = draw_image(shape, f"{split} {number}")
                (folder / f"{wnid(shape)}_{number}.JPEG").write_bytes(jpeg(image))
                files += 1
    _make_odd(root / "train")
    names = "".join(f"{wnid(shape)} {shape}\n" for shape in SHAPES)
    # Written last: it marks the set as complete.
    write_atomic(root / "LOC_synset_mapping.txt", names.encode("ascii"))
    return files


def _make_odd(train: Path) -> None:
    def path(shape: str) -> Path:
        return train / wnid(shape) / f"{wnid(shape)}_0.JPEG"

    draw_image("disc", "odd").convert("CMYK").save(path("disc"), "JPEG", quality=_QUALITY)
    draw_image("ring", "odd").save(path("ring"), "PNG")
    whole = path("star").read_bytes()
    path("star").write_bytes(whole[: len(whole) // 2])
    path("cross").write_bytes(b"this is not an image\n")
