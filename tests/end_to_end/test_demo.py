"""The demo, small: too few images to learn from, which it must say."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from imagenet_mds.demo.draw import SHAPES, draw_image, jpeg
from imagenet_mds.demo.run import run_demo
from imagenet_mds.errors import UserError
from tests.support.datasets import manifest_at


@pytest.fixture(scope="module")
def small(module_folder: Path) -> tuple[Path, int]:
    """A demo of 24 images a class, and its status."""
    folder = module_folder / "here"
    return folder, run_demo(folder, train_per_class=24, val_per_class=3)


def test_it_says_honestly_that_it_did_not_learn(small: tuple[Path, int]) -> None:
    folder, status = small
    result = json.loads((folder / "runs" / "demo" / "result.json").read_bytes())
    assert status == (0 if result["top1"] >= 0.5 else 1)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{result['top1']:.1%} top-1, {result['top1'] * 10:.1f} times chance" in page


def test_it_was_killed_in_mid_epoch_and_went_on(small: tuple[Path, int]) -> None:
    folder, _ = small
    events = [json.loads(line) for line in (folder / "runs" / "demo" / "log.jsonl").read_text().splitlines()]
    starts = [event["batch"] for event in events if event["event"] == "start"]
    assert len(starts) == 2
    assert starts[1] > 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"continued from batch {starts[1]}" in page


def test_the_report_names_what_was_left_out_and_shows_the_pictures(small: tuple[Path, int]) -> None:
    folder, _ = small
    page = (folder / "report.html").read_text(encoding="utf-8")
    manifest = manifest_at(folder / "mds" / "train")
    assert len(manifest.left_out) == len(manifest.changed) == 2
    for entry in manifest.left_out:
        assert entry.key in page
        assert entry.reason in page
    assert "CMYK JPEG to RGB JPEG" in page
    assert set(re.findall(r'src="([^"]+)"', page)) == {"loss.svg", "contact_sheet.png"}
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 10 * 100


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="contains something other than a demo"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_is_a_function_of_shape_and_seed(shape: str) -> None:
    assert jpeg(draw_image(shape, "a")) == jpeg(draw_image(shape, "a"))
    assert jpeg(draw_image(shape, "a")) != jpeg(draw_image(shape, "b"))
