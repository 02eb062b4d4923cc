"""The official archives: the tree's shards without unpacking, hostile tars, and refusals."""

import errno
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.cli.tables import progress_tracker
from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.archives import OFFICIAL_MD5, ArchivesSource
from imagenet_mds_convert.sources.base import Unusable
from imagenet_mds_convert.sources.checksums import verify_checksums
from tests.support.command import run
from tests.support.datasets import manifest_at
from tests.support.running import convert_here
from tests.support.sources import (
    DEVKIT_IDS,
    VAL_WNIDS,
    WNIDS,
    devkit,
    make_images,
    member,
    meta_mat,
    put_archives,
    shards,
    tar_of,
    val_name,
)

TRAIN, VAL, DEVKIT = OFFICIAL_MD5


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """The images of `make_images` as the official archives."""
    return put_archives(make_images(tmp_path / "tree"), tmp_path / "archives")


def put_class(root: Path, *members: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """An archive of train only, with these members in its first class and one image in its second."""
    root.mkdir(exist_ok=True)
    inner = [tar_of(members, tar_format), tar_of([member("n01443537_0.JPEG", b"x")])]
    outer = tar_of([member(f"{wnid}.tar", tar) for wnid, tar in zip(WNIDS, inner, strict=False)])
    (root / TRAIN).write_bytes(outer)
    return root


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_they_give_the_same_shards_as_the_tree(tmp_path: Path, tar_format: int, in_process: None) -> None:
    root = put_archives(make_images(tmp_path / "tree"), tmp_path / "archives", tar_format)
    assert convert_here(tmp_path / "tree", tmp_path / "a") == convert_here(root, tmp_path / "b") == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b") != {}
    for split in ("train", "val"):
        ours, theirs = manifest_at(tmp_path / "b" / split), manifest_at(tmp_path / "a" / split)
        assert (ours.fingerprint, ours.source.fingerprint) == (theirs.fingerprint, theirs.source.fingerprint)
        assert (ours.left_out, ours.changed) == (theirs.left_out, theirs.changed)
        assert (ours.source.kind, theirs.source.kind) == ("archives", "tree")
    assert sorted(path.name for path in root.iterdir()) == sorted(OFFICIAL_MD5)


def test_devkit_ids_are_never_class_numbers(archives: Path) -> None:
    """Synsets that are not ImageNet's are numbered by their index among the sorted wnids as well."""
    assert [wnid for wnid, _ in DEVKIT_IDS] != sorted(wnid for wnid, _ in DEVKIT_IDS)
    source = open_source(str(archives))
    assert isinstance(source, ArchivesSource)
    assert (source.kind, source.splits, len(source.classes)) == ("archives", ("train", "val"), 1000)
    labels = {sample.key: sample.label for sample in source.samples("val")}
    assert labels == {
        f"{wnid}/{val_name(number)}": source.classes.index(wnid) for number, wnid in enumerate(VAL_WNIDS, 1)
    }
    assert source.class_names[0] == "tench"
    assert pickle.loads(pickle.dumps(source)) == source

    (archives / TRAIN).unlink()
    others = [("n90000003", 1), ("n90000001", 2), ("n90000002", 3)]
    (archives / DEVKIT).write_bytes(devkit(meta_mat(others), "1\n2\n3\n3\n2\n1\n"))
    source = open_source(str(archives))
    assert (source.splits, source.classes) == (("val",), ("n90000001", "n90000002", "n90000003"))
    assert source.class_names == ("name of n90000001", "name of n90000002", "name of n90000003")
    assert [sample.label for sample in source.samples("val")] == [0, 0, 1, 1, 2, 2]


def test_train_alone_needs_no_devkit(archives: Path) -> None:
    (archives / VAL).unlink()
    (archives / DEVKIT).unlink()
    source = open_source(str(archives))
    assert source.splits == ("train",)
    assert len(source.samples("train")) == 14


def test_a_read_is_of_one_image_by_its_offset(archives: Path, tmp_path: Path) -> None:
    source = open_source(str(archives))
    for split in source.splits:
        for sample in source.samples(split):
            assert source.read(sample.where) == (tmp_path / "tree" / split / sample.key).read_bytes()
    (archives / TRAIN).write_bytes((archives / TRAIN).read_bytes()[:3000])
    last = source.samples("val")[0].where
    with pytest.raises(OSError, match="ends before byte") as caught:
        source.read((TRAIN, 2048, last[2] + 2048))
    assert caught.value.errno == errno.EIO


def test_listing_reads_headers_and_not_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [member(f"n01440764_{number}.JPEG", bytes(100_000)) for number in range(30)]
    root = put_class(tmp_path / "root", *images)
    read = 0
    whole = LocalStorage.read_range

    def counted(self: LocalStorage, name: str, start: int, length: int) -> bytes:
        nonlocal read
        read += length
        return whole(self, name, start, length)

    monkeypatch.setattr(LocalStorage, "read_range", counted)
    assert len(open_source(str(root)).samples("train")) == 31
    assert read < 50 * 4096 < (root / TRAIN).stat().st_size / 10


HOSTILE = [
    ("/etc/a.JPEG", {}, "a path that leads out of the archive, not followed"),
    ("../../a.JPEG", {}, "a path that leads out of the archive, not followed"),
    ("b/../../a.JPEG", {}, "a path that leads out of the archive, not followed"),
    ("a.JPEG", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link in the archive, not followed"),
    ("a.JPEG", {"type": tarfile.LNKTYPE, "linkname": "n01440764_0.JPEG"}, "a hard link in the archive, not followed"),
    ("a.JPEG", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "a device or something else that is no file"),
    ("a.JPEG", {"type": tarfile.FIFOTYPE}, "a device or something else that is no file"),
    ("a\nb.JPEG", {}, "a name that is not UTF-8 or has a line break in it"),
    ("a\udce9.JPEG", {}, "a name that is not UTF-8 or has a line break in it"),
]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("name", "attributes", "reason"), HOSTILE)
def test_what_leads_elsewhere_is_left_out_with_the_reason(
    tmp_path: Path, name: str, attributes: dict[str, Any], reason: str, tar_format: int
) -> None:
    image = member("n01440764_0.JPEG", b"image")
    root = put_class(tmp_path / "root", image, member(name, **attributes), tar_format=tar_format)
    source = open_source(str(root))
    found = {sample.key: sample for sample in source.samples("train")}
    printable = name.replace("\n", "\\n").replace("\udce9", "\\udce9")
    assert sorted(found) == sorted(
        ["n01440764/n01440764_0.JPEG", f"n01440764/{printable}", "n01443537/n01443537_0.JPEG"]
    )
    assert source.read(found["n01440764/n01440764_0.JPEG"].where) == b"image"
    with pytest.raises(Unusable, match=reason):
        source.read(found[f"n01440764/{printable}"].where)


def test_hostile_members_and_empty_files_are_in_the_report(tmp_path: Path, in_process: None) -> None:
    tree = make_images(tmp_path / "tree")
    images = [member(path.name, path.read_bytes()) for path in (tree / "train" / WNIDS[0]).iterdir()]
    link = member("n01440764_9999.JPEG", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    root = put_class(tmp_path / "root", link, *images)
    assert convert_here(root, tmp_path / "out") == 0
    left_out = {entry.key: entry.reason for entry in manifest_at(tmp_path / "out" / "train").left_out}
    assert left_out["n01440764/n01440764_9999.JPEG"] == "a symbolic link in the archive, not followed"
    assert left_out["n01440764/n01440764_3.JPEG"] == "empty file"


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_other_files_are_as_in_a_tree(tmp_path: Path, tar_format: int) -> None:
    long = "n01440764_" + 120 * "0" + ".JPEG"
    root = put_class(
        tmp_path / "root",
        member("n01440764", type=tarfile.DIRTYPE),
        member("n01440764/n01440764_1.JPEG", b"one"),
        member("./n01440764_2.JPEG", b"two"),
        member(long, b"long"),
        member("caf\u00e9.JPEG", b"accent"),
        member("readme.txt", b"text"),
        member("._n01440764_1.JPEG", b"hidden"),
        tar_format=tar_format,
    )
    source = open_source(str(root))
    read = {sample.key: source.read(sample.where) for sample in source.samples("train")}
    assert read == {
        "n01440764/n01440764_1.JPEG": b"one",
        "n01440764/n01440764_2.JPEG": b"two",
        f"n01440764/{long}": b"long",
        "n01440764/caf\u00e9.JPEG": b"accent",
        "n01443537/n01443537_0.JPEG": b"x",
    }


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    root = put_class(tmp_path / "root", member("a.JPEG", b"one"), member("./a.JPEG", b"two"))
    with pytest.raises(UserError, match=rf"{TRAIN} has n01440764/a\.JPEG twice: it is not the official one"):
        open_source(str(root)).samples("train")
    (root / TRAIN).write_bytes(tar_of([member("n01440764.tar", b""), member("x/n01440764.tar", b"")]))
    with pytest.raises(UserError, match=r"holds x/n01440764\.tar twice"):
        open_source(str(root))


def test_an_archive_cut_off_anywhere_is_reported_with_file_and_byte(archives: Path) -> None:
    for name, split in zip((TRAIN, VAL), SPLITS, strict=True):
        whole = (archives / name).read_bytes()
        end = len(whole.rstrip(b"\0"))
        for length in range(0, end, 1111):
            (archives / name).write_bytes(whole[:length])
            with pytest.raises(UserError, match=rf"{name} is truncated or broken at byte [0-9,]+ \(.+\): download"):
                open_source(str(archives)).samples(split)
        (archives / name).write_bytes(whole)
    assert len(open_source(str(archives)).samples("train")) == 14


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"archives holds neither ILSVRC2012_img_train\.tar nor ILSVRC2012_img_val\.tar"),
        ([VAL], r"ILSVRC2012_devkit_t12\.tar\.gz is missing, and val has no labels without it: .* `--split train`"),
        ([TRAIN, VAL], r"ILSVRC2012_devkit_t12\.tar\.gz is missing, and val has no labels without it"),
        (["ILSVRC2012_img_train_t3.tar"], r"img_train_t3\.tar is the archive of task 3 \(120 breeds of dogs\)"),
        (["ILSVRC2012_img_train_t3.tar", VAL, DEVKIT], "is the archive of task 3"),
    ],
)
def test_what_is_missing_is_reported(archives: Path, names: list[str], words: str) -> None:
    (archives / "ILSVRC2012_img_train_t3.tar").write_bytes((archives / TRAIN).read_bytes())
    for path in archives.iterdir():
        if path.name not in names:
            path.unlink()
    with pytest.raises(UserError, match=words):
        open_source(str(archives), "archives")


