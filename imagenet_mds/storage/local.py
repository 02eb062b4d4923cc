"""A folder on a disk of this machine as a storage."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.atomic import Draft, sync_file, sync_folder, write_atomic
from imagenet_mds.storage.base import Entry, Listing, RangeReads, file_xxh64


@dataclass(frozen=True)
class LocalStorage(RangeReads):
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

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Make a file of this content durable; folders on the way are made."""
        write_atomic(self._place(name), data)

    def adopt(self, file: Path, name: str) -> tuple[int, str]:
        """Move a file of the same file system here, durably. Folders on the way are made."""
        place = self._place(name)
        size_bytes, xxh64 = file.stat().st_size, file_xxh64(file)
        sync_file(file)
        file.replace(place)
        sync_folder(place.parent)
        return size_bytes, xxh64

    def draft(self, name: str) -> Draft:
        """A file written while it is made; folders on the way are made."""
        return Draft(self._place(name))

    def write_unsynced(self, name: str, data: bytes) -> None:
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

    def walk(self) -> Iterator[Entry]:
        """Every file, in folders below too."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def list_names(self) -> list[str]:
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

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Remove the temporary files of a killed run: who asks holds the folder."""
        for path in (self.root / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; it is made if it is not there."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.root):
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
