"""Files that are there whole or not at all: written under a temporary name, made durable, then renamed."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it, whatever happens to the process or the machine.

    Raises:
        OSError: the system's own error; the temporary file is removed, a file already at `path` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a folder against another process that asks the same; the kernel lets go when the holder ends, however it
    ends. The lock is on the folder itself: no file is left. Gives the descriptor that holds it: a child that inherits
    it holds the lock too.

    Raises:
        BlockingIOError: it is held.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def json_bytes(value: Any) -> bytes:
    """JSON for a file that people read too: sorted keys, two spaces, a newline at the end. The same value always gives
    the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of `json_bytes`."""
    write_atomic(path, json_bytes(value))
