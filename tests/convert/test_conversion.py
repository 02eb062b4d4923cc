"""A conversion from its options to its files and messages, in one process."""

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagenet_mds.cli.inspect import inspect
from imagenet_mds.cli.options import parse_size
from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.dataset.subsets import parse_subset
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.destination import clear_split
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.shards.build import Spent, run_shard_task
from imagenet_mds_convert.shards.record import ShardRecord
from imagenet_mds_convert.sources import open_source
from tests.support.datasets import keys_at, manifest_at
from tests.support.drawing import encoded, files, noise
from tests.support.running import convert_here
from tests.support.shards import read_shard

pytestmark = pytest.mark.usefixtures("in_process")


def _stored(split_folder: Path) -> dict[str, tuple[bytes, int]]:
    """The JPEG bytes and label of each key."""
    shards = [split_folder / shard.basename for shard in manifest_at(split_folder).shards]
    records = [record for shard in shards for record in read_shard(shard)]
    keys = keys_at(split_folder)
    return {key: (record.image, record.label) for key, record in zip(keys, records, strict=True)}


def test_jpeg_bytes_pass_through_untouched_and_what_did_not_is_listed(tree: Path, tmp_path: Path) -> None:
    assert convert_here(tree, tmp_path, shard_size="64KiB") == 0
    manifest = manifest_at(tmp_path / "train")
    assert sorted((entry.key, entry.change) for entry in manifest.changed) == [
        ("n90000000/n90000000_0.JPEG", "CMYK JPEG to RGB JPEG"),
        ("n90000001/n90000001_0.JPEG", "RGB PNG to RGB JPEG"),
    ]
    assert sorted(entry.key for entry in manifest.left_out) == [
        "n90000004/n90000004_0.JPEG",
        "n90000005/n90000005_0.JPEG",
    ]
    stored = _stored(tmp_path / "train")
    odd = {entry.key for entry in manifest.changed} | {entry.key for entry in manifest.left_out}
    in_source = {name for name in files(tree / "train") if name not in odd}
    assert {key for key in stored if key not in odd} == in_source
    wnids = [entry.wnid for entry in manifest.classes]
    for key, (jpeg, label) in stored.items():
        assert wnids[label] == key.split("/")[0]
        assert key in odd or jpeg == (tree / "train" / key).read_bytes()
    assert [entry.name for entry in manifest.classes][:3] == ["disc", "ring", "triangle"]
    assert [entry.samples for entry in manifest.classes] == [16, 16, 16, 16, 15, 15, 16, 16, 16, 16]


def test_shards_respect_the_size_but_for_a_single_larger_image(tree: Path, tmp_path: Path) -> None:
    convert_here(tree, tmp_path, split="val", shard_size="16KiB")
    for shard in manifest_at(tmp_path / "val").shards:
        images = [len(record.image) for record in read_shard(tmp_path / "val" / shard.basename)]
        assert sum(images) <= 16 << 10 or len(images) == 1


def test_a_subset_is_a_prefix_of_the_whole_and_of_larger_subsets(tree: Path, tmp_path: Path) -> None:
    for subset in ("30", "75", "full"):
        assert convert_here(tree, tmp_path / subset, subset=subset, check="none", shard_size="64KiB") == 0
    small, large, whole = (keys_at(tmp_path / subset / "train") for subset in ("30", "75", "full"))
    assert (len(small), len(large), len(whole)) == (30, 75, 159)
    assert small == large[:30]
    assert large == whole[:75]
    assert set(Counter(key.split("/")[0] for key in small).values()) == {3}
    # The validation split is complete in each.
    assert files(tmp_path / "30" / "val") == files(tmp_path / "full" / "val")


def test_a_subset_with_images_left_out_is_a_prefix_still(tree: Path, tmp_path: Path) -> None:
    convert_here(tree, tmp_path / "a", subset="40", split="train")
    convert_here(tree, tmp_path / "b", split="train")
    some, whole = keys_at(tmp_path / "a" / "train"), keys_at(tmp_path / "b" / "train")
    assert len(some) == 40 - len(manifest_at(tmp_path / "a" / "train").left_out)
    assert some == whole[: len(some)]


