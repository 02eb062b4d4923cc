"""The contact sheet: small images enlarged, long labels wrapped and cut."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from imagenet_mds.report.contact_sheet import contact_sheet, wrapped

FONT = ImageFont.load_default(13)


@pytest.mark.parametrize("side", [1, 8, 32, 56, 112])
def test_a_small_image_is_enlarged_by_a_whole_factor(side: int) -> None:
    red = Image.new("RGB", (side, side), (200, 0, 0))
    sheet = np.asarray(contact_sheet([("red", red)], columns=1))
    assert int((sheet[..., 1] == 0).sum()) == (112 // side * side) ** 2


def test_a_large_image_fits_its_cell() -> None:
    sheet = contact_sheet([("wide", Image.new("RGB", (2000, 1000), (200, 0, 0)))] * 3, columns=2)
    assert sheet.size == (2 * 120 + 8, 2 * 153 + 8)


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("tench", 1),
        ("West Highland white terrier", 2),
        ("a name of very many words that goes on and on and on", 2),
        ("Donaudampfschifffahrtsgesellschaftskapitaen", 1),
        ("\u732b" * 40, 1),
        ("", 1),
    ],
)
def test_a_label_takes_at_most_two_lines_of_its_cell(label: str, lines: int) -> None:
    found = wrapped(label, FONT, 112)
    assert len(found) == lines
    assert all(FONT.getlength(line) <= 112 for line in found)
    assert found[0] in label or found[0].endswith("...")
    # Whatever the name, the sheet is drawn.
    contact_sheet([(label, Image.new("RGB", (10, 10)))], columns=1)
