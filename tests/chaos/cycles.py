"""A run that is started and killed again and again, beside another one that lives on: nothing may pile up."""

import contextlib
import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from imagenet_mds.process.attempt import SHARED_MEMORY
from tests.chaos.arena import Machine, arguments, is_running, kill_tree
from tests.support.command import HANG_SECONDS, start, wait_until
from tests.support.s3_server import BUCKET, Proxy, direct
from tests.support.states import read_log, tree_of

ENDLESS = ("schedule.epochs=1000",)
CHECKPOINTS_HERE = 5
"""The newest, the best, one that is being written, one that is being uploaded, and one of a killed start."""

ENDING_SECONDS = 5.0
"""Less than a cycle takes: what lasts is counted in the next one too."""

MARK = "IMAGENET_MDS_TEST_CYCLES"


@dataclass
class Cycles:
    """What was found after each kill; the last three are of the end.

    batches: how many were trained, over all starts.
    shared: names in the shared memory that killed starts had left, at most at once.
    disk_mb: the working copy, the cache and the temporary folder together.
    objects: of the run in S3.
    """

    count: int
    batches: int = 0
    orphans: int = 0
    shared: int = 0
    disk_mb: list[float] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    seconds: float = 0.0
    shared_at_end: int = 0
    temporary_at_end: int = 0
    uploads_at_end: int = 0

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.count} crash cycles with {self.batches} batches in {self.seconds / 60:.0f} min: {self.orphans} "
            f"orphans; shared memory: {self.shared} names at most after a kill, {self.shared_at_end} at the end; "
            f"disk: {max(self.disk_mb):.0f} MB at most, {self.disk_mb[-1]:.0f} at the end; S3: {max(self.objects)} "
            f"objects at most, {self.objects[-1]} at the end"
        )