@pytest.mark.parametrize(
    ("check", "left_out"),
    [
        ("decode", {"no_image.JPEG", "cut.JPEG", "no_tables.JPEG", "empty.JPEG"}),
        ("structure", {"no_image.JPEG", "cut.JPEG", "empty.JPEG"}),
        ("none", {"no_image.JPEG", "empty.JPEG"}),
    ],
)
def test_each_check_finds_what_it_promises(small_tree: Path, tmp_path: Path, check: str, left_out: set[str]) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    whole = encoded(noise())
    for name, data in {
        "no_image": b"words",
        "cut": whole[:-9],
        "no_tables": whole.replace(b"\xff\xdb", b"\xff\xfe"),
        "empty": b"",
        "fine": whole,
    }.items():
        (tree / "train" / "n00000001" / f"{name}.JPEG").write_bytes(data)
    assert convert_here(tree, tmp_path / "mds", check=check) == 0
    manifest = manifest_at(tmp_path / "mds" / "train")
    assert {entry.key.split("/")[1] for entry in manifest.left_out} == left_out
    assert manifest.samples == 8 + 5 - len(left_out)


def test_an_image_that_cannot_be_read_is_left_out_with_the_systems_reason(
    small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    (tree / "train" / "n00000001" / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    (tree / "train" / "n00000001" / "loop.JPEG").symlink_to("loop.JPEG")
    (tree / "train" / "n00000001" / "folder.JPEG").mkdir()
    assert convert_here(tree, tmp_path / "mds") == 0
    manifest = manifest_at(tmp_path / "mds" / "train")
    assert {entry.key: entry.reason for entry in manifest.left_out} == {
        "n00000001/gone.JPEG": "cannot be read (No such file or directory)",
        "n00000001/loop.JPEG": "cannot be read (Too many levels of symbolic links)",
    }
    assert "left out: n00000001/gone.JPEG: cannot be read (No such file or directory)" in capsys.readouterr().out


def test_a_file_longer_than_any_image_is_left_out_unread_and_asks_for_no_room(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    with open(tree / "train" / "n00000001" / "huge.JPEG", "wb") as file:
        file.truncate(1 << 43)
    # No machine has the memory or disk for it.
    assert convert_here(tree, tmp_path / "plan", plan=True) == 0
    assert convert_here(tree, tmp_path / "mds") == 0
    manifest = manifest_at(tmp_path / "mds" / "train")
    assert [(entry.key, entry.reason) for entry in manifest.left_out] == [
        ("n00000001/huge.JPEG", "a file of 8,796,093,022,208 bytes, more than 268,435,456")
    ]
    assert manifest.samples == 8


def test_strict_ends_with_status_1_and_the_dataset_is_whole_still(
    tree: Path, small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_here(tree, tmp_path / "odd", strict=True, shard_size="1MiB") == 1
    assert capsys.readouterr().err.endswith("imagenet-mds: 2 images were left out, and --strict was given\n")
    assert manifest_at(tmp_path / "odd" / "val").samples == 50
    assert convert_here(tree, tmp_path / "odd", strict=True, shard_size="1MiB") == 1
    assert convert_here(small_tree, tmp_path / "clean", strict=True) == 0


def test_one_split_is_converted_alone(small_tree: Path, tmp_path: Path) -> None:
    assert convert_here(small_tree, tmp_path, split="val") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
    before = files(tmp_path / "val")
    assert convert_here(small_tree, tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "val"]
    assert files(tmp_path / "val") == before


def test_a_source_with_one_split_gives_a_dataset_with_one(small_tree: Path, tmp_path: Path) -> None:
    shutil.copytree(small_tree / "train", tmp_path / "tree" / "train")
    assert convert_here(tmp_path / "tree", tmp_path / "mds") == 0
    assert [path.name for path in (tmp_path / "mds").iterdir()] == ["train"]
    with pytest.raises(UserError, match="the source has no val/: it has train; see `--split`"):
        convert_here(tmp_path / "tree", tmp_path / "mds", split="val")


def test_a_plan_is_printed_and_nothing_is_written(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_here(tree, tmp_path / "mds", plan=True, shard_size="64KiB") == 0
    assert not list(tmp_path.iterdir())
    planned = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    convert_here(tree, tmp_path / "mds", shard_size="64KiB")
    for split in ("train", "val"):
        manifest = manifest_at(tmp_path / "mds" / split)
        size_bytes = sum(len(data) for data in files(tree / split).values())
        *counted, _minutes, named = planned[split]
        assert [*counted, named] == [
            str(manifest.source.samples),
            "10",
            str(len(manifest.shards)),
            f"{size_bytes:,}",
            manifest.conversion,
        ]


def test_the_same_again_does_nothing_and_says_so(
    small_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_here(small_tree, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert convert_here(small_tree, tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    fingerprints = [manifest_at(tmp_path / split).fingerprint for split in ("train", "val")]
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/train is complete already: 8 images ({fingerprints[0]})",
        f"{tmp_path}/val is complete already: 2 images ({fingerprints[1]})",
    ]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_a_shard_that_is_recorded_but_not_there_whole_is_made_again(
    small_tree: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    convert_here(small_tree, tmp_path / "whole")
    conversion = SplitConversion.plan_for(
        open_source(str(small_tree)), "train", LocalStorage(tmp_path / "mds"), Policy(shard_size_bytes=4096)
    )
    conversion.mark_started()
    for shard in range(conversion.plan.shards):
        run_shard_task(conversion.task(shard))
    damage(tmp_path / "mds" / "train" / "shard.00001.mds")
    fresh: dict[int, bool] = {}
    convert_split(conversion, 1, on_shard=lambda record, spent: fresh.update({record.shard: spent is not None}))
    assert fresh == {shard: shard == 1 for shard in range(conversion.plan.shards)}
    assert files(tmp_path / "mds" / "train") == files(tmp_path / "whole" / "train")


def test_records_of_another_conversion_are_not_believed(small_tree: Path, tmp_path: Path) -> None:
    source = open_source(str(small_tree))
    mine, other = (
        SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096, seed=seed))
        for seed in (0, 1)
    )
    mine.mark_started()
    for shard in range(other.plan.shards):
        run_shard_task(other.task(shard))
    fresh = []
    convert_split(mine, 1, on_shard=lambda record, spent: fresh.append(spent is not None))
    assert fresh == [True] * mine.plan.shards
    convert_here(small_tree, tmp_path / "alone")
    assert files(tmp_path / "train") == files(tmp_path / "alone" / "train")


def test_what_another_process_takes_away_before_the_end_is_not_called_complete(
    small_tree: Path, tmp_path: Path
) -> None:
    # As in S3, which has no locks.
    source, train = open_source(str(small_tree)), tmp_path / "train"
    mine, other = (
        SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096, seed=seed))
        for seed in (0, 1)
    )
    last = mine.plan.shards - 1

    def removes(record: ShardRecord, spent: Spent | None) -> None:
        if record.shard == last:
            (train / "shard.00001.mds").unlink()

    def begins(record: ShardRecord, spent: Spent | None) -> None:
        if record.shard == 1:
            clear_split(mine.destination)
            other.mark_started()

    with pytest.raises(WorldError, match=r"shard\.00001\.mds was changed: another process is writing to this"):
        convert_split(mine, 1, removes)
    with pytest.raises(UserError, match=r"another seed \(1, now 0\)"):
        convert_split(mine, 1, begins)
    assert not (train / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subset": "9"}, "--subset 9: train has 8 images; give that or less"),
        ({"subset": "tiny"}, "--subset 1,000: train has 8 images; give that or less"),
        ({"subset": "0"}, "--subset 0: give tiny, small, medium, large, full or a number of images"),
        ({"subset": "half"}, "--subset half: give tiny,"),
        ({"shard_size": "1KiB"}, "--shard-size 1,024: choose 4 KiB to 2 GiB"),
        ({"shard_size": "4GiB"}, "--shard-size 4,294,967,296: choose 4 KiB to 2 GiB"),
        ({"quality": 80}, "--quality is for scaled JPEG files: add --max-side or --min-side"),
        ({"quality": 80, "raw": True, "min_side": 64}, "--quality is for scaled JPEG files"),
        ({"shard_size": f"{'9' * 400}TB"}, "TB: pass a number with B, KB, MB"),
        ({"shard_size": "64 parsecs"}, "--shard-size 64 parsecs: pass a number with B, KB, MB"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    small_tree: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        convert_here(small_tree, tmp_path / "mds", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "mds").exists()


def test_sizes_and_subsets_are_read_as_people_write_them() -> None:
    sizes = {"64MiB": 64 << 20, "50 MB": 50_000_000, "8192": 8192, "1.5gib": 3 << 29, " 4KiB ": 4096, "5000B": 5000}
    assert {text: parse_size(text, "--shard-size") for text in sizes} == sizes
    subsets = {None: None, "full": None, "tiny": 1000, "large": 500_000, "25_000": 25_000, "25,000": 25_000}
    assert {text: parse_subset(text) for text in subsets} == subsets


def test_a_source_without_a_usable_image_gives_no_dataset(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    for path in (tree / "train").glob("*/*"):
        path.write_bytes(b"words")
    with pytest.raises(UserError, match=r"none of the 8 images of train can be used; the first, n0000000\d/n0000000"):
        convert_here(tree, tmp_path / "mds")
    assert not (tmp_path / "mds" / "train" / "manifest.json").exists()


def test_a_shard_of_which_nothing_can_be_used_has_no_file(small_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree)
    broken = tree / "train" / "n00000002" / "n00000002_1.JPEG"
    broken.write_bytes(b"words" * 2000)
    assert convert_here(tree, tmp_path / "mds") == 0
    train = tmp_path / "mds" / "train"
    manifest = manifest_at(train)
    assert manifest.samples == 7
    assert sorted(path.name for path in train.glob("*.mds")) == [shard.basename for shard in manifest.shards]
    assert len(_stored(train)) == 7
    assert convert_here(tree, tmp_path / "mds") == 0


def test_a_dataset_is_shown_in_a_screen(tree: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(str(dataset))
    shown = capsys.readouterr().out
    manifest = manifest_at(dataset / "train")
    assert f"train: {manifest.fingerprint}\n  158 images in 10 classes, 15 to 16 in each\n" in shown
    assert f"from a tree of 160 images ({manifest.source.fingerprint}); check decode, seed 0" in shown
    assert "  changed: n90000000/n90000000_0.JPEG: CMYK JPEG to RGB JPEG\n" in shown
    with pytest.raises(UserError, match="is a file: give a folder"):
        inspect(str(tree / "LOC_synset_mapping.txt"))


@pytest.mark.parametrize("data", [b"a/1.JPEG\n", b"\xff\n", None], ids=["short", "bytes", "missing"])
def test_a_sample_whose_key_is_damaged_is_reported(small_tree: Path, tmp_path: Path, data: bytes | None) -> None:
    convert_here(small_tree, tmp_path / "mds")
    keys = tmp_path / "mds" / "train" / "keys.txt"
    keys.unlink()
    if data is not None:
        keys.write_bytes(data)
    with pytest.raises(
        WorldError, match=r"train/keys\.txt cannot be used \(.*\): rebuild it with `imagenet-mds verify"
    ):
        inspect(str(tmp_path / "mds"), sample=3)


def test_an_image_stored_once_is_decoded_as_it_was(small_tree: Path, tmp_path: Path) -> None:
    convert_here(small_tree, tmp_path, check="none")
    for key, (jpeg, _) in _stored(tmp_path / "train").items():
        with Image.open(io.BytesIO(jpeg)) as stored, Image.open(small_tree / "train" / key) as source:
            assert stored.tobytes() == source.tobytes()
