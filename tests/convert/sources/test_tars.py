"""Walking a tar by its headers: broken, hostile and unusual ones."""

import io
import tarfile
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources.tars import walk_tar
from tests.support.sources import (
    member,
    tar_of,
)


def broken_header(kind: bytes, at: int, data: bytes) -> bytes:
    """A tar of three images with a changed header of the second, and a matching checksum."""
    tar = bytearray(tar_of([member("a.JPEG", b"a"), member("b.JPEG", b"b"), member("c.JPEG", b"c")]))
    header = tar[1024:1536]
    header[156:157] = kind
    header[at : at + len(data)] = data
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    tar[1024:1536] = header
    return bytes(tar)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (124, b"77777777777\0"),  # 8 GB
        (124, b"\xff" * 12),  # -1 byte
        (124, b"\xff" * 10 + b"\xf8\0"),  # back to the first header, an endless loop
        (124, b"\x80" + b"\x7f" * 11),  # more than any file has
        (124, b"notanoctal!\0"),
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"K", b"S", b"5", b"Z"])
def test_a_header_that_lies_ends_with_file_and_byte(tmp_path: Path, at: int, data: bytes, kind: bytes) -> None:
    tar = broken_header(kind, at, data)
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(UserError, match=r"x\.tar is truncated or broken at byte 1,(024|536) \(.+\): download it again"):
        list(walk_tar(LocalStorage(tmp_path), "x.tar", 0, len(tar)))


def test_a_header_with_a_wrong_checksum_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    tar = bytearray(tar_of([member("a.JPEG", b"a"), member("b.JPEG", b"b")]))
    tar[1024] ^= 1
    (tmp_path / "x.tar").write_bytes(bytes(tar))
    with pytest.raises(UserError, match=r"x\.tar is truncated or broken at byte 1,024 \(no header\)"):
        list(walk_tar(LocalStorage(tmp_path), "x.tar", 0, len(tar)))


def test_headers_within_headers_end(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 0
    tar = info.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024)
    (tmp_path / "x.tar").write_bytes(tar)
    with pytest.raises(UserError, match=r"x\.tar is truncated or broken at byte 0"):
        list(walk_tar(LocalStorage(tmp_path), "x.tar", 0, len(tar)))


def test_a_plain_header_is_read_as_tarfile_reads_it(tmp_path: Path) -> None:
    """The fast parser and the standard library agree on names, offsets and sizes."""
    for tar_format in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        sizes = (0, 1, 511, 512, 513, 70_000)
        names = ("n01440764_1.JPEG", "-", "a" * 99, "a" * 100, "b/c.JPEG", ".d", "e f", "A.tar")
        infos = [member(f"{name}", bytes(size), uname="root", mtime=1) for name in names for size in sizes]
        tar = tar_of(infos, tar_format)
        (tmp_path / "x.tar").write_bytes(tar)
        walked = list(walk_tar(LocalStorage(tmp_path), "x.tar", 0, len(tar)))
        with tarfile.open(fileobj=io.BytesIO(tar)) as reference:
            assert [(one.name, one.offset, one.size_bytes) for one in walked] == [
                (info.name, info.offset_data, info.size) for info in reference
            ]
