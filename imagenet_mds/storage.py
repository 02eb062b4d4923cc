"""Where files lie: a folder on a disk, or a prefix in S3. The one way in which the program reads and writes data.

A storage is small and picklable; names in it are relative, with forward slashes. Writing is atomic: a name stands for
the whole of what was written, or for what was there before.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import xxhash

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.files import Draft, locked, sync_folder, write_atomic


@dataclass(frozen=True)
class Entry:
    """A file in a storage: its name and its size in bytes."""

    name: str
    size_bytes: int


class Writing(Protocol):
    """A file that is being written; see `files.Draft`."""

    def ahead(self, data: memoryview, start: int) -> None:
        """Take bytes that will most likely lie at `start`; they must stay as they are until `publish`."""

    def publish(self, data: memoryview, *, moved: bool = False) -> None:
        """Make the whole file stand under its name."""


@dataclass(frozen=True)
class Listing:
    """What lies right in a folder: its files, and the names of the folders in it."""

    files: tuple[Entry, ...]
    folders: tuple[str, ...]


class Readable(Protocol):
    """What readers of a split want of the files in it."""

    @property
    def location(self) -> str:
        """The location as a user types it."""

    @property
    def parent(self) -> "Storage":
        """The storage that this one is a folder of."""

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read.
        """

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes | memoryview]:
        """A whole file in pieces of at most this size.

        Raises:
            OSError: as `read`.
        """

    def files(self) -> Iterator[Entry]:
        """Every file, in folders below too, in no particular order.

        Raises:
            OSError: it cannot be listed.
        """


