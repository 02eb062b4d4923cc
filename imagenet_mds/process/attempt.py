"""What one attempt at a run borrows from the machine, and gives back whatever way it ends.

Streaming keeps its state in shared memory blocks and lock files that all jobs of a machine name alike
(`000000_locals`); those of a killed job stay, and the library's own cleaning destroys a live job's too. So each attempt
gets a temporary folder and a range of block numbers of its own, both named after the process that owns them; what
belongs to a process that is gone is removed at the next start.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
BASE_VARIABLE = "IMAGENET_MDS_BLOCK_BASE"
"""The environment variable that tells a rank the first block number of its attempt."""

_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its end
_OURS_BYTES = len("/imagenet-mds-1234567-1234567-12345678/pymp-12345678/listener-12345678")

_BLOCKS_PER_PROCESS = 100
_PROCESSES = 10**8
_BLOCK = re.compile(r"(\d{17,})_[a-z_]+\Z")
_FOLDER = re.compile(r"imagenet-mds-(\d+)-(\d+)-")


@cache
def _namespace() -> int:
    """A number of seven digits for the process namespace: containers that share /dev/shm have the same process numbers,
    and one must not take the other's living for its dead."""
    return 10**6 + Path("/proc/self/ns/pid").stat().st_ino % 10**6


@dataclass(frozen=True)
class Attempt:
    """Resources of the process `pid` and the ranks it starts."""

    pid: int
    temporary: Path

    @property
    def block_base(self) -> int:
        """The first number of this attempt's shared memory blocks; stock jobs count from 0 and never come here."""
        return _first_block(self.pid)

    def environment(self) -> dict[str, str]:
        """What a rank's environment says of the attempt.

        Warnings are off: a run's first screen would be a hundred lines of what torch, Composer and their dependencies
        deprecate, and its last what Python's resource tracker thinks of blocks that are removed here. A variable and
        not a filter, for the tracker is a process of its own.
        """
        return {"TMPDIR": str(self.temporary), BASE_VARIABLE: str(self.block_base), "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def attempt() -> Iterator[Attempt]:
    """Borrow, and give back at the end; before that, give back what dead processes of ours still hold."""
    remove_stale()
    folder = tempfile.mkdtemp(prefix=f"imagenet-mds-{_namespace()}-{os.getpid()}-", dir=_temporary_root())
    mine = Attempt(os.getpid(), Path(folder))
    try:
        yield mine
    finally:
        _remove(mine.pid, [mine.temporary])


def remove_stale() -> None:
    """Remove the blocks and temporary folders of our processes that are gone."""
    folders: dict[int, list[Path]] = {}
    for path in _temporary_root().glob("imagenet-mds-*"):
        if (match := _FOLDER.match(path.name)) and int(match[1]) == _namespace():
            folders.setdefault(int(match[2]), []).append(path)
    mine = range(_first_block(0), _first_block(_PROCESSES))
    owners = {(number - mine.start) // _BLOCKS_PER_PROCESS for number in _blocks() if number in mine}
    for pid in owners | folders.keys():
        if not Path(f"/proc/{pid}").exists():
            _remove(pid, folders.get(pid, []))


def _temporary_root() -> Path:
    """Where temporary folders are made: the system's place, unless its path is so long that the socket through which
    loader workers hand over memory would not fit behind it; they would wait for each other for ever."""
    place = tempfile.gettempdir()
    return Path(place if len(os.fsencode(place)) <= _SOCKET_PATH_BYTES - _OURS_BYTES else "/tmp")


def _first_block(pid: int) -> int:
    return (_namespace() * _PROCESSES + pid) * _BLOCKS_PER_PROCESS


def _blocks() -> list[int]:
    if not SHARED_MEMORY.is_dir():
        return []
    return [int(match[1]) for path in SHARED_MEMORY.iterdir() if (match := _BLOCK.match(path.name))]


def _remove(pid: int, folders: list[Path]) -> None:
    first = _first_block(pid)
    for number in set(_blocks()):
        if first <= number < first + _BLOCKS_PER_PROCESS:
            for path in SHARED_MEMORY.glob(f"{number}_*"):
                with contextlib.suppress(OSError):  # another user's, or gone in the meantime
                    path.unlink()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
