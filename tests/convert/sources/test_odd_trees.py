"""Trees as people have them: system folders, empty classes, other suffixes, deeper folders, other names of a split."""

import io
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.names import IMAGE_SUFFIXES
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, noise
from tests.support.running import convert_here
from tests.support.sources import fill, keys_of

put = partial(fill, data=b"\xff\xd8\xff\xe0")
"""Files that begin like a JPEG."""

TWO = ("train/n01440764/a.JPEG", "train/n01443537/a.JPEG")


@pytest.mark.parametrize(
    "folder", ["lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"]
)
def test_a_folder_of_the_system_is_no_class_even_with_images_in_it(tmp_path: Path, folder: str) -> None:
    source = open_source(str(put(tmp_path, *TWO, f"train/{folder}/a.JPEG", f"train/n01440764/{folder}/b/c.JPEG")))
    assert len(source.classes) == 1000
    assert keys_of(source, "train") == ["n01440764/a.JPEG", "n01443537/a.JPEG"]
    assert source.warnings == (f"{tmp_path}/train has folders that are not read: {folder}",)


@pytest.mark.parametrize("others", [(), ("val/cat/a.JPEG",)], ids=["train alone", "with val"])
def test_a_folder_without_an_image_is_no_class_and_shifts_no_number(tmp_path: Path, others: tuple[str, ...]) -> None:
    source = open_source(str(put(tmp_path, "train/cat/a.JPEG", "train/dog/a.JPEG", "train/aaa/notes.txt", *others)))
    assert source.classes == ("cat", "dog")
    assert f"{tmp_path}/train has folders without an image, which are no classes: aaa" in source.warnings


def test_a_class_that_only_one_split_has_stays_a_class(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, "train/cat/a.JPEG", "train/dog/a.JPEG", "val/cat/", "val/dog/a.JPEG")))
    assert source.classes == ("cat", "dog")
    assert f"{tmp_path}/val has classes without an image: cat; if an extraction broke off, repeat it" in source.warnings


def test_an_empty_class_of_imagenet_is_named(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, *TWO, "train/n01491361/")))
    assert [sample.label for sample in source.samples("train")] == [0, 1]
    assert source.warnings[-1] == (
        f"{tmp_path}/train has classes without an image: n01491361; if an extraction broke off, repeat it"
    )


@pytest.mark.parametrize(
    ("closed", "names", "refused"),
    [
        ("private", TWO, False),
        ("n01491361", TWO, True),
        ("private", ("train/cat/a.JPEG", "train/dog/a.JPEG"), True),
        ("lost+found", ("train/cat/a.JPEG", "train/dog/a.JPEG"), False),
    ],
)
def test_an_unreadable_folder_is_passed_over_unless_it_may_be_a_class(
    tmp_path: Path, closed: str, names: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *names, f"train/{closed}/")
    whole = LocalStorage.listing

    def listing(self: LocalStorage) -> object:
        if self.name == closed:
            raise PermissionError(13, "Permission denied", closed)
        return whole(self)

    # As root, which tests may run as, every folder can be listed.
    monkeypatch.setattr(LocalStorage, "listing", listing)
    if refused:
        with pytest.raises(UserError, match=f"{closed} cannot be listed: Permission denied"):
            open_source(str(tmp_path))
        return
    assert f"{tmp_path}/train has folders that are not read: {closed}" in open_source(str(tmp_path)).warnings


