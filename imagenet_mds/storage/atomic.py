"""Atomic writes: a file is written under a temporary name, synced to the disk, then given its name.

So a name never stands for a part of a file, whatever happens to the process or the machine.
"""

import errno
import json
import math
import os
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What `link` answers where the file system has no hard links."""


class Draft:
    """A file that is written under a temporary name, in parts or at once, and renamed by `publish`.

    As a context manager it removes the temporary file if `publish` was not reached. A file already at `path` is then
    left as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._descriptor: int | None = None
        self._behind: tuple[int, int] | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._under_way: list[Future[None]] = []

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)

    def write_behind(self, data: bytes | memoryview, start: int) -> None:
        """Write a part in a thread while the caller prepares the rest, and start writing it back to the disk.

        Args:
            data: bytes that will most likely lie at `start`. They must not change until `publish`.
            start: offset in the file. Each part must start where the previous one ended.

        Raises:
            OSError: the system's own error, for this part or an earlier one.
        """
        first, end = self._behind or (start, start)
        assert start == end, "parts follow one another"
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1)
        self._settle(*(part for part in self._under_way if part.done()))
        self._under_way.append(self._writer.submit(self._write_back, data, start))
        self._behind = first, start + len(data)

    def _write_back(self, data: bytes | memoryview, start: int) -> None:
        self._write(data, start)
        # The only call in the standard library that starts the write-back without waiting for it.
        os.posix_fadvise(self._open(), start, len(data), os.POSIX_FADV_DONTNEED)

    def _settle(self, *parts: Future[None]) -> None:
        """Wait until these parts are written."""
        for part in parts:
            part.result()
            self._under_way.remove(part)

    def publish(self, data: bytes | memoryview, *, moved: bool = False) -> None:
        """Write the rest of the file, sync it, and rename it.

        Args:
            data: the whole file.
            moved: the parts written so far are not where they belong; everything is written again.

        Raises:
            OSError: the system's own error.
        """
        self._settle(*self._under_way)
        start, end = self._behind if self._behind and not moved else (0, 0)
        view = memoryview(data)
        self._write(view[:start], 0)
        self._write(view[end:], end)
        descriptor = self._open()
        os.truncate(descriptor, len(view))
        os.fsync(descriptor)
        self._temporary.replace(self._path)

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        return self._descriptor

    def _write(self, data: bytes | memoryview, start: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._open(), view, start)
            view, start = view[written:], start + written


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically. On return, both its content and its name survive a power cut.

    Raises:
        OSError: the system's own error. The temporary file is removed, and a file already at `path` left as it was.
    """
    with Draft(path) as draft:
        draft.publish(data)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file atomically if none exists at `path`. Of several processes that try, exactly one succeeds.

    A hard link is used instead of `O_EXCL`, which would make the name visible before the content is there. On a file
    system without hard links (exFAT, object stores mounted as folders) `O_EXCL` takes the name, and the content
    follows: a kill in between leaves an empty file.

    Raises:
        FileExistsError: `path` exists; it is left as it is.
        OSError: the system's own error.
    """
    # A random name, because process numbers are not unique on a file system shared by several machines.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then reports its own link as a conflict: see open(2).
            if temporary.stat().st_nlink != 2:
                raise
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut. A rename alone does not.

    Raises:
        OSError: the system's own error.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """Encode a value as JSON for files that people read too: sorted keys, two spaces, a newline at the end.

    Equal values give equal bytes.
    """
    text = json.dumps(finite(value), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def finite(value: Any) -> Any:
    """The value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `json_bytes` of a value with `write_atomic`.

    Raises:
        OSError: see `write_atomic`.
    """
    write_atomic(path, json_bytes(value))
