"""A contact sheet: labelled images in a grid."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_MARGIN_PX = 8
_LINE_PX = 15
_LABEL_PX = 2 * _LINE_PX + 3
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


def contact_sheet(images: Sequence[tuple[str, Image.Image]], *, columns: int, cell_px: int = 112) -> Image.Image:
    """Lay out images in rows, each scaled to fit its cell, with its label below in at most two lines.

    Args:
        images: (label, image) in reading order, at least one.
        columns: images per row.
        cell_px: side of the square that each image fits into.

    Returns:
        An RGB image.
    """
    rows = -(-len(images) // columns)
    step_x, step_y = cell_px + _MARGIN_PX, cell_px + _LABEL_PX + _MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + _MARGIN_PX, rows * step_y + _MARGIN_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = label_font()
    for place, (label, image) in enumerate(images):
        left, top = _MARGIN_PX + place % columns * step_x, _MARGIN_PX + place // columns * step_y
        fitted = _fitted(image.convert("RGB"), cell_px)
        sheet.paste(fitted, (left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2))
        for line, text in enumerate(wrapped(label, font, cell_px)):
            draw.text((left + cell_px / 2, top + cell_px + 2 + line * _LINE_PX), text, _INK, font, anchor="ma")
    return sheet


def label_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font with accents, Greek and Cyrillic, which Pillow's own has not: the one that matplotlib brings along."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if file.is_file():
            return ImageFont.truetype(str(file), 12)
    return ImageFont.load_default(13)


def _fitted(image: Image.Image, cell_px: int) -> Image.Image:
    """The image, as large as fits a cell. Small ones are enlarged by whole factors, so that their pixels show."""
    longer = max(image.size)
    if longer <= cell_px:
        factor = cell_px // longer
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((cell_px, cell_px), Image.Resampling.LANCZOS)
    return image


def wrapped(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """A label in at most two lines of a width, cut off with dots where that does not suffice."""
    lines, words = [""], label.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:2]
    if len(lines) > 2:
        kept[-1] += " ..."
    return [_cut(line, font, width_px) for line in kept]


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """The text, without as many letters at its end as do not fit."""
    if font.getlength(text) <= width_px:
        return text
    text = text.removesuffix(" ...")
    while text and font.getlength(f"{text}...") > width_px:
        text = text[:-1]
    return f"{text}..."
