"""Faults of a machine: its disk, its clock, its cache."""

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.acts import leave
from tests.chaos.arena import (
    Unavailable,
)
from tests.chaos.driver import Game

SMALL_DISK_BYTES = 500 << 20
"""Room for the checkpoints of a run, and not for many more."""


def disk_full(game: Game) -> str:
    """The disk fills up, and has room again before the next start."""
    leave(game)
    game.next_on = "new machine"
    machine = game.next_machine()
    game.next_on = "same machine"
    _mount_small_disk(machine.folder / "cache", game)
    game.wait_for_batches(1)
    left_bytes = game.random.choice([0, game.random.randrange(30 << 20)])
    filler = machine.folder / "cache" / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(filler.parent).free > left_bytes:
            file.write(bytes(1 << 20))
    assert filler.stat().st_size
    try:
        game.ended({78}, "make room and run the same command again")
    finally:
        filler.unlink()
    game.next_on = "same machine"
    return f"{left_bytes:,} bytes were left"


def clock_jumps(game: Game) -> str:
    """The wall clock jumps an hour ahead and back."""
    if game.command:
        game.kill()
    clock = game.folder / "clock"
    _set_clock(clock, 0)
    game.variables = {"LD_PRELOAD": str(_clock_library(game.folder)), "CHAOS_CLOCK": str(clock)}
    try:
        game.wait_for_batches(2)
        _set_clock(clock, 3600)
        game.wait_for(lambda: _is_ahead(game), "the jump ahead")
        game.wait_for_batches(len(game.events("batch")) + 3)
        _set_clock(clock, 0)
        game.wait_for(lambda: not _is_ahead(game), "the jump back")
        game.wait_for_batches(len(game.events("batch")) + 3)
    finally:
        game.variables = {}
    return f"until batch {game.reached()}"


def cached_shard_zeroed(game: Game) -> str:
    """The end of a shard in the cache of a machine was never written."""
    if not game.from_s3 or not game.machines or not game.machines[-1].shards():
        if game.command:
            game.kill()
        game.from_s3 = True
    game.wait_for_batches(1)
    game.kill()
    shard = game.random.choice(game.machines[-1].shards())
    size_bytes = shard.stat().st_size
    with open(shard, "r+b") as file:
        file.truncate(size_bytes // 2)
        file.truncate(size_bytes)
    game.next_on = "same machine"
    game.expect(f"{shard.name} is fetched again")
    return shard.name


def _clock_library(folder: Path) -> Path:
    """Compile the clock that jumps.

    Raises:
        Unavailable: there is no compiler.
    """
    compiler, library = shutil.which("cc"), folder / "clock.so"
    if compiler is None:
        raise Unavailable("there is no C compiler")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _set_clock(clock: Path, seconds: int) -> None:
    """Set the file that `clock.c` maps."""
    with open(clock, "r+b" if clock.exists() else "wb") as file:
        file.write(seconds.to_bytes(8, sys.byteorder))


def _is_ahead(game: Game) -> bool:
    """Whether the clock of the run is far ahead of the one here."""
    time_seconds: float = game.events()[-1]["time"]
    return time_seconds > time.time() + 1800


def _mount_small_disk(folder: Path, game: Game) -> None:
    """Mount a small disk in a folder until the game ends.

    Raises:
        Unavailable: this user may not.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Unavailable("this user may not mount a small disk")
    game.at_the_end.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