@pytest.mark.parametrize(
    ("outer", "words"),
    [
        ([member("n01440764_1.JPEG", b"x")], r"holds n01440764_1\.JPEG where n########\.tar should be"),
        (
            [member("n01440764.tar", type=tarfile.SYMTYPE, linkname="/dev/zero")],
            r"holds n01440764\.tar, a symbolic link in the archive, not followed: it is not the official one",
        ),
        ([member("n01440764.tar", tar_of([]))], "fewer than two classes"),
        ([member("n01440764.tar", b""), member("n01443537.tar", b"")], "lacks classes that val has: n02099601, n15075"),
    ],
)
def test_an_archive_of_train_that_is_not_the_official_one_is_refused(
    archives: Path, outer: list[tuple[tarfile.TarInfo, bytes]], words: str
) -> None:
    (archives / TRAIN).write_bytes(tar_of(outer))
    if "lacks" not in words:
        (archives / VAL).unlink()
    with pytest.raises(UserError, match=words):
        open_source(str(archives))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\x1f\x8b not gzip", "cannot be read"),
        (devkit()[:400], "cannot be read"),
        (devkit(b"no mat"), "cannot be read"),
        (devkit(meta_mat([("lion", 1)])), r"cannot be read \('lion' is not a wnid\): download it again"),
        (devkit(ground_truth="one\n"), "cannot be read"),
        (devkit(ground_truth="5\n"), "is not the official one, it has no 5: download it again"),
    ],
)
def test_a_broken_devkit_is_refused(archives: Path, content: bytes, words: str) -> None:
    (archives / DEVKIT).write_bytes(content)
    with pytest.raises(UserError, match=rf"ILSVRC2012_devkit_t12\.tar\.gz {words}"):
        open_source(str(archives))


