"""Scaled images, duplicates, and the summary of a conversion for people and programs."""

import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import CheckLevel
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.images.policy import Scaling, Stored
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.shards.build import run_shard_task
from imagenet_mds_convert.sources import open_source
from tests.support.command import done
from tests.support.datasets import keys_at, manifest_at
from tests.support.drawing import encoded, noise
from tests.support.running import convert_here
from tests.support.shards import read_shard

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(16, 1000))
def test_images_shrink_to_the_side_and_never_grow(width: int, height: int, side: int) -> None:
    for scaling, longest in ((Scaling(max_side=side), max), (Scaling(min_side=side), min)):
        target = scaling.target(width, height)
        if longest(width, height) <= side:
            assert target is None
            continue
        assert target is not None
        assert longest(target) == side
        # The other side is within half a pixel of the same shape.
        assert abs(target[0] * height - target[1] * width) <= max(width, height)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """An image without details that scaling would lose."""
    return noise().convert(mode).resize((8, 6)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("check", ["decode", "structure", "none"])
def test_a_scaled_image_is_the_lanczos_of_the_whole(mode: str, check: CheckLevel) -> None:
    buffer = io.BytesIO()
    smooth(900, 600, mode).save(buffer, "JPEG", quality=95)
    stored = prepare(buffer.getvalue(), check, Scaling(max_side=120, quality=95))
    assert stored.scaled
    assert (stored.change is None) == (mode != "CMYK")
    with Image.open(io.BytesIO(stored.image)) as image, Image.open(io.BytesIO(buffer.getvalue())) as whole:
        assert image.size == (120, 80)
        assert image.mode == ("L" if mode == "L" else "RGB")
        expected = whole.convert(image.mode).resize((120, 80), Image.Resampling.LANCZOS)
        pairs = zip(image.tobytes(), expected.tobytes(), strict=True)
        assert max(abs(one - other) for one, other in pairs) <= 12


def test_a_small_image_passes_through_untouched() -> None:
    data = encoded(noise())
    assert prepare(data, "none", Scaling(max_side=4000)) == Stored(data)
    assert prepare(data, "decode", Scaling(min_side=4000)) == Stored(data)


def test_scaling_is_in_the_dataset_and_in_its_manifest(tree: Path, tmp_path: Path) -> None:
    assert convert_here(tree, tmp_path, shard_size="64KiB", max_side=100, quality=80) == 0
    manifest = manifest_at(tmp_path / "val")
    sizes = []
    for shard in manifest.shards:
        for record in read_shard(tmp_path / "val" / shard.basename):
            with Image.open(io.BytesIO(record.image)) as image:
                sizes.append(max(image.size))
    assert max(sizes) == 100
    # An image that had 100 pixels before was not scaled.
    assert 10 < manifest.scaled <= sizes.count(100)
    assert (manifest.policy.max_side, manifest.policy.quality) == (100, 80)
    with pytest.raises(UserError, match=r"another max_side \(100, now None\); another quality \(80, now 90\)"):
        convert_here(tree, tmp_path, shard_size="64KiB")


def test_both_sides_at_once_are_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --max-side or --min-side, not both"):
        convert_here(tree, tmp_path / "mds", max_side=100, min_side=50)


def test_the_same_file_twice_is_reported_in_a_class_and_across_classes(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "tree"))
    first, second = sorted((copy / "val").iterdir())[:2]
    original = sorted(first.iterdir())[1]
    shutil.copy(original, first / "again.JPEG")
    shutil.copy(original, second / "elsewhere.JPEG")
    convert_here(copy, tmp_path / "mds", split="val")
    manifest = manifest_at(tmp_path / "mds" / "val")
    keys = keys_at(tmp_path / "mds" / "val")
    said = capsys.readouterr().out
    same = {f"{first.name}/again.JPEG", f"{first.name}/{original.name}", f"{second.name}/elsewhere.JPEG"}
    (of,) = {duplicate.of for duplicate in manifest.duplicates}
    assert {of, *(duplicate.key for duplicate in manifest.duplicates)} == same
    for duplicate in manifest.duplicates:
        assert keys.index(of) < keys.index(duplicate.key)
        assert f"duplicate: {duplicate.key}: the same file as {of}" in said


