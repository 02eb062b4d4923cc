"""Where files lie: a folder on a disk, or a prefix in S3. The one way in which the program reads and writes data.

A storage is small and picklable; names in it are relative, with forward slashes. Writing is atomic: a name stands for
the whole of what was written, or for what was there before.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from imagenet_mds.errors import WorldError


@dataclass(frozen=True)
class Entry:
    """A file in a storage: its name and its size in bytes."""

    name: str
    size_bytes: int


class Writing(Protocol):
    """A file that is being written; see `atomic.Draft`."""

    def write_behind(self, data: memoryview, start: int) -> None:
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

    def walk(self) -> Iterator[Entry]:
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

    def adopt(self, file: Path, name: str) -> tuple[int, str]:
        """Move a file of this machine's disk into the storage, in place of what was there. Durable on return.

        Args:
            file: a file that nobody writes any more, on the same file system where the storage is a local one.
            name: its name in the storage.

        Returns:
            Its size in bytes and its xxh64 in hexadecimal.

        Raises:
            OSError: it cannot be moved; what was there stays.
        """

    def draft(self, name: str) -> AbstractContextManager["Writing"]:
        """A large file, written while it is made.

        After `publish` the content is durable and the name stands for the whole; that the name outlives a power cut is
        sure after `sync`.
        """

    def write_unsynced(self, name: str, data: bytes) -> None:
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

    def list_names(self) -> list[str]:
        """The names of files and folders right here, sorted; none where nothing is here.

        Raises:
            NotADirectoryError: a file lies where a folder should.
        """

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Remove what a killed writer left in a folder: partial files, unfinished uploads.

        Args:
            folder: where.
            complete: all is there that should be, nobody has anything to write any more. Before, what nobody can be
                held off from writing stays: another may be writing it now.
        """

    def lock(self) -> AbstractContextManager[None]:
        """Hold the location against another process that asks the same, where it can be held.

        Raises:
            BlockingIOError: it is held.
        """

    def free_bytes(self) -> int | None:
        """Room for more, None where there is no end to it."""


class RangeReads(ABC):
    """Gives a storage that reads ranges `pieces`."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See `Storage.read_range`."""

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes]:
        """A whole file in pieces of at most `piece_bytes`, so that memory stays flat; a short piece is the last."""
        at, got = 0, piece_bytes
        while got == piece_bytes:
            piece = self.read_range(name, at, piece_bytes)
            at, got = at + len(piece), len(piece)
            yield piece


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


def file_xxh64(path: Path, chunk_bytes: int = 1 << 22) -> str:
    """The xxh64 of a file's content, 16 hexadecimal digits, read in chunks so that memory stays flat."""
    digest = xxhash.xxh64()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()
