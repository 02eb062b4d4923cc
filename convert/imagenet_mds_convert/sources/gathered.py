"""Images copied into one temporary file, for sources in which one image costs reading many.

The file has no name, so nothing is left of it whatever becomes of the run. Other processes open it through the one that
holds it.
"""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class GatheredImages:
    """Images in a temporary file. A sample's `where` is (offset, size in bytes)."""

    path: str
    reads_at_once: int = 1

    def read(self, where: tuple[int, int]) -> bytes:
        """The bytes at an offset.

        Raises:
            OSError: the file cannot be read, or is shorter.
        """
        offset, size_bytes = where
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size_bytes, offset)
        if len(data) < size_bytes:
            raise OSError(errno.EIO, f"the gathered images end before byte {offset + size_bytes:,}")
        return data


class Gathering:
    """A temporary file that images are written to, from several threads at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        """How other processes of this machine open the file while this one holds it."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def put(self, data: bytes | memoryview) -> tuple[int, int]:
        """Write an image and return its place.

        Raises:
            OSError: the disk is full.
        """
        with self._lock:
            at, self._end = self._end, self._end + len(data)
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], at + done)
        return at, len(data)


@contextmanager
def gathering(folder: Path | None) -> Iterator[Gathering]:
    """Open a temporary file without a name on the disk of a folder, or of TMPDIR for None."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield Gathering(file)