def test_a_devkit_that_lacks_a_file_is_refused(archives: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(member("ILSVRC2012_devkit_t12/data/meta.mat", type=tarfile.SYMTYPE, linkname="/etc/passwd")[0])
    (archives / DEVKIT).write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"is not the official one, it has no 'data/meta\.mat'"):
        open_source(str(archives))


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00000007.JPEG", "ILSVRC2012_val_00000000.JPEG", "lion.JPEG"])
def test_a_validation_image_without_a_label_is_refused(archives: Path, name: str) -> None:
    (archives / VAL).write_bytes(tar_of([member(name, b"x")]))
    with pytest.raises(UserError, match=rf"{VAL} has {name}, and the devkit has labels only for images 1 to 6:"):
        open_source(str(archives)).samples("val")
    (archives / VAL).write_bytes(tar_of([]))
    with pytest.raises(UserError, match=rf"{VAL} has no images"):
        open_source(str(archives)).samples("val")


def test_sums_are_compared_with_the_official_ones(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(str(archives))
    with pytest.raises(UserError, match=rf"{TRAIN} has MD5 [0-9a-f]{{32}}, and the official one has 1d675b47d978889d"):
        verify_checksums(source, ["train", "val"])
    with pytest.raises(
        UserError, match=rf"{DEVKIT} has MD5 .* has fa75699e90414af021442c21a62c3abf: download it again"
    ):
        verify_checksums(source, ["val"])
    sums = {name: hashlib.md5((archives / name).read_bytes()).hexdigest() for name in OFFICIAL_MD5}
    monkeypatch.setattr("imagenet_mds_convert.sources.archives.OFFICIAL_MD5", sums)
    monkeypatch.setattr("imagenet_mds_convert.sources.checksums._CHUNK_BYTES", 1000)
    monkeypatch.setattr("imagenet_mds.progress.PLAIN_INTERVAL_SECONDS", 0.0)
    verify_checksums(source, ["train", "val"], progress_tracker())
    assert f"MD5 of {VAL}: " in capsys.readouterr().err
    monkeypatch.setattr("imagenet_mds_convert.sources.archives.TASK_3_MD5", sums[TRAIN])
    with pytest.raises(UserError, match=rf"{TRAIN} is the archive of task 3 .*: download {TRAIN} \(138 GB\)"):
        verify_checksums(source, ["train"])
    with pytest.raises(UserError, match=r"--verify-source: only the official archives have known MD5 sums, .* tree"):
        verify_checksums(open_source(str(tmp_path / "tree")), ["train"])
    (archives / DEVKIT).unlink()
    (archives / DEVKIT).mkdir()
    with pytest.raises(UserError, match=rf"{DEVKIT} no longer exists"):
        verify_checksums(source, ["val"])


def test_a_disk_that_fails_while_listing_is_reported(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: LocalStorage, name: str, start: int, length: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    source = open_source(str(archives))
    monkeypatch.setattr(LocalStorage, "read_range", refuse)
    for split, name in zip(SPLITS, (TRAIN, VAL), strict=True):
        with pytest.raises(UserError, match=rf"{name} cannot be read: Input/output error"):
            source.samples(split)
    with pytest.raises(UserError, match=rf"{TRAIN} cannot be read: Input/output error"):
        verify_checksums(source, ["train"])


def test_the_options_of_the_command_reach_the_source(archives: Path, tmp_path: Path) -> None:
    outcome = run("convert", archives, tmp_path / "out", "--verify-source", "--plan")
    assert (outcome.status, outcome.out) == (2, "")
    assert f"imagenet-mds: {archives}/{TRAIN} has MD5 " in outcome.err
    outcome = run("convert", archives, tmp_path / "out", "--source-format", "tree")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == f"imagenet-mds: {archives} has no folders: give the folder that holds train/ and val/\n"
    outcome = run("convert", archives, tmp_path / "out", "--workers", 1)
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "out" / "train" / ".work").exists()
