"""Tables of labels and names as people save them."""

from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.tables import read_annotations, read_solution, read_synset_names, read_text

LINES = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4 \n\nILSVRC2012_val_00000002,n01443537 1\n"
LABELS = {"ILSVRC2012_val_00000001": "n01440764", "ILSVRC2012_val_00000002": "n01443537"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace(",", ";"),
        LINES.replace(",", "\t"),
        LINES.replace("ImageId,PredictionString", '"ImageId","PredictionString"'),
        LINES.replace("ImageId", " imageid "),
    ],
    ids=["as it is", "windows", "old mac", "semicolons", "tabs", "quotes", "blanks"],
)
def test_labels_are_read_in_any_encoding_and_dialect(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "LOC_val_solution.csv").write_bytes(text.encode(encoding))
    assert read_solution(LocalStorage(tmp_path)) == LABELS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_names_keep_their_accents_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    lines = "n01440764 caf\u00e9 au lait, other\nn01443537\n\nn90000001  two words , more\n"
    (tmp_path / "LOC_synset_mapping.txt").write_bytes(lines.encode(encoding))
    names = {"n01440764": "caf\u00e9 au lait", "n90000001": "two words"}
    assert read_synset_names(LocalStorage(tmp_path)) == (names, [])


@pytest.mark.parametrize("data", [b"ab\0\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfea"])
def test_what_is_no_text_is_refused_in_one_line_with_the_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(UserError, match=r"words\.txt is no text file: save it as UTF-8"):
        read_text(LocalStorage(tmp_path), "words.txt")


def test_a_malformed_annotation_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "val_annotations.txt").write_text("a.JPEG\tn01440764\t1\n\nb.JPEG\tcat\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt, line 3: expected a file name and a wnid"):
        read_annotations(LocalStorage(tmp_path))


def test_a_folder_in_place_of_a_table_is_reported(tmp_path: Path) -> None:
    (tmp_path / "words.txt").mkdir()
    with pytest.raises(UserError, match=r"words\.txt cannot be read: Is a directory"):
        read_text(LocalStorage(tmp_path), "words.txt")


def test_two_labels_of_one_image_are_refused_and_the_same_one_twice_is_not(tmp_path: Path) -> None:
    again = "ILSVRC2012_val_00000001,n01440764 5 6 7 8 \n"
    (tmp_path / "LOC_val_solution.csv").write_text(LINES + again)
    assert read_solution(LocalStorage(tmp_path)) == LABELS
    (tmp_path / "LOC_val_solution.csv").write_text(LINES + again.replace("n01440764", "n01443537"))
    with pytest.raises(
        UserError, match=r"csv has two labels for ILSVRC2012_val_00000001, n01440764 and n01443537: remove the wrong"
    ):
        read_solution(LocalStorage(tmp_path))
    (tmp_path / "val_annotations.txt").write_text("a.JPEG\tn01440764\t1\na.JPEG\tn01440764\t2\n")
    assert read_annotations(LocalStorage(tmp_path)) == {"a.JPEG": "n01440764"}
    (tmp_path / "val_annotations.txt").write_text("a.JPEG\tn01440764\t1\na.JPEG\tn01443537\t1\n")
    with pytest.raises(UserError, match=r"txt has two labels for a\.JPEG, n01440764 and n01443537: remove the wrong"):
        read_annotations(LocalStorage(tmp_path))


def test_names_that_cannot_be_read_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"n01440764 \0\xff")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01443537 goldfish, Carassius\n")
    for name in ("n01440764", "n01443537"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.JPEG").write_bytes(b"x")
    source = open_source(str(tmp_path))
    assert source.warnings == (
        f"classes keep the names that they have without words.txt: {tmp_path}/words.txt is no text file: save it as "
        f"UTF-8",
    )
    assert source.class_names[:2] == ("tench", "goldfish")
