"""Walks a tar within a stored file by its headers alone, and trusts none of them.

Plain headers are parsed here, for speed, and all others (GNU long names, pax, old formats) by the standard library's
tarfile. tarfile takes a broken header for the end of the archive and accepts any size, so both are checked here.
Nothing is unpacked, and no link is followed.
"""

import errno
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.base import Sample, Unusable
from imagenet_mds_convert.sources.names import MAGIC_BYTES, is_image
from imagenet_mds_convert.sources.ranges import HEADER_AHEAD_BYTES, RangeFile

_REMOTE_AHEAD_BYTES = 1 << 23
"""Bytes read at once to list a tar in S3. The 138 GB of ImageNet's train then take 17,000 requests instead of 1.28
million: at 30 ms each and 16 at once, half a minute of waiting instead of 40. The bytes are free within a region and
take two minutes at 1 GB/s. Reading a piece of this size takes four times as long as waiting for it, so larger pieces
gain little; at 1 MiB most of the time would be waiting. 16 pieces take 128 MiB of memory."""

_MOST_HEADER_BYTES = 1 << 20
"""Size limit of a long name or a pax header; the longest path on Linux has 4 KiB."""


def image_ahead_bytes(storage: Storage) -> int:
    """Bytes of a tar of images to read at once when listing it."""
    return _REMOTE_AHEAD_BYTES if storage.remote else HEADER_AHEAD_BYTES


@dataclass(frozen=True)
class Member:
    """A member that is not a folder: its name in the tar, and where its bytes are in the stored file.

    `refused` is the reason not to read it (a link, a device, a path that leads out of the archive), else None.
    `content` are its bytes where `walk_tar` was asked for them, of a file without a suffix the first ones, else empty.
    """

    name: str
    offset: int
    size_bytes: int
    refused: str | None
    content: bytes = b""

    @property
    def basename(self) -> str:
        """The last part of the member's name."""
        return self.name.rpartition("/")[2]

    @property
    def is_image(self) -> bool:
        """Whether it is taken for an image: by its suffix, or by its first bytes if it has none."""
        return is_image(self.basename, lambda size: self.content)


Where = tuple[str, int, int] | str
"""Where a sample from a tar is: (stored file, offset, size in bytes), or the reason not to read it."""


def read_member(storage: Storage, where: Where) -> bytes:
    """The bytes of a member.

    Raises:
        OSError: the file cannot be read, or has become shorter.
        Unusable: `where` is the reason not to read it.
    """
    if isinstance(where, str):
        raise Unusable(where)
    name, offset, size_bytes = where
    data = storage.read_range(name, offset, size_bytes)
    if len(data) < size_bytes:
        raise OSError(errno.EIO, f"{name} ends before byte {offset + size_bytes:,}; it was longer before")
    return data


def member_sample(tar: str, wnid: str, label: int, member: Member) -> Sample:
    """A member as a sample, under its key in the extracted tree; one that must not be read, under its full name."""
    if member.refused:
        return Sample(f"{wnid}/{member.name}", label, 0, where=member.refused)
    return Sample(f"{wnid}/{member.basename}", label, member.size_bytes, (tar, member.offset, member.size_bytes))


class _Headers(RangeFile):
    """Reads the headers of a tar, and refuses one that claims to be huge or of negative size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes.

        Raises:
            ReadError: no header has this size.
        """
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)

    def block(self, at: int) -> bytes:
        """The block at an offset.

        Raises:
            ReadError: the tar ends before the end of it.
        """
        self.seek(at)
        block = self.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it ends without an end-of-archive block")
        return block

    def header(self, at: int) -> tuple[tarfile.TarInfo, int]:
        """The header at an offset, of any kind, and the offset of the next one.

        Raises:
            TarError: there is no header.
        """
        self.seek(at)
        with tarfile.TarFile(fileobj=self, encoding="utf-8", errors="surrogateescape") as tar:
            info = tar.next()
            if info is None:  # tarfile took it for the end of the archive
                raise tarfile.ReadError("no header")
            return info, tar.offset


