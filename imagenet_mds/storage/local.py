"""Storage in a folder on a disk of this machine."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.atomic import Draft, create_atomic, sync_file, sync_folder, write_atomic
from imagenet_mds.storage.base import Entry, Listing, RangeReads, file_xxh64


@dataclass(frozen=True)
class LocalStorage(RangeReads):
    """A folder on a disk of this machine."""

    root: Path

    @property
    def remote(self) -> bool:
        """False: the page cache and disks answer at once, so threads gain nothing."""
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
        """The folder that contains this one."""
        return LocalStorage(self.root.parent)

    def child(self, name: str) -> "LocalStorage":
        """Return the storage of a subfolder."""
        return LocalStorage(self.root / name)

    def size_bytes(self, name: str) -> int | None:
        """Return the size of a file, None if there is none."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            OSError: see `Readable.read`.
        """
        # A third faster than Path.read_bytes, whose overhead is as large as reading a small image.
        with open(f"{self.root}/{name}", "rb", buffering=0) as file:
            return file.read()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Read `length` bytes from `start` on, fewer if the file ends earlier.

        Raises:
            OSError: see `Readable.read`.
        """
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
        """Write or replace a file durably. Missing folders are created.

        Raises:
            OSError: it cannot be written. The previous file is kept.
        """
        write_atomic(self._place(name), data)

    def adopt(self, file: Path, name: str) -> tuple[int, str]:
        """Move a file of the same file system here, durably. Missing folders are created.

        Raises:
            OSError: it cannot be moved. The previous file is kept.
        """
        place = self._place(name)
        size_bytes, xxh64 = file.stat().st_size, file_xxh64(file)
        sync_file(file)
        file.replace(place)
        sync_folder(place.parent)
        return size_bytes, xxh64

    def create(self, name: str, data: bytes | memoryview) -> None:
        """Write a file durably if none has this name. Missing folders are created.

        Raises:
            FileExistsError: the name exists; its file is left as it is.
            OSError: it cannot be written.
        """
        create_atomic(self._place(name), data)

    def draft(self, name: str) -> Draft:
        """Open a file that is written while its content is made. Missing folders are created."""
        return Draft(self._place(name))

    def write_unsynced(self, name: str, data: bytes) -> None:
        """Write a small file without fsync. Missing folders are created."""
        path = self._place(name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def sync(self) -> None:
        """Make the names of the files in this folder durable."""
        sync_folder(self.root)

    def _place(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with everything in it. A missing name is not an error."""
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def walk(self) -> Iterator[Entry]:
        """Iterate over every file, including those in subfolders."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def list_names(self) -> list[str]:
        """Return the names of the files and subfolders, sorted; none if the folder does not exist."""
        try:
            return sorted(path.name for path in self.root.iterdir())
        except FileNotFoundError:
            return []

    def listing(self) -> Listing:
        """List the files with their sizes, the subfolders, and the names of sockets, pipes and devices.

        Raises:
            OSError: see `Storage.listing`.
        """
        files, folders, others = [], [], []
        with os.scandir(self.root) as entries:
            for entry in entries:
                mode, size_bytes = _mode_and_size(entry)
                if stat.S_ISDIR(mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(mode):
                    files.append(Entry(entry.name, size_bytes))
                else:
                    others.append(entry.name)
        return Listing(tuple(files), tuple(folders), tuple(others))

    def remove_partials(self, folder: str = "", *, complete: bool) -> None:
        """Remove the temporary files of killed runs. The caller must hold the lock of the folder."""
        for path in (self.root / folder).glob(".*.tmp*"):
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder. It is created if it does not exist.

        Raises:
            BlockingIOError: another process holds the lock.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.root):
            yield

    def free_bytes(self) -> int:
        """Return the free space of the disk that the folder is on, or will be on."""
        there = next(path for path in [self.root, *self.root.parents] if path.exists())
        return shutil.disk_usage(there).free


def _mode_and_size(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return mode and size with links followed. Folders need no system call; a broken link counts as an empty file."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR, 0
    try:
        status = entry.stat()
    except OSError:
        return stat.S_IFREG, 0
    return status.st_mode, status.st_size
