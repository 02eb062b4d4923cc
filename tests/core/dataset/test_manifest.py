"""The manifest: a missing one is explained, and an inconsistent one is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.dataset.manifest import (
    MANIFEST_BASENAME,
    Policy,
    SourceEntry,
    content_fingerprint,
    conversion_fingerprint,
    read_keys,
)
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.local import LocalStorage
from tests.support.datasets import keys_at, manifest_at


def test_a_manifest_says_what_the_split_holds(dataset: Path) -> None:
    manifest = manifest_at(dataset / "train")
    assert (manifest.split, manifest.samples, manifest.source.samples) == ("train", 158, 160)
    assert sum(shard.samples for shard in manifest.shards) == manifest.samples
    assert manifest.size_bytes == sum(path.stat().st_size for path in (dataset / "train").glob("*.mds"))
    assert [entry.basename for entry in manifest.shards] == [shard.basename for shard in manifest.shards]
    assert len(keys_at(dataset / "train")) == manifest.samples
    assert manifest.classes_fingerprint == manifest_at(dataset / "val").classes_fingerprint


def test_a_manifest_records_no_time_place_or_speed(dataset: Path) -> None:
    manifest = json.loads((dataset / "train" / MANIFEST_BASENAME).read_bytes())
    assert sorted(manifest) == [
        "changed",
        "classes",
        "conversion",
        "duplicates",
        "fingerprint",
        "format",
        "half_bytes",
        "keys_xxh64",
        "left_out",
        "not_taken",
        "policy",
        "samples",
        "scaled",
        "shards",
        "source",
        "split",
        "tiled",
        "versions",
    ]
    assert str(dataset.parent) not in json.dumps(manifest)


def test_the_fingerprints_of_content_and_conversion_never_change() -> None:
    source = SourceEntry(kind="tree", samples=2, fingerprint="0123456789abcdef")
    assert conversion_fingerprint("train", source, Policy()) == "79fa7c26a1fef0bf"
    earlier = Policy(tiles=True)
    assert conversion_fingerprint("train", source, earlier) == "fd815656c38f563d"
    assert earlier.tile_growth_limit == 0.05, "its repair makes the same bytes"
    assert conversion_fingerprint("train", source, Policy(tiles=True, tile_growth=0.25)) != "fd815656c38f563d"
    assert content_fingerprint([], []) == "23ed6cdbf2403e14"


def _no_dataset(root: Path) -> None:
    root.rmdir()


def _foreign(root: Path) -> None:
    (root / "train").mkdir()
    (root / "train" / "index.json").write_text("{}")


def _incomplete(root: Path) -> None:
    (root / "train" / ".work").mkdir(parents=True)
    (root / "train" / "index.json").write_text("{}")


def _incomplete_before_the_index(root: Path) -> None:
    (root / "train" / ".work").mkdir(parents=True)


def _other_split(root: Path) -> None:
    (root / "val").mkdir()
    (root / "val" / MANIFEST_BASENAME).write_text("{}")


def _nothing(root: Path) -> None:
    assert root.is_dir()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_no_dataset, "there is no dataset at {root}: make one with `imagenet-mds convert SOURCE {root}`"),
        (_foreign, "{root}/train was not written by imagenet-mds: it has an index.json and no manifest.json"),
        (_incomplete, "{root}/train is not complete: run the same `imagenet-mds convert` again"),
        (_incomplete_before_the_index, "{root}/train is not complete"),
        (_other_split, "{root} has no train/ (it holds val): convert it"),
        (_nothing, "{root} has no train/ (it holds no split): convert it"),
    ],
)
def test_a_missing_manifest_is_explained(tmp_path: Path, prepare: Callable[[Path], None], words: str) -> None:
    root = tmp_path / "mds"
    root.mkdir()
    prepare(root)
    with pytest.raises(UserError) as caught:
        manifest_at(root / "train")
    assert words.format(root=root) in str(caught.value)


def test_an_unreadable_manifest_is_reported(tmp_path: Path) -> None:
    (tmp_path / "train" / MANIFEST_BASENAME).mkdir(parents=True)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: Is a directory"):
        manifest_at(tmp_path / "train")


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_set("shards", 0, "xxh64", to="0" * 16), "its fingerprint does not fit its shards"),
        (_set("shards", 0, "samples", to=1), "its fingerprint does not fit its shards"),
        (_set("classes", 0, "wnid", to="n00000000"), "its fingerprint does not fit its shards"),
        (_set("fingerprint", to="0" * 16), "its fingerprint does not fit its shards"),
        (_set("policy", "seed", to=1), "its conversion does not fit its source and policy"),
        (_set("source", "samples", to=161), "its conversion does not fit its source and policy"),
        (_set("split", to="val"), "its conversion does not fit its source and policy"),
        (_set("samples", to=157), "its shards do not add up to 157 samples"),
        (_set("classes", 0, "samples", to=1), "its classes do not add up to 158 samples"),
        (_set("format", to=2), "(format: Input should be 1)"),
        (_set("samples", to="158"), "(samples: Input should be a valid integer)"),
        (_set("note", to="mine"), "(note: Extra inputs are not permitted)"),
        (_set("policy", "shard_size_bytes", to=1), "(policy.shard_size_bytes: "),
        (lambda manifest: manifest.pop("source"), "(source: Field required)"),
    ],
)
def test_a_manifest_edited_by_hand_is_refused(
    dataset: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], words: str
) -> None:
    manifest = json.loads((dataset / "train" / MANIFEST_BASENAME).read_bytes())
    edit(manifest)
    (tmp_path / MANIFEST_BASENAME).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(") as caught:
        manifest_at(tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_file_that_is_not_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_BASENAME).write_text(text)
    with pytest.raises(
        UserError, match=r"restore it, or convert again with `imagenet-mds convert SOURCE .* --overwrite`"
    ):
        manifest_at(tmp_path)


def test_only_a_line_feed_ends_a_key(tmp_path: Path) -> None:
    keys = ["a/1.JPEG", "a/\u2028\x85\x0b\x1c 2.JPEG", "b/\u00e9.JPEG"]
    (tmp_path / "keys.txt").write_bytes("".join(f"{key}\n" for key in keys).encode())
    assert keys_at(tmp_path) == keys


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a/1.JPEG\n", "it has 1 line for 2 samples"),
        (b"", "it has 0 lines for 2 samples"),
        (b"a/\xff.JPEG\nb\n", "it is not UTF-8"),
        (None, "No such file or directory"),
    ],
)
def test_damaged_keys_are_one_line_with_what_to_do(tmp_path: Path, data: bytes | None, reason: str) -> None:
    if data is not None:
        (tmp_path / "keys.txt").write_bytes(data)
    with pytest.raises(WorldError) as caught:
        read_keys(LocalStorage(tmp_path), 2)
    assert str(caught.value) == (
        f"{tmp_path}/keys.txt cannot be used ({reason}): rebuild it with `imagenet-mds verify {tmp_path.parent} "
        f"--repair SOURCE`"
    )


def test_a_copied_dataset_reads_the_same(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "moved")
    assert manifest_at(tmp_path / "moved" / "val") == manifest_at(dataset / "val")
