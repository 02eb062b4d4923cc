"""Files that are there whole or not at all: written under a temporary name, made durable, then renamed."""

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any


class Draft:
    """A file on its way to its name: written under a temporary name, in parts if its maker likes, made durable, then
    renamed. Whatever happens to the process or the machine, the name never stands for half of it.

    As a context manager it removes the temporary file where `publish` was not reached; a file already at `path` is
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
        """Write bytes that will most likely lie at `start`, each time where the last ones ended, while their maker goes
        on with the rest: a thread copies them to the kernel and has it take them to the disk.

        Args:
            data: must stay as it is until `publish`, but for what is moved then.
            start: where in the file.

        Raises:
            OSError: the system's own error, of this part or of one before.
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
        # The one call of the standard library that starts writing back and does not wait for it.
        os.posix_fadvise(self._open(), start, len(data), os.POSIX_FADV_DONTNEED)

    def _settle(self, *parts: Future[None]) -> None:
        """Wait for parts to be written."""
        for part in parts:
            part.result()
            self._under_way.remove(part)

    def publish(self, data: bytes | memoryview, *, moved: bool = False) -> None:
        """Write what is missing of `data`, make it durable, give it its name.

        Args:
            data: the whole file.
            moved: what was written ahead does not lie in its place; all is written again.

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
    """Write a file so that its name never stands for half of it, and is durable on return.

    Raises:
        OSError: the system's own error; the temporary file is removed, a file already at `path` is left as it was.
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """JSON for a file that people read too: sorted keys, two spaces, a newline at the end. The same value always gives
    the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of `json_bytes`."""
    write_atomic(path, json_bytes(value))
