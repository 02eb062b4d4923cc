"""A contact sheet: labelled pictures in a grid, for eyes."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN_PX = 8
_LABEL_PX = 18
_GROUND = (255, 255, 255)
_INK = (40, 40, 40)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], *, columns: int, cell_px: int = 112) -> Image.Image:
    """Lay out pictures in rows, each scaled to fit its cell, its label below.

    Args:
        pictures: (label, picture) in reading order, one at least.
        columns: pictures in a row.
        cell_px: the side of the square each picture fits into.

    Returns:
        An RGB picture.
    """
    rows = -(-len(pictures) // columns)
    step_x, step_y = cell_px + _MARGIN_PX, cell_px + _LABEL_PX + _MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + _MARGIN_PX, rows * step_y + _MARGIN_PX), _GROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for place, (label, picture) in enumerate(pictures):
        left, top = _MARGIN_PX + place % columns * step_x, _MARGIN_PX + place // columns * step_y
        fitted = picture.convert("RGB")
        fitted.thumbnail((cell_px, cell_px), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (cell_px - fitted.width) // 2, top + (cell_px - fitted.height) // 2))
        draw.text((left + cell_px / 2, top + cell_px + 2), label, _INK, font, anchor="ma")
    return sheet