@pytest.mark.usefixtures("in_process")
def test_a_file_in_both_splits_is_reported(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "tree"))
    (folder, *_) = sorted((copy / "val").iterdir())
    for path in sorted((copy / "train" / folder.name).iterdir())[3:5]:
        shutil.copy(path, folder / f"again_{path.name}")
    shutil.copy(path, folder / f"once_more_{path.name}")
    convert_here(copy, tmp_path / "mds")
    assert capsys.readouterr().out.count("duplicate: 3 files of val in the other split too") == 1


def test_the_summary_says_where_the_time_went(tree: Path, tmp_path: Path) -> None:
    outcome = done("convert", tree, tmp_path / "mds", "--split", "val")
    assert "images/s" in outcome.out
    assert all(part in outcome.out for part in ("read ", "decode ", "pack ", "write "))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("log_json", [False, True])
def test_a_continuation_counts_what_it_made_alone(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, log_json: bool
) -> None:
    conversion = SplitConversion.plan_for(
        open_source(str(tree)), "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096)
    )
    conversion.mark_started()
    for shard in range(conversion.plan.shards - 1):
        run_shard_task(conversion.task(shard))
    # A clock on which making the last shard takes seconds.
    clock = itertools.count(0, 0.5)
    monkeypatch.setattr("imagenet_mds_convert.run.time.monotonic", lambda: next(clock))
    assert convert_here(tree, tmp_path, split="train", log_json=log_json) == 0
    said = capsys.readouterr().out
    # Two of the 160 shards have one broken image each, and therefore no file.
    if log_json:
        line = json.loads(said)
        assert (line["images"], line["shards"], line["kept_shards"], line["made_images"]) == (158, 158, 157, 1)
    else:
        assert ": 158 images in 158 shards (157 of them from before), " in said
        assert re.search(r"^  [01] images/s, 0 MB/s with 1 worker; ", said, re.MULTILINE)


def test_programs_get_json(tree: Path, tmp_path: Path) -> None:
    outcome = done("convert", tree, tmp_path / "mds", "--log-json", "--workers", 1)
    lines: list[dict[str, Any]] = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(line["event"], line["split"]) for line in lines] == [("done", "train"), ("done", "val")]
    manifest = manifest_at(tmp_path / "mds" / "train")
    assert lines[0]["fingerprint"] == manifest.fingerprint
    assert (lines[0]["images"], lines[0]["left_out"]) == (manifest.samples, 2)
    assert lines[0]["worker_seconds"].keys() == {"read", "decode", "pack", "write"}
    assert all(seconds > 0 for seconds in lines[0]["worker_seconds"].values())


@pytest.mark.usefixtures("in_process")
def test_programs_get_json_of_everything(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted = tmp_path / "noted"
    shutil.copytree(tree, noted)
    for split in ("train", "val"):
        (noted / split / "n90000000").rename(noted / split / "no wnid")

    def said(**options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        convert_here(noted, tmp_path / "mds", log_json=True, **options)
        out, err = capsys.readouterr()
        notes = [json.loads(line) for line in err.splitlines()]
        # Where converting takes longer, a line of progress is due.
        notes = [line for line in notes if line["event"] != "progress"]
        return [json.loads(line) for line in out.splitlines()], notes

    plans, notes = said(plan=True)
    assert [(line["event"], line["split"], line["images"]) for line in plans] == [
        ("plan", "train", 160),
        ("plan", "val", 50),
    ]
    assert all(line["bytes"] > 0 and line["minutes"] >= 0 and line["free_bytes"] > 0 for line in plans)
    assert [line["event"] for line in notes] == ["note"]
    assert notes[0]["note"].endswith(" no wnid")
    made, complaints = said(strict=True)
    assert [line["event"] for line in made] == ["done", "done"]
    assert complaints == [*notes, {"event": "strict", "left_out": 2, "not_taken": 0}]
    again, _ = said()
    same = ("split", "location", "images", "shards", "bytes", "fingerprint", "left_out")
    assert [line["event"] for line in again] == ["complete", "complete"]
    assert [[line[name] for name in same] for line in again] == [[line[name] for name in same] for line in made]
    remote = convert_here(noted, "s3://bucket/mds", log_json=True, plan=True)
    assert remote == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["s3_requests"] > 0 and line["s3_dollars_monthly"] > 0 for line in lines)
