"""A contact sheet: labelled images in a grid."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN_PX = 8
_LABEL_PX = 18
_BACKGROUND = (255, 255, 255)
_INK = (40, 40, 40)


def contact_sheet(images: Sequence[tuple[str, Image.Image]], *, columns: int, cell_px: int = 112) -> Image.Image:
    """Lay out images in rows, each scaled down to fit its cell, with its label below.

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
    font = ImageFont.load_default(13)
    for place, (label, image) in enumerate(images):
        left, top = _MARGIN_PX + place % columns * step_x, _MARGIN_PX + place // columns * step_y
        fitted = image.convert("RGB")
        fitted.thumbnail((cell_px, cell_px), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2))
        draw.text((left + cell_px / 2, top + cell_px + 2), label, _INK, font, anchor="ma")
    return sheet