@contextlib.contextmanager
def neighbour(dataset: Path, folder: Path) -> Iterator[set[str]]:
    """A run that trains before and after what comes between; its ranks are stopped meanwhile, to save the processor.

    Gives its names in the shared memory, which it must have to the end.
    """
    more = (*ENDLESS, "system.hang_seconds=null")
    process = start(*arguments(dataset, folder, "neighbour", 1), *more, log=folder / "neighbour.out")

    def batches() -> int:
        return sum(event["event"] == "batch" for event in read_log(folder / "neighbour" / "log.jsonl"))

    try:
        wait_until(lambda: batches() > 1, "a batch of the neighbour", process)
        launcher, *pids = tree_of(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        names = shared_names([launcher, *pids])
        assert names, "the neighbour has no shared memory"
        yield names
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        before = batches()
        wait_until(lambda: batches() > before + 1, "more batches of the neighbour", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_SECONDS) == 75, (folder / "neighbour.out").read_text(encoding="utf-8")
    finally:
        kill_tree(process.pid)
        process.wait()


def shared_names(pids: list[int]) -> set[str]:
    """What processes have mapped of the shared memory, and the owner file of their attempt."""
    names = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
                path = line.partition(f" {SHARED_MEMORY}/")[2]
                if path and not path.endswith(" (deleted)"):
                    names.add(path)
    for owner in SHARED_MEMORY.glob("imagenet-mds-*"):
        with contextlib.suppress(OSError, ValueError):
            if int(owner.read_text(encoding="ascii")) in pids:
                names.add(owner.name)
    return names


def play(dataset: Path, server: int, proxy: Proxy, folder: Path, count: int, seed: int) -> Cycles:
    """Kill a run `count` times at random moments, each time with everything or the command alone; then stop it.

    Args:
        dataset, server, proxy: what games share.
        folder: for the runs.
        count: how often.
        seed: for the moments.
    """
    draw, found, began = random.Random(seed), Cycles(count), time.monotonic()
    machine, mark = Machine(folder / "machine"), secrets.token_hex(8)
    machine.folder.mkdir()
    # The path of a socket in it must be short.
    temporary = Path(tempfile.mkdtemp(prefix="cycles", dir="/tmp"))
    variables = {**proxy.variables, **machine.variables, "TMPDIR": str(temporary), MARK: mark}
    ours: set[str] = set()
    longest_seconds = 0.0
    try:
        with neighbour(dataset, folder) as theirs:
            for number in range(count + 1):
                command = arguments(dataset, f"s3://{BUCKET}/runs", "cycles", draw.choice((1, 2)))
                out, started, before = folder / "cycles.out", time.time(), len(machine.log("cycles"))
                process = start(*command, *ENDLESS, log=out, **variables)

                def trains(started: float = started) -> bool:
                    return any(e["event"] == "batch" and e["time"] >= started for e in machine.log("cycles")[-50:])

                if number in (0, count):  # the first says how long a start takes, the last one cleans
                    wait_until(trains, "a batch", process)
                    longest_seconds = longest_seconds or time.time() - started + 5
                else:
                    until = time.monotonic() + draw.uniform(0.2, longest_seconds)
                    wait_until(partial(_is_past, until), "the moment", process)
                pids = tree_of(process.pid)
                ours |= shared_names(pids)
                if number == count:
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(HANG_SECONDS) == 75, out.read_text(encoding="utf-8")
                elif draw.random() < 0.5:
                    kill_tree(process.pid)
                    process.wait()
                else:
                    process.kill()
                    process.wait()
                wait_until(partial(_are_gone, pids), "the end of ranks and workers")
                found.orphans += len(lasting(mark))
                found.batches += sum(event["event"] == "batch" for event in machine.log("cycles")[before:])
                found.shared = max(found.shared, sum((SHARED_MEMORY / name).exists() for name in ours))
                found.disk_mb.append((size_bytes(machine.folder) + size_bytes(temporary)) / 1e6)
                found.objects.append(len(keys(server)))
                touched = [name for name in theirs if not (SHARED_MEMORY / name).exists()]
                assert not touched, f"shared memory of the neighbour is gone: {touched}"
        found.shared_at_end = sum((SHARED_MEMORY / name).exists() for name in ours)
        found.temporary_at_end = len(list(temporary.iterdir()))
        found.uploads_at_end = len(direct(server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))
        found.seconds = time.monotonic() - began
        check(found, machine)
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _is_past(until: float) -> bool:
    return time.monotonic() > until


def _are_gone(pids: list[int]) -> bool:
    return not any(map(is_running, pids))


def check(found: Cycles, machine: Machine) -> None:
    """Check that the cycles have left nothing behind."""
    assert (found.orphans, found.shared_at_end, found.temporary_at_end, found.uploads_at_end) == (0, 0, 0, 0), found
    checkpoint = max(path.stat().st_size for path in machine.folder.rglob("*.pt")) / 1e6
    assert max(found.disk_mb) < (CHECKPOINTS_HERE + 0.5) * checkpoint, found
    # The last three and the best with their records, an upload that was killed before its record, two leases, files.
    epochs = max(event.get("epoch", 0) for event in machine.log("cycles"))
    assert max(found.objects) <= 2 * (4 + epochs // 10) + 1 + 3 + 6, found


def lasting(mark: str) -> list[int]:
    """The processes with a mark that do not end by themselves. A rank that was just being started when its launcher was
    killed looks for it as soon as Python has started."""
    until = time.monotonic() + ENDING_SECONDS
    while (found := marked(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def marked(mark: str) -> list[int]:
    """The processes that have inherited a mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return [pid for pid in found if is_running(pid)]


def size_bytes(folder: Path) -> int:
    """What the files in a folder take; a file with several names counts once."""
    files: dict[int, int] = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            files[status.st_ino] = status.st_blocks * 512
    return sum(files.values())


def keys(server: int) -> list[str]:
    """The keys of the run in S3, past the proxy."""
    pages = direct(server).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="runs/cycles/")
    return [item["Key"] for page in pages for item in page.get("Contents", [])]