class Storage(Readable, Protocol):
    """Files under one location."""

    @property
    def remote(self) -> bool:
        """Whether every read waits for a network, so that several at once are faster than one after the other."""

    @property
    def name(self) -> str:
        """The last part of the location."""

    def child(self, name: str) -> "Storage":
        """The storage below a folder of this one."""

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, None where there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the file ends before.

        Raises:
            OSError: as `read`.
        """

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Make a file of this content durable, in place of what was there.

        Raises:
            OSError: it cannot be written; what was there stays.
        """

    def draft(self, name: str) -> AbstractContextManager["Writing"]:
        """A large file, written while it is made.

        After `publish` the content is durable and the name stands for the whole; that the name outlives a power cut is
        sure after `sync`.
        """

    def note(self, name: str, data: bytes) -> None:
        """As `write`, for what a power cut may take: the name may then stand for nothing, or for a part."""

    def sync(self) -> None:
        """Make the names of the files right here durable."""

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""

    def listing(self) -> Listing:
        """The files with their sizes and the folders right here, in no particular order, at the price of a listing and
        not of a look at each.

        A link is what it leads to; one that leads nowhere is a file of 0 bytes, for the reason is met by reading it.

        Raises:
            FileNotFoundError: nothing is here.
            NotADirectoryError: a file lies where a folder should.
            OSError: it cannot be listed.
        """

    def names(self) -> list[str]:
        """The names of files and folders right here, sorted; none where nothing is here.

        Raises:
            NotADirectoryError: a file lies where a folder should.
        """

    def tidy(self, folder: str = "", *, complete: bool) -> None:
        """Remove what a killed writer left in a folder: partial files, unfinished uploads.

        Args:
            folder: where.
            complete: all is there that should be, nobody has anything to write any more. Before, what nobody can be
                held off from writing stays: another may be writing it now.
        """

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the location against another process that asks the same, where it can be held.

        Raises:
            BlockingIOError: it is held.
        """

    def free_bytes(self) -> int | None:
        """Room for more, None where there is no end to it."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder on a disk of this machine."""

    root: Path

    @property
    def remote(self) -> bool:
        """It is not: what the page cache or a disk answers at once gains nothing by threads."""
        return False

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.root.name

    @property
    def parent(self) -> "LocalStorage":
        """The folder that this one is in."""
        return LocalStorage(self.root.parent)

    def child(self, name: str) -> "LocalStorage":
        """The storage below a folder of this one."""
        return LocalStorage(self.root / name)

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, None where there is none."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """A whole file."""
        # A third faster than Path.read_bytes, for which a small image is half the work.
        with open(f"{self.root}/{name}", "rb", buffering=0) as file:
            return file.read()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the file ends before."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes]:
        """A whole file in pieces of at most this size."""
        return pieces(self, name, piece_bytes)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Make a file of this content durable; folders on the way are made."""
        write_atomic(self._place(name), data)

    def draft(self, name: str) -> Draft:
        """A file written while it is made; folders on the way are made."""
        return Draft(self._place(name))

    def note(self, name: str, data: bytes) -> None:
        """A small file that may be lost in a power cut; folders on the way are made."""
        path = self._place(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def sync(self) -> None:
        """Make the names of the files right here durable."""
        sync_folder(self.root)

    def _place(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def files(self) -> Iterator[Entry]:
        """Every file, in folders below too."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def names(self) -> list[str]:
        """The names of files and folders right here, sorted."""
        try:
            return sorted(path.name for path in self.root.iterdir())
        except FileNotFoundError:
            return []

    def listing(self) -> Listing:
        """The files with their sizes and the folders right here; neither are sockets, pipes and devices."""
        files, folders = [], []
        with os.scandir(self.root) as entries:
            for entry in entries:
                mode, size_bytes = _mode_and_size(entry)
                if stat.S_ISDIR(mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(mode):
                    files.append(Entry(entry.name, size_bytes))
        return Listing(tuple(files), tuple(folders))

    def tidy(self, folder: str = "", *, complete: bool) -> None:
        """Remove the temporary files of a killed run: who asks holds the folder."""
        for path in (self.root / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder; it is made if it is not there."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root):
            yield

    def free_bytes(self) -> int:
        """Free room on the disk that the folder is on, or will be."""
        there = next(path for path in [self.root, *self.root.parents] if path.exists())
        return shutil.disk_usage(there).free


def _mode_and_size(entry: os.DirEntry[str]) -> tuple[int, int]:
    """With links followed. A folder needs no call to the system, and what leads nowhere counts as an empty file."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR, 0
    try:
        status = entry.stat()
    except OSError:
        return stat.S_IFREG, 0
    return status.st_mode, status.st_size


def open_storage(location: str) -> Storage:
    """The storage at a location that a user typed. Nothing is looked at yet.

    Raises:
        UserError: an address of a kind that the program does not know.
    """
    if location.startswith("s3://"):
        from imagenet_mds.s3 import S3Storage  # boto3 takes a quarter of a second, for those who need it

        return S3Storage.at(location)
    if "://" in location:
        raise UserError(f"{location}: give a folder or an s3:// address")
    path = Path(location)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a folder")
    return LocalStorage(path)


def pieces(storage: Storage, name: str, piece_bytes: int) -> Iterator[bytes]:
    """A whole file by its ranges, one after the other, so that memory stays flat; the end is where one is short."""
    at, got = 0, piece_bytes
    while got == piece_bytes:
        piece = storage.read_range(name, at, piece_bytes)
        at, got = at + len(piece), len(piece)
        yield piece


_Readable = TypeVar("_Readable", bound=Readable)


def as_storage(where: Path | _Readable) -> LocalStorage | _Readable:
    """A folder on the disk as a storage; a storage as it is."""
    return LocalStorage(where) if isinstance(where, Path) else where


@contextmanager
def writing_to(destination: Storage, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Say in a person's words that the storage refuses; errors of the type `but` pass.

    Raises:
        WorldError: in place of the system's OSError.
    """
    try:
        yield
    except but:
        raise
    except OSError as error:
        free = destination.free_bytes()
        room = f"make room ({free / 1e9:,.1f} GB are free) and " if free is not None else ""
        raise WorldError(
            f"{destination.location} cannot be written: {error.strerror or error}. What is complete stays: "
            f"{room}run the same command again"
        ) from error


def stored_xxh64(storage: Readable, name: str, chunk_bytes: int = 1 << 22) -> str:
    """The xxh64 of a stored file, 16 hexadecimal digits, read in chunks so that memory stays flat.

    Raises:
        OSError: it cannot be read.
    """
    digest = xxhash.xxh64()
    for piece in storage.pieces(name, chunk_bytes):
        digest.update(piece)
    return digest.hexdigest()