def walk_tar(
    storage: Storage,
    name: str,
    start: int,
    length: int,
    ahead_bytes: int = HEADER_AHEAD_BYTES,
    contents_of: str | None = None,
    official: bool = False,
) -> Iterator[Member]:
    """Every member of a tar except folders, in stored order.

    Args:
        storage: the storage of the file that contains the tar.
        name: that file's name.
        start: offset of the tar in it.
        length: the tar's size in bytes.
        ahead_bytes: minimum size of a read; the walk holds a buffer of this size.
        contents_of: the suffix of small files whose bytes are wanted, in lower case.
        official: the file has an official MD5 sum.

    Raises:
        UserError: the tar is compressed, truncated or broken; the message names the file and the byte.
    """
    headers = _Headers(storage, name, start, length, ahead_bytes)
    at, first = 0, b""

    def broken(why: str) -> UserError:
        tool = next((tool for magic, tool in _COMPRESSED.items() if first.startswith(magic)), None)
        if at == 0 and tool and start == 0:
            return UserError(
                f"{storage.location}/{name} is compressed with {tool}, and only plain tars are read: decompress it "
                f"with `{tool} -dc` first"
            )
        compare = "; `--verify-source` compares its MD5 with the official one" if official else ""
        return UserError(
            f"{storage.location}/{name} is truncated or broken at byte {start + at:,} ({why}): download it again"
            f"{compare}"
        )

    try:
        first = headers.read(max(map(len, _COMPRESSED)))
        while (block := headers.block(at)) != _END:
            if plain := _plain(block):
                basename, size_bytes, offset, refused, folder = *plain, at + tarfile.BLOCKSIZE, None, False
                after = offset + -(-size_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            else:
                info, after = headers.header(at)
                basename, size_bytes, offset = _printable(info.name), info.size, info.offset_data
                refused, folder = _refused(info), info.isdir()
            if size_bytes < 0 or not at < after <= length or (refused is None and offset + size_bytes > length):
                raise broken(f"{basename} of {size_bytes:,} bytes does not fit")
            if not folder:
                content = b""
                if refused is None:
                    if contents_of and basename.lower().endswith(contents_of):
                        headers.seek(offset)
                        content = headers.read(size_bytes)
                    elif basename.endswith(".") or "." not in basename.rpartition("/")[2]:  # no suffix
                        headers.seek(offset)
                        content = headers.read(min(size_bytes, MAGIC_BYTES))
                yield Member(basename, start + offset, size_bytes, refused, content)
            at = after
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise broken(str(error) or type(error).__name__) from None
    except OSError as error:
        raise UserError(f"{storage.location}/{name} cannot be read: {error.strerror or error}") from None


_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""The first bytes of compressed files, each with the tool that decompresses them."""
_END = tarfile.NUL * tarfile.BLOCKSIZE
_REGULAR = re.compile(rb"(?:ustar\x0000.{80}\0{155}|ustar  \0).*", re.DOTALL)
"""A header from byte 257 on, behind a link's name: POSIX's without a name prefix, or GNU's."""
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_OCTAL = re.compile(rb"[0-7]+")


def _plain(block: bytes) -> tuple[str, int] | None:
    """Name and size from the header of a regular file with a name like ImageNet's; None for any other header.

    This takes a quarter of tarfile's time, and ImageNet has 1.28 million of these.
    """
    name, size = block[:100].rstrip(b"\0"), block[124:136].rstrip(b"\0 ")
    if (
        block[156] != 0x30
        or not _PLAIN_NAME.fullmatch(name)
        or not _OCTAL.fullmatch(size)
        or not _REGULAR.match(block, 257)
    ):
        return None
    checksum = block[148:156].strip(b"\0 ")
    # The checksum is the sum of the header's bytes, with blanks in place of the checksum.
    if not _OCTAL.fullmatch(checksum) or sum(block) - sum(block[148:156]) + 8 * 0x20 != int(checksum, 8):
        return None
    return name.decode("ascii"), int(size, 8)


def _refused(info: tarfile.TarInfo) -> str | None:
    if info.issym():
        return "a symbolic link in the archive, not followed"
    if info.islnk():
        return "a hard link in the archive, not followed"
    if info.issparse():
        return "a sparse file in the archive, not read"
    if not info.isfile():
        return "a device or something else that is no file in the archive, not read"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        return "a path that leads out of the archive, not followed"
    if _printable(info.name) != info.name:
        return "a name that is not UTF-8 or has a line break in it"
    return None


def _printable(name: str) -> str:
    """The name, escaped where needed for messages and manifests."""
    if name.isascii() and name.isprintable():
        return name
    escaped = name.encode("utf-8", "backslashreplace").decode()
    return escaped.replace("\n", "\\n").replace("\r", "\\r")
