"""Verifying finds every fault and says how to repair it; repairing restores it byte for byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_mds.cli.verify import verify
from imagenet_mds.dataset.manifest import WORK_FOLDER
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.images.policy import Stored
from tests.support.command import run
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, files, make_tree, noise
from tests.support.running import convert_here
from tests.support.sources import make_images, put_archives


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """A dataset to break."""
    shutil.copytree(dataset, tmp_path / "mds")
    return tmp_path / "mds"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _edit(path: Path) -> None:
    index = json.loads(path.read_bytes())
    index["shards"][0]["samples"] += 1
    path.write_text(json.dumps(index))


def _spoil(path: Path) -> None:
    path.write_bytes(b"{")


def _swap(path: Path) -> None:
    first, second, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([second, first, *others]))


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("train/shard.00003.mds", _flip, "its content's xxh64 is "),
    ("train/shard.00000.mds", Path.unlink, "missing"),
    ("val/shard.00001.mds", _cut, " bytes, the manifest has "),
    ("train/index.json", _edit, "differs from the manifest"),
    ("train/index.json", _spoil, "not JSON"),
    ("val/index.json", Path.unlink, "missing"),
    ("train/keys.txt", Path.unlink, "missing"),
    ("val/keys.txt", _swap, "differs from the manifest"),
]


def test_a_whole_dataset_is_reported_to_be_whole(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for deep in (False, True):
        assert verify(str(dataset), deep=deep) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{dataset}/train: 19 shards, 158 images, all as the manifest has it",
            f"{dataset}/val: 6 shards, 50 images, all as the manifest has it",
        ]


@pytest.mark.parametrize(("name", "damage", "reason"), FAULTS)
def test_each_fault_is_found_named_and_repaired(
    copy: Path,
    dataset: Path,
    tree: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    damage(copy / name)
    assert verify(str(copy)) == 1
    said = capsys.readouterr()
    assert f"broken: {copy}/{name}: " in said.out
    assert reason in said.out
    assert said.out.count("broken: ") == 1
    assert said.err == (
        f"imagenet-mds: 1 broken file; `imagenet-mds verify {copy} --repair SOURCE` rebuilds just those\n"
    )
    others = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path != copy / name}
    assert verify(str(copy), repair=str(tree)) == 0
    assert f"repaired: {copy}/{name}\n" in capsys.readouterr().out
    assert files(copy) == files(dataset)
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_many_faults_are_found_and_repaired_at_once_by_the_command(copy: Path, dataset: Path, tree: Path) -> None:
    for name, damage, _ in (FAULTS[place] for place in (0, 1, 2, 3, 5, 6, 7)):
        damage(copy / name)
    found = run("verify", copy)
    assert (found.status, found.out.count("broken: ")) == (1, 7)
    assert "imagenet-mds: 7 broken files" in found.err
    repaired = run("verify", copy, "--repair", tree)
    assert (repaired.status, repaired.err) == (0, "")
    assert repaired.out.count("repaired: ") == 7
    assert files(copy) == files(dataset)


def test_repair_with_another_source_is_refused_with_both_names(copy: Path, small_tree: Path) -> None:
    _flip(copy / "train" / "shard.00003.mds")
    before = files(copy)
    with pytest.raises(UserError, match=r"was made from another source \(160 images, \w{16}; this one has 8 images, "):
        verify(str(copy), repair=str(small_tree))
    assert files(copy) == before


def test_repair_that_gives_other_bytes_names_the_versions_that_differ(
    copy: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_at(copy / "train")
    assert manifest.versions.keys() == {"imagenet-mds", "pillow", "simplejpeg"}
    first = copy / "train" / manifest.shards[0].basename
    _flip(first)
    other = manifest.versions | {"simplejpeg": "9.9"}
    monkeypatch.setattr("imagenet_mds_convert.verify.versions", lambda: other)
    # As if these versions encoded an image differently.
    monkeypatch.setattr("imagenet_mds_convert.shards.build.prepare", lambda data, *_: Stored(data + b"\0"))
    with pytest.raises(WorldError) as caught:
        verify(str(copy), repair=str(tree))
    assert str(caught.value).endswith(
        "the source's images have changed since, or other versions encode them differently "
        f"(simplejpeg {manifest.versions['simplejpeg']}, now 9.9)"
    )


@pytest.mark.usefixtures("in_process")
def test_repair_takes_the_same_images_from_another_kind_of_source(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    archives = put_archives(tree, tmp_path / "archives")
    convert_here(tree, tmp_path / "mds")
    whole = files(tmp_path / "mds")
    for split in ("train", "val"):
        for shard in (tmp_path / "mds" / split).glob("*.mds"):
            shard.unlink()
        (tmp_path / "mds" / split / "keys.txt").unlink()
    assert verify(str(tmp_path / "mds"), repair=str(archives)) == 0
    assert files(tmp_path / "mds") == whole


def test_repair_from_images_that_have_changed_is_refused_and_replaces_nothing(
    copy: Path, tree: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "tree"
    shutil.copytree(tree, changed)
    for path in (changed / "train").glob("*/*"):
        data = path.read_bytes()
        path.write_bytes(data[:-3] + b"\0" + data[-2:])
    _flip(copy / "train" / "shard.00003.mds")
    before = files(copy)
    with pytest.raises(WorldError, match=r"shard\.00003\.mds cannot be rebuilt: the source now gives \w+ and the mani"):
        verify(str(copy), repair=str(changed))
    assert files(copy) == before


@pytest.mark.usefixtures("in_process")
def test_deep_names_every_image_that_does_not_decode_and_promises_no_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(tmp_path / "tree", n00000001=3, n00000002=3)
    undecodable = encoded(noise()).replace(b"\xff\xdb", b"\xff\xfe")
    bad = ["n00000001/n00000001_0.JPEG", "n00000002/n00000002_1.JPEG", "n00000002/n00000002_2.JPEG"]
    for key in bad:
        (tree / "train" / key).write_bytes(undecodable)
    dest = tmp_path / "mds"
    convert_here(tree, dest, check="structure", shard_size="64KiB")
    before = files(dest)
    assert verify(str(dest)) == 0
    for repair in (None, str(tree)):
        capsys.readouterr()
        assert verify(str(dest), deep=True, repair=repair) == 1
        said, complaint = capsys.readouterr()
        lines = [line for line in said.splitlines() if line.startswith("does not decode: ")]
        assert sorted(line.split()[3] for line in lines) == bad
        assert all("/train/shard.00000.mds): does not decode (" in line for line in lines)
        assert "repair" not in said + complaint
        assert complaint == (
            "imagenet-mds: 3 images of intact shards cannot be decoded: the source has them like that. To leave them "
            "out, convert again with `--check decode --overwrite`; to have them, replace them in the source first; "
            "to train without them as it is, pass data.damaged=black\n"
        )
    assert files(dest) == before
    assert convert_here(tree, dest, check="decode", shard_size="64KiB", overwrite=True) == 0
    assert verify(str(dest), deep=True) == 0
    # Without keys, images are named by number.
    convert_here(tree, dest, check="structure", shard_size="64KiB", overwrite=True)
    (dest / "train" / "keys.txt").unlink()
    capsys.readouterr()
    assert verify(str(dest), deep=True) == 1
    assert capsys.readouterr().out.count("does not decode: sample ") == 3


def test_what_is_no_dataset_is_reported(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no dataset at"):
        verify(str(tmp_path / "none"))
    shutil.copytree(dataset / "val", tmp_path / "half" / "val")
    (tmp_path / "half" / "train" / WORK_FOLDER).mkdir(parents=True)
    with pytest.raises(UserError, match=r"train is not complete: run the same `imagenet-mds convert` again"):
        verify(str(tmp_path / "half"))


def test_a_source_that_is_not_there_is_reported_before_anything_is_hashed(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _flip(copy / "train" / "shard.00003.mds")
    with pytest.raises(UserError, match="there is no source at"):
        verify(str(copy), repair=str(copy / "none"))
    assert capsys.readouterr().out == ""


def test_a_repair_waits_for_no_conversion_and_mixes_with_none(
    copy: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "val" / "shard.00001.mds").unlink()
    with locked_folder(copy / "val"), pytest.raises(UserError, match="val is being converted to by another process"):
        verify(str(copy), repair=str(tree))
    other = manifest_at(copy / "val").model_copy(update={"fingerprint": "another"})
    monkeypatch.setattr(
        "imagenet_mds_convert.verify.read_dataset", lambda location: [(LocalStorage(copy / "val"), other)]
    )
    with pytest.raises(UserError, match="val was converted again in the meantime: verify it again"):
        verify(str(copy), repair=str(tree))
    assert not (copy / "val" / "shard.00001.mds").exists()