def test_every_suffix_that_pillow_reads_is_taken() -> None:
    Image.init()
    reads = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    # Pillow names these and cannot decode them, or only on Windows.
    stubs = {".bufr", ".emf", ".wmf", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg"}
    assert reads - stubs <= IMAGE_SUFFIXES | {".qoi"}
    assert reads & stubs & IMAGE_SUFFIXES == set()


def test_every_suffix_is_taken_that_the_plugin_of_another_format_reads() -> None:
    Image.init()
    for suffix, name in Image.EXTENSION.items():
        if name in Image.OPEN or name not in Image.SAVE:
            continue
        buffer = io.BytesIO()
        Image.new("1", (8, 8)).save(buffer, name)
        try:
            Image.open(buffer).load()
        except UnidentifiedImageError:
            continue
        assert suffix in IMAGE_SUFFIXES


def test_images_of_other_formats_without_a_suffix_and_deeper_are_converted(tmp_path: Path, in_process: None) -> None:
    root, picture = tmp_path / "tree", Image.open(io.BytesIO(encoded(noise())))
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            folder = root / split / wnid
            (folder / "more" / "deeper").mkdir(parents=True)
            picture.save(folder / "a.webp", lossless=True)
            picture.save(folder / "b.BMP")
            picture.save(folder / "c.tif")
            shutil.copyfile(folder / "b.BMP", folder / "no suffix")
            (folder / "more" / "deeper" / "d.jpg").write_bytes(encoded(noise(seed=1)))
            (folder / "e.xml").write_bytes(b"<x/>")
            (folder / "README").write_bytes(b"text")
            (folder / "more" / "f.heic").write_bytes(b"x")
            (folder / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "labels.csv").write_bytes(b"x")
    assert convert_here(root, tmp_path / "mds") == 0
    manifest = manifest_at(tmp_path / "mds" / "train")
    assert (manifest.samples, manifest.left_out) == (10, [])
    assert [(entry.place, entry.suffix, entry.files, entry.example) for entry in manifest.not_taken] == [
        ("train/", ".csv", 1, "labels.csv"),
        ("train/<class>/", "", 2, "n01440764/README"),
        ("train/<class>/", ".xml", 2, "n01440764/e.xml"),
        ("train/<class>/*/", ".heic", 2, "n01440764/more/f.heic"),
    ]


def test_what_is_not_taken_is_said_and_strict_ends_with_1(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tree"
    for wnid in ("n01440764", "n01443537"):
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / "a.JPEG").write_bytes(encoded(noise()))
    assert convert_here(root, tmp_path / "a", strict=True) == 0
    (root / "train" / "n01440764" / "a.xml").write_bytes(b"<x/>")
    assert convert_here(root, tmp_path / "b", strict=True) == 1
    said = capsys.readouterr()
    assert "not taken: 1 .xml files in train/<class>/, such as n01440764/a.xml" in said.out
    assert "imagenet-mds: 1 files were not taken, and --strict was given" in said.err


def test_a_link_that_leads_back_is_reported_and_not_followed_for_ever(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    (tmp_path / "train" / "n01440764" / "again").symlink_to(tmp_path / "train" / "n01440764")
    with pytest.raises(UserError, match=r"lies more than 32 folders deep: a link probably leads back"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("folder", ["valid", "validation", "Val", "VALIDATION"])
def test_other_names_of_val_are_val(tmp_path: Path, folder: str) -> None:
    source = open_source(str(put(tmp_path, *TWO, f"{folder}/n01440764/b.JPEG")))
    assert source.splits == ("train", "val")
    (sample,) = source.samples("val")
    assert (sample.key, source.read(sample.where)) == ("n01440764/b.JPEG", b"\xff\xd8\xff\xe0")


def test_two_folders_of_one_split_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, *TWO, "val/n01440764/b.JPEG", "valid/n01440764/b.JPEG")
    with pytest.raises(UserError, match=r"has val twice, in val/ and in valid/: remove or rename one of them"):
        open_source(str(tmp_path))


def test_a_folder_that_is_not_used_is_named(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, *TWO, "test/a.JPEG", "lost+found/", ".cache/")))
    assert source.warnings == (f"{tmp_path} has folders that are not used: test",)


def test_folders_that_are_numbers_are_said_to_be_sorted_as_text(tmp_path: Path) -> None:
    source = open_source(str(put(tmp_path, *(f"train/{number}/a.JPEG" for number in range(12)))))
    assert source.classes[:4] == ("0", "1", "10", "11")
    assert source.warnings[-1] == (
        "class folders are numbers, and are sorted as text, as everywhere: 10 is class 2; pad them with zeros if their "
        "values should be the class numbers"
    )
    padded = open_source(str(put(tmp_path / "padded", *(f"train/{number:02}/a.JPEG" for number in range(12)))))
    assert not any("numbers" in note for note in padded.warnings)


