"""The storage interface: how the program reads and writes data, on a disk or in S3.

A storage is small and picklable. Names in it are relative, with forward slashes. Writes are atomic: a name stands for
the whole of what was written, or for what was there before.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
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
        """Accept bytes that will most likely lie at `start`. They must not change until `publish`."""

    def publish(self, data: memoryview, *, moved: bool = False) -> None:
        """Make the whole file appear under its name."""


@dataclass(frozen=True)
class Listing:
    """The direct content of a folder: its files, the names of its subfolders, and the names of what is neither: pipes,
    sockets and devices."""

    files: tuple[Entry, ...]
    folders: tuple[str, ...]
    others: tuple[str, ...] = ()


class Readable(Protocol):
    """The part of a storage that readers of a split need."""

    @property
    def location(self) -> str:
        """The location as a user types it."""

    @property
    def parent(self) -> "Storage":
        """The storage that contains this one."""

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
        """

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes | memoryview]:
        """Read a whole file in pieces of at most `piece_bytes`.

        Raises:
            OSError: as `read`.
        """

    def walk(self) -> Iterator[Entry]:
        """Iterate over every file, including those in subfolders, in no particular order.

        Raises:
            OSError: the storage cannot be listed.
        """


class Storage(Readable, Protocol):
    """Files under one location."""

    @property
    def remote(self) -> bool:
        """Whether reads wait for a network, so that several at once are faster than one after the other."""

    @property
    def name(self) -> str:
        """The last part of the location."""

    def child(self, name: str) -> "Storage":
        """Return the storage of a subfolder."""

    def size_bytes(self, name: str) -> int | None:
        """Return the size of a file, None if there is none."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start` on, fewer if the file ends earlier.

        Raises:
            OSError: as `read`.
        """

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write or replace a file durably.

        Raises:
            OSError: it cannot be written. The previous file is kept.
        """

    def create(self, name: str, data: bytes | memoryview) -> None:
        """Write a file durably if none has this name. Of several writers that try at once, exactly one succeeds.

        Raises:
            FileExistsError: the name exists; its file is left as it is.
            OSError: it cannot be written.
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
        """Open a large file that is written while its content is made.

        After `publish` its content is durable and the name stands for the whole file. The name itself survives a power
        cut only after `sync`.
        """

    def write_unsynced(self, name: str, data: bytes) -> None:
        """Like `write`, without fsync: after a power cut the file may be missing or incomplete."""

    def sync(self) -> None:
        """Make the names of the files in this folder durable."""

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with everything in it. A missing name is not an error."""

    def listing(self) -> Listing:
        """List the files with their sizes, the subfolders, and what is neither.

        The order is arbitrary, and there is no request per file.

        A link counts as its target. A link without a target counts as a file of 0 bytes, so that reading it reports the
        reason.

        Raises:
            FileNotFoundError: the folder does not exist.
            NotADirectoryError: the location, or one above it, is a file.
            OSError: it cannot be listed.
        """

    def list_names(self) -> list[str]:
        """Return the names of the files and subfolders, sorted; none if the folder does not exist.

        Raises:
            NotADirectoryError: the location, or one above it, is a file.
        """

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Remove what killed writers left in a folder: temporary files, unfinished uploads.

        Args:
            folder: a subfolder, or this folder by default.
            complete: everything is written and no other process writes here any more. Otherwise a storage without locks
                removes nothing, because a live process may be writing it.
        """

    def lock(self) -> AbstractContextManager[None]:
        """Lock the location against other processes, where the storage has locks.

        Raises:
            BlockingIOError: another process holds the lock.
        """

    def free_bytes(self) -> int | None:
        """Return the free space, None if it is unlimited."""


class RangeReads(ABC):
    """Implements `pieces` for a storage that reads ranges."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes:
        """See `Storage.read_range`."""

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes]:
        """Read a whole file in pieces of `piece_bytes`, the last one shorter, so that memory stays flat.

        Raises:
            OSError: as `read_range`.
        """
        at, got = 0, piece_bytes
        while got == piece_bytes:
            piece = self.read_range(name, at, piece_bytes)
            at, got = at + len(piece), len(piece)
            yield piece


@contextmanager
def writing_to(destination: Storage, *, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Turn an OSError of a write into a message for the user; errors of the type `but` pass through.

    Raises:
        WorldError: in place of the OSError.
    """
    try:
        yield
    except but:
        raise
    except OSError as error:
        free = destination.free_bytes() if error.errno in _DISK_FULL else None
        raise WorldError(
            f"{destination.location} cannot be written: {error.strerror or error}. Finished work is kept: "
            f"{after_failed_write(error, free)}"
        ) from error


_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_FOLDER = frozenset({errno.EEXIST, errno.ENOTDIR})
"""What creating a folder answers where a file, or a link that leads nowhere, is in its place."""


def after_failed_write(error: OSError, free_bytes: int | None = None) -> str:
    """What to do after a write failed, as the end of a message.

    Args:
        error: the system's error.
        free_bytes: free space to mention if the disk is full; None to leave it out.
    """
    again = "run the same command again"
    if error.errno in _DISK_FULL:
        free = "" if free_bytes is None else f" ({free_bytes / 1e9:,.1f} GB are free)"
        return f"make room{free} and {again}"
    if error.errno in _NOT_PERMITTED:
        return f"allow this user to write there, or give another place, and {again}"
    if error.errno in _NO_FOLDER:
        return f"remove the file or the broken link in its place and {again}"
    return again


def stored_xxh64(storage: Readable, name: str, chunk_bytes: int = 1 << 22) -> str:
    """Return the xxh64 of a stored file, 16 hexadecimal digits, read in chunks so that memory stays flat.

    Raises:
        OSError: it cannot be read.
    """
    return _xxh64(storage.pieces(name, chunk_bytes))


def file_xxh64(path: Path, chunk_bytes: int = 1 << 22) -> str:
    """Return the xxh64 of a file on this machine; see `stored_xxh64`.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        return _xxh64(iter(lambda: file.read(chunk_bytes), b""))


def _xxh64(pieces: Iterable[bytes | memoryview]) -> str:
    digest = xxhash.xxh64()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
