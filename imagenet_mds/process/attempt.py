"""What one attempt at a run takes from the machine, and gives back whatever way it ends.

Streaming keeps its state in shared memory blocks and lock files that all jobs of a machine name alike
(`000000_locals`). Those of a killed job stay, and the library's own cleaning destroys a live job's too. So each attempt
gets a temporary folder and a range of block numbers of its own, both named by one random number:

    /tmp/imagenet-mds-<machine>-<number>-*  its temporary folder
    /dev/shm/imagenet-mds-<number>          its owner file
    /dev/shm/<number>00_* to <number>99_*   its blocks

The attempt is alive while the folder and the owner file are locked. The kernel releases the locks when the owner ends,
however it ends. A process number would not do: it is used again, and in another container that shares a folder it names
another process or none, so that a live attempt looks stale there. Locks of folders do not reach other machines, so the
folder names its machine too, by a part of the boot's identifier, and only folders of this boot are ever removed. What
stale attempts left is removed at the next start.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
BASE_VARIABLE = "IMAGENET_MDS_BLOCK_BASE"
"""The environment variable that tells a rank the first block number of its attempt."""

_SOCKET_PATH_BYTES = 107  # sun_path on Linux, without its terminating zero
_OURS_BYTES = len("/imagenet-mds-12345678-123456789012-12345678/pymp-12345678/listener-12345678")

_BLOCKS_PER_ATTEMPT = 100
_NUMBERS = range(10**11, 10**12)  # twelve digits, so that our blocks are recognised by their length
_BLOCK = re.compile(r"(\d{12})\d\d_[a-z_]+\Z")
_FOREIGN = re.compile(r"\d{6}_[a-z_]+\Z")
_OWNER = re.compile(r"imagenet-mds-(\d{12})\Z")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Attempt:
    """The resources of one attempt."""

    number: int
    temporary: Path

    @property
    def block_base(self) -> int:
        """The first number of this attempt's shared memory blocks. Stock jobs count from 0 and never reach it."""
        return self.number * _BLOCKS_PER_ATTEMPT

    def environment(self) -> dict[str, str]:
        """The environment variables that tell a rank about the attempt.

        Warnings are off: otherwise the first screen of a run would be a hundred lines of what torch, Composer and their
        dependencies deprecate, and the last one what Python's resource tracker says of blocks that are removed here. It
        is a variable and not a filter because the tracker is a process of its own.
        """
        return {"TMPDIR": str(self.temporary), BASE_VARIABLE: str(self.block_base), "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def attempt() -> Iterator[Attempt]:
    """Take resources, and give them back at the end. Those of stale attempts are removed first."""
    remove_stale()
    with contextlib.ExitStack() as stack:
        number = stack.enter_context(_owned_number())
        folder = stack.enter_context(_owned_folder(number))
        yield Attempt(number, folder)


def remove_stale() -> None:
    """Remove the folders, blocks and owner files of attempts whose owner has ended."""
    # Blocks are listed before owner files: a live attempt has its owner file before its first block.
    blocks = {int(match[1]) for path in _listed(SHARED_MEMORY) if (match := _BLOCK.match(path.name))}
    owners = {int(match[1]) for path in _listed(SHARED_MEMORY) if (match := _OWNER.match(path.name))}
    for number in blocks - owners:
        _remove_blocks(number)
    for number in owners:
        _remove_unless_locked(_owner_file(number), partial(_remove_owner, number))
    for path in _listed(_temporary_root()):
        if path.name.startswith(f"imagenet-mds-{_machine()}-"):
            _remove_unless_locked(path, partial(shutil.rmtree, path, ignore_errors=True))


@dataclass(frozen=True)
class Blocks:
    """Blocks in shared memory.

    live: processes that own attempts, which run.
    stale: blocks and owner files whose owner has ended.
    foreign: blocks of Streaming that are not of this program.
    """

    live: set[int]
    stale: list[str]
    foreign: list[str]


def leftover_blocks() -> Blocks:
    """What is in shared memory of this program and of Streaming. Changes nothing."""
    names = [path.name for path in _listed(SHARED_MEMORY)]
    owners = {int(match[1]) for name in names if (match := _OWNER.match(name))}
    alive = {number: pid for number in owners if (pid := _live_owner(_owner_file(number))) is not None}
    mine = {name: int(match[1]) for name in names if (match := _BLOCK.match(name))}
    stale = [name for name, number in mine.items() if number not in alive]
    stale += [_owner_file(number).name for number in owners if number not in alive]
    foreign = [name for name in names if _FOREIGN.match(name)]
    return Blocks(set(alive.values()), stale, foreign)


def _live_owner(path: Path) -> int | None:
    """The process that holds an owner file, None if nobody does."""
    try:
        with open(path, encoding="ascii") as file:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            return int(file.read() or 0)
    except OSError:  # it is another user's, or gone
        return None


@contextlib.contextmanager
def _owned_number() -> Iterator[int]:
    """A random number whose owner file this process holds. The file names the process, for people."""
    if not SHARED_MEMORY.is_dir():
        yield secrets.choice(_NUMBERS)
        return
    while True:
        number = secrets.choice(_NUMBERS)
        descriptor = os.open(_owner_file(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _claim(descriptor, _owner_file(number)):
                os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
                try:
                    yield number
                finally:
                    _remove_owner(number)
                return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _owned_folder(number: int) -> Iterator[Path]:
    """A temporary folder that this process holds."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"imagenet-mds-{_machine()}-{number}-", dir=_temporary_root()))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # unlocked yet, it looked stale to another start
            continue
        try:
            if _claim(descriptor, folder):
                yield folder
                return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _claim(descriptor: int, path: Path) -> bool:
    """Lock an open file or folder without waiting. Return whether this process holds it and it is still at its path:
    another process may have found it unlocked and removed it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there, here = path.stat(), os.fstat(descriptor)
    except (BlockingIOError, FileNotFoundError):
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _remove_unless_locked(path: Path, remove: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # it is another user's, or gone
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _claim(descriptor, path):
                remove()
        finally:
            os.close(descriptor)


def _remove_owner(number: int) -> None:
    """Remove an attempt's blocks, then its owner file."""
    _remove_blocks(number)
    _owner_file(number).unlink(missing_ok=True)


def _remove_blocks(number: int) -> None:
    for path in SHARED_MEMORY.glob(f"{number}[0-9][0-9]_*"):
        with contextlib.suppress(OSError):  # it is another user's, or gone
            path.unlink()


def _owner_file(number: int) -> Path:
    return SHARED_MEMORY / f"imagenet-mds-{number}"


@cache
def _machine() -> str:
    """Eight hexadecimal digits for this boot of this machine, zeros where the kernel does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii")[:8]
    except OSError:
        return "0" * 8


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _temporary_root() -> Path:
    """Where temporary folders are created: the system's place, unless its path is so long that the name of the socket
    through which loader workers hand over memory would not fit behind it. They would wait for each other for ever."""
    place = tempfile.gettempdir()
    return Path(place if len(os.fsencode(place)) <= _SOCKET_PATH_BYTES - _OURS_BYTES else "/tmp")