def test_a_part_of_imagenet_is_said_once_and_can_be_numbered_alone(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tree"
    for split, wnids in (("train", ("n01440764", "n01443537", "n15075141")), ("val", ("n01443537", "n15075141"))):
        for wnid in wnids:
            (root / split / wnid).mkdir(parents=True)
            (root / split / wnid / f"{split}.JPEG").write_bytes(encoded(noise()))
    assert convert_here(root, tmp_path / "thousand") == 0
    said = capsys.readouterr().err
    note = "3 of the 1,000 classes have images, and a network will have 1,000 outputs; `--classes present` numbers"
    assert said.count(note) == 1
    assert "val has no image of 1 class: n01440764" in said
    assert convert_here(root, tmp_path / "three", classes="present") == 0
    assert "outputs" not in capsys.readouterr().err
    for split in ("train", "val"):
        manifest = manifest_at(tmp_path / "three" / split)
        assert [entry.wnid for entry in manifest.classes] == ["n01440764", "n01443537", "n15075141"]
        assert manifest.policy.classes == "present"
    # One split alone is numbered as beside the other, and continues what both began.
    shutil.rmtree(tmp_path / "three" / "val")
    assert convert_here(root, tmp_path / "three", classes="present", split="val") == 0
    assert [entry.samples for entry in manifest_at(tmp_path / "three" / "val").classes] == [0, 1, 1]
    with pytest.raises(UserError, match=r"another classes \(present, now imagenet\)"):
        convert_here(root, tmp_path / "three")


def test_val_alone_is_numbered_as_beside_train(tmp_path: Path) -> None:
    put(tmp_path, "train/ant/a.JPEG", "train/bee/a.JPEG", "train/cat/a.JPEG", "train/aaa/", "val/cat/a.JPEG")
    assert open_source(str(tmp_path), split="val").samples("val") == open_source(str(tmp_path)).samples("val")
    assert open_source(str(tmp_path), split="val").classes == ("ant", "bee", "cat")


def test_a_file_that_cannot_be_looked_into_is_left_to_be_named_as_unreadable(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    (tmp_path / "train" / "n01440764" / "no suffix").symlink_to(tmp_path / "nowhere")
    assert "n01440764/no suffix" in keys_of(open_source(str(tmp_path)), "train")


def test_a_class_spelled_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    """macOS stores names decomposed, so a val that was copied from one has other bytes in the same names."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    source = open_source(str(put(tmp_path, f"train/{composed}/a.JPEG", "train/tea/a.JPEG", f"val/{decomposed}/b.JPEG")))
    assert source.classes == (composed, "tea")
    (sample,) = source.samples("val")
    assert (sample.key, sample.label) == (f"{decomposed}/b.JPEG", 0)
    assert source.read(sample.where) == b"\xff\xd8\xff\xe0"
    put(tmp_path, f"train/{decomposed}/a.JPEG")
    with pytest.raises(UserError, match=f"train has two folders named {composed}, composed and decomposed"):
        open_source(str(tmp_path))


def test_a_val_without_class_folders_is_taken_from_all_places_that_its_table_lists(tmp_path: Path) -> None:
    put(tmp_path, *TWO, "val/a.JPEG", "val/images/b.JPEG", "val/images/more/c.JPEG", "val/old/d.JPEG", "val/old/e.xml")
    put(tmp_path, "val/f.xml")
    lines = [
        f"{name}.JPEG\t{wnid}\n" for name, wnid in zip("abc", ("n01443537", "n01440764", "n01440764"), strict=True)
    ]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    found = open_source(str(tmp_path)).find("val")
    assert [(sample.key, sample.label, sample.where) for sample in found.samples] == [
        ("n01440764/b.JPEG", 0, "val/images/b.JPEG"),
        ("n01440764/c.JPEG", 0, "val/images/more/c.JPEG"),
        ("n01443537/a.JPEG", 1, "val/a.JPEG"),
    ]
    assert {(entry.suffix, entry.files, entry.example) for entry in found.not_taken} == {
        (".jpeg", 1, "old/d.JPEG"),
        (".xml", 1, "f.xml"),
        (".xml", 1, "old/e.xml"),
    }
    put(tmp_path, "val/images/a.JPEG")
    with pytest.raises(
        UserError, match=r"val has two images of one name, val/.*a\.JPEG and val/.*a\.JPEG, and .*txt has one label for"
    ):
        open_source(str(tmp_path))


def test_what_is_no_file_is_counted_and_never_opened(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    for name in ("pipe.JPEG", "n01440764/pipe.JPEG", "n01440764/more/pipe"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / "train" / name)
    (tmp_path / "train" / "n01440764" / "null.JPEG").symlink_to("/dev/null")
    found = open_source(str(tmp_path)).find("train")
    assert len(found.samples) == 2
    assert [(entry.place, entry.suffix, entry.files, entry.example) for entry in found.not_taken] == [
        ("train/", ".jpeg", 1, "pipe.JPEG (not a file)"),
        ("train/<class>/", ".jpeg", 2, "n01440764/null.JPEG (not a file)"),
        ("train/<class>/*/", "", 1, "n01440764/more/pipe (not a file)"),
    ]
