"""Locks between processes. The kernel releases them when their holder ends in any way.

On a network file system (NFS, EFS) they exclude only the processes of this machine. A child that inherits the
descriptor of a lock holds the lock too.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[int]:
    """Lock a folder and yield the lock's descriptor.

    The lock is on the folder itself, so it leaves no file and needs no permission to write.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine has the folder locked by `locked_folder`.

    The question takes a shared lock for a moment, so that two processes that ask at once do not see each other.

    Raises:
        OSError: there is no such folder, or it cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked_file(path: Path, *, wait: bool) -> Iterator[int | None]:
    """Lock a file against every other process and thread, and yield the lock's descriptor.

    Args:
        path: the file. It is created if it does not exist.
        wait: wait for another holder. Otherwise None is yielded if there is one.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
