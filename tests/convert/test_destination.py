"""The destination of a conversion: what is refused, overwritten or left alone, and too small a disk."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.cli.inspect import inspect
from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.sources import open_source
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, files, make_tree, noise
from tests.support.running import convert_here

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 3}, "another seed (0, now 3)"),
        ({"check": "none"}, "another check (decode, now none)"),
        ({"shard_size": "8KiB"}, "another shard_size_bytes (4096, now 8192)"),
        ({"subset": "4"}, "another subset (None, now 4)"),
        ({"seed": 3, "check": "structure"}, "another check (decode, now structure); another seed (0, now 3)"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_another_conversion_at_the_destination_is_refused_with_both_names(
    small_tree: Path, tmp_path: Path, options: dict[str, Any], words: str, complete: bool
) -> None:
    source = open_source(str(small_tree))
    policy = Policy(shard_size_bytes=4096)
    conversion = SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), policy)
    conversion.mark_started()
    if complete:
        convert_split(conversion, workers=1)
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        convert_here(small_tree, tmp_path, **options)
    message = str(caught.value)
    assert f"{tmp_path}/train holds another conversion, {conversion.fingerprint}, and this one is " in message
    assert f"{words}. Give another destination, the same options, or --overwrite" in message
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"conversion": 1, "policy": {}, "source": {"kind": "tree", "samples": 1, "fingerprint": "0"}}',
        b'{"conversion": "0", "policy": {"seed": "x"}, "source": {"kind": "tree", "samples": 1, "fingerprint": "0"}}',
    ],
    ids=["empty", "bytes", "list", "nothing", "deep", "number", "policy"],
)
def test_a_garbled_record_of_what_is_being_made_is_reported_and_overwritten_on_request(
    small_tree: Path, tmp_path: Path, data: bytes
) -> None:
    convert_here(small_tree, tmp_path / "whole")
    work = tmp_path / "mds" / "train" / ".work"
    work.mkdir(parents=True)
    (work / "conversion.json").write_bytes(data)
    with pytest.raises(UserError, match=r"/train/\.work/conversion\.json is broken, .* --overwrite, or give another"):
        convert_here(small_tree, tmp_path / "mds")
    assert files(tmp_path / "mds") == {"train/.work/conversion.json": data}
    assert convert_here(small_tree, tmp_path / "mds", overwrite=True) == 0
    assert files(tmp_path / "mds") == files(tmp_path / "whole")


def test_a_changed_source_is_refused_with_both_names(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    convert_here(tree, tmp_path / "mds")
    old = manifest_at(tmp_path / "mds" / "train").source
    (tree / "train" / "n00000001" / "new.JPEG").write_bytes(encoded(noise()))
    with pytest.raises(UserError) as caught:
        convert_here(tree, tmp_path / "mds")
    assert f"another source (8 images, {old.fingerprint}; now 9 images, " in str(caught.value)


def test_another_class_makes_another_source_because_class_numbers_shift(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    convert_here(tree, tmp_path / "mds")
    (tree / "train" / "n00000000").mkdir()
    assert convert_here(tree, tmp_path / "mds") == 0  # a folder without an image is no class
    (tree / "train" / "n00000000" / "a.JPEG").write_bytes(encoded(noise()))
    for split in ("train", "val"):
        with pytest.raises(UserError, match="another source"):
            convert_here(tree, tmp_path / "mds", split=split)


def test_overwrite_makes_what_a_first_conversion_would(small_tree: Path, tmp_path: Path) -> None:
    convert_here(small_tree, tmp_path / "a", seed=1, shard_size="4KiB")
    assert convert_here(small_tree, tmp_path / "a", shard_size="64KiB", overwrite=True) == 0
    convert_here(small_tree, tmp_path / "b", shard_size="64KiB")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert convert_here(small_tree, tmp_path / "c", shard_size="64KiB", overwrite=True) == 0
    assert files(tmp_path / "c") == files(tmp_path / "b")


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("names", [["thesis.tex"], ["shard.00000.mds", "index.json"], ["manifest.json", "app.js"]])
def test_a_foreign_folder_is_neither_mixed_with_nor_removed(
    small_tree: Path, tmp_path: Path, names: list[str], overwrite: bool
) -> None:
    # In val/, the second split: nothing may be written to train/ either.
    (tmp_path / "val").mkdir()
    for name in names:
        (tmp_path / "val" / name).write_bytes(b"mine")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"holds something that imagenet-mds did not write|cannot be read"):
        convert_here(small_tree, tmp_path, overwrite=overwrite)
    assert files(tmp_path) == before


def test_a_dataset_that_lost_its_manifest_can_be_overwritten(small_tree: Path, tmp_path: Path) -> None:
    convert_here(small_tree, tmp_path)
    before = files(tmp_path)
    (tmp_path / "train" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"train has lost its manifest\.json: restore it, or .* --overwrite"):
        manifest_at(tmp_path / "train")
    convert_here(small_tree, tmp_path, overwrite=True)
    assert files(tmp_path) == before


def test_overwrite_spares_a_dataset_to_which_something_was_added(small_tree: Path, tmp_path: Path) -> None:
    convert_here(small_tree, tmp_path)
    (tmp_path / "train" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"did not write \(notes\.txt\): empty it yourself"):
        convert_here(small_tree, tmp_path, seed=1, overwrite=True)
    assert manifest_at(tmp_path / "train").policy.seed == 0


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("where", ["", "train"])
def test_a_file_in_place_of_a_folder_is_refused(small_tree: Path, tmp_path: Path, where: str, overwrite: bool) -> None:
    dest = tmp_path / "mds"
    (dest / where).parent.mkdir(exist_ok=True)
    (dest / where).write_bytes(b"mine")
    with pytest.raises(UserError, match="is a file"):
        convert_here(small_tree, dest, overwrite=overwrite)


def test_a_destination_below_a_file_is_reported(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"mds/train is a file or lies below one: give another destination"):
        convert_here(small_tree, tmp_path / "file" / "mds")


def test_an_address_as_destination_is_refused(small_tree: Path) -> None:
    with pytest.raises(UserError, match="gs://bucket/mds: give a folder or an s3:// address"):
        convert_here(small_tree, "gs://bucket/mds")


def test_too_small_a_disk_is_refused_before_anything_is_written(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 17_000_000
    asked: list[Path] = []

    def disk_usage(path: Path) -> object:
        asked.append(path)
        return type("Usage", (), {"free": free})

    monkeypatch.setattr("imagenet_mds.storage.local.shutil.disk_usage", disk_usage)
    tree = make_tree(tmp_path / "tree", n00000001=4, n00000002=2)
    large = tree / "train" / "n00000001" / "large.JPEG"
    large.write_bytes(encoded(noise()) + bytes(1_000_000))
    with pytest.raises(UserError) as caught:
        convert_here(tree, tmp_path / "mds")
    assert str(caught.value) == (
        f"{tmp_path}/mds/train needs about 0.0 GB more and its disk has 0.0 GB free: give a larger disk or a --subset"
    )
    assert not (tmp_path / "mds").exists()
    assert asked == [tmp_path]
    # The advice in the message works at the same destination.
    assert convert_here(tree, tmp_path / "mds", subset="2") == 0


def test_the_room_for_pixels_is_that_of_pixels(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagenet_mds_convert.run._SPARE_BYTES", 0)
    # Eight files of 900 bytes, which take 1,152 as pixels.
    free = 8 * 1000
    monkeypatch.setattr("imagenet_mds.storage.local.shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert convert_here(small_tree, tmp_path / "files") == 0
    with pytest.raises(UserError, match=r"train needs about 0\.0 GB more"):
        convert_here(small_tree, tmp_path / "pixels", raw=True, max_side=24)
    assert not (tmp_path / "pixels").exists()


def test_a_run_that_continues_asks_for_the_room_of_what_is_missing_alone(
    small_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_here(small_tree, tmp_path)
    monkeypatch.setattr("imagenet_mds.storage.local.shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert convert_here(small_tree, tmp_path) == 0


@pytest.mark.parametrize("inside", ["", "mds", "train", "val/n00000001"])
def test_a_destination_inside_the_source_is_refused(small_tree: Path, inside: str) -> None:
    with pytest.raises(UserError, match="lies inside the source"):
        convert_here(small_tree, small_tree / inside)


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("val", "train")])
def test_a_split_with_other_class_numbers_than_the_one_beside_it_is_refused(
    tmp_path: Path, first: str, second: str
) -> None:
    """Train and val come from two sources, so neither knows the other's classes."""
    for split, names in (("train", ("bee", "cat")), ("val", ("ant", "bee"))):
        for name in names:
            (tmp_path / split / split / name).mkdir(parents=True)
            (tmp_path / split / split / name / "a.JPEG").write_bytes(encoded(noise()))
    convert_here(tmp_path / first, tmp_path / "mds")
    before, alone = files(tmp_path / "mds"), {"train": "cat", "val": "ant"}
    with pytest.raises(UserError) as caught:
        convert_here(tmp_path / second, tmp_path / "mds")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/mds/{first} has 2 classes (")
    assert f"it alone has {alone[first]}, and this split has 2 classes (" in message
    assert f"it alone has {alone[second]}: a class would have two numbers. Convert both splits" in message
    assert files(tmp_path / "mds") == before


def test_a_class_that_arrives_between_the_splits_is_refused(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    convert_here(tree, tmp_path / "mds", split="train")
    shutil.copytree(tree / "train" / "n00000001", tree / "train" / "n00000000")
    with pytest.raises(UserError, match=r"this split has 3 classes \(\w+\), of which it alone has n00000000: a class"):
        convert_here(tree, tmp_path / "mds", split="val")


def test_an_empty_location_is_refused_and_is_not_the_current_folder(small_tree: Path, tmp_path: Path) -> None:
    calls = (
        lambda: convert_here(small_tree, ""),
        lambda: convert_here("", tmp_path),
        lambda: inspect(""),
    )
    for call in calls:
        with pytest.raises(UserError, match="a location is empty: give a folder"):
            call()


def test_a_link_that_leads_nowhere_is_no_destination(small_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match=r"link is a link to .*/none, which does not exist: give a folder"):
        convert_here(small_tree, tmp_path / "link")
    (tmp_path / "mds").mkdir()
    (tmp_path / "mds" / "train").symlink_to(tmp_path / "none")
    with pytest.raises(WorldError, match=r"File exists\. Finished work is kept: remove the file or the broken link in"):
        convert_here(small_tree, tmp_path / "mds")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, r"make room \([\d.,]+ GB are free\) and run the same command again"),
        (errno.EACCES, "allow this user to write there, or give another place, and run the same command again"),
        (errno.EROFS, "allow this user to write there, or give another place, and run the same command again"),
        (errno.EIO, "run the same command again"),
    ],
)
def test_the_advice_after_a_failed_write_fits_its_reason(
    small_tree: Path, tmp_path: Path, number: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalStorage) -> None:
        raise OSError(number, os.strerror(number))

    # As root, which tests may run as, every folder can be written.
    monkeypatch.setattr(LocalStorage, "lock", refuse)
    with pytest.raises(
        WorldError, match=f"train cannot be written: {os.strerror(number)}. Finished work is kept: {advice}$"
    ):
        convert_here(small_tree, tmp_path)
