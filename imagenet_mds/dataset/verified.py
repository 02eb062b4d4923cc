"""The ledger of verified files: a file that was hashed before and has not changed since is not read again.

A fetched shard has its entry in its lock file, written by the process that downloaded it. A dataset that is read in
place may be read-only, so its entries are in a file that belongs to the run.
"""

import json
import os
from pathlib import Path

from imagenet_mds.storage.atomic import write_json

FileState = list[int]


def file_state(path: Path) -> FileState | None:
    """Return what changes when a file is written or replaced: inode, size, times. None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def write_stamp(descriptor: int, path: Path) -> None:
    """Record in a shard's lock file, open as `descriptor`, that the shard in its present state is verified.

    Raises:
        OSError: the system's own error.
    """
    data = json.dumps(file_state(path)).encode("ascii")
    os.pwrite(descriptor, data, 0)
    os.truncate(descriptor, len(data))


def read_stamp(lock_file: Path) -> FileState | None:
    """Return the state that `write_stamp` recorded, None if there is none; the shard is then verified again."""
    try:
        state: FileState = json.loads(lock_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return state


class VerifiedFiles:
    """A ledger of files in one JSON file, keyed by absolute path: a copy elsewhere was not verified.

    Args:
        path: the ledger's file. A missing or damaged one counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._states = _read_states(path)

    def __contains__(self, file: Path) -> bool:
        return self._states.get(str(file.resolve())) == (file_state(file) or [])

    def add(self, file: Path) -> None:
        """Record that a file in its present state is verified."""
        self._states[str(file.resolve())] = file_state(file) or []

    def save(self) -> None:
        """Write the ledger.

        Raises:
            OSError: the system's own error.
        """
        write_json(self._path, self._states)


def _read_states(path: Path) -> dict[str, FileState]:
    try:
        states: dict[str, FileState] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return states if isinstance(states, dict) else {}
