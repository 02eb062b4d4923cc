"""How fast stored images become training batches, beside what else makes batches of them.

Every side of `sides.py` is a process that makes uint8 batches of 128 of the same drawn images, with RandomResizedCrop
and flip, out of the page cache. All are started, and stopped by SIGSTOP; then one at a time runs for a window of a
second, and each side's window lies between two of the baseline, whose mean it is divided by. So a machine that slows
down slows both, and a figure is the median of such ratios: of images a CPU second (of all the side's processes), and of
images a second of wall time. What a side has ready when it is stopped it has when it goes on, and the first part of a
window is not counted. The alternative, one side after the other, is simpler, and on a shared machine off by a factor of
two.

Usage: python benchmarks/load.py [--sizes PX ...] [--cores N ...] [--sides TEXT ...] [--rounds N] [--json FILE]
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from formats import WRITERS
from images import make_tree
from peers import python_of, why_missing
from shares import print_shares, shares_of
from sides import BASELINE, BATCH_SIZE, COUNTER_SLOTS, OURS, SIDES

from imagenet_mds.process.attempt import remove_stale

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.2
START_SECONDS = 240
STALL_SECONDS = 60
START_IMAGES = 4 * BATCH_SIZE
_TICKS = os.sysconf("SC_CLK_TCK")


def say(what: str) -> None:
    """Progress, with the time of it."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


class Stalled(RuntimeError):  # noqa: N818 # what the side is
    """A side that makes no images."""


def group_cpu_seconds(group: int) -> float:
    """Of all processes of a process group, and of those of them that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # Behind the name, which may hold anything: state, parent, group, ...
            fields = path.read_text(encoding="utf-8").rpartition(") ")[2].split()
        except OSError:  # gone in the meantime
            continue
        if int(fields[2]) == group:
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


@dataclass(frozen=True)
class Moment:
    """Images of a side so far, and when: wall and CPU seconds."""

    images: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Rates:
    """Images a second of each kind."""

    cpu: float
    wall: float


class Running:
    """A side's process group, running or stopped."""

    def __init__(self, name: str, folder: Path, size_px: int, cores: int, scratch: Path) -> None:
        self.name = name
        counter = scratch / f"{list(SIDES).index(name)}.counter"
        self._slots = np.memmap(counter, np.int64, "w+", shape=(COUNTER_SLOTS,))
        self._log = counter.with_suffix(".log")
        peer = SIDES[name].peer
        python = python_of(peer) if peer else sys.executable
        command = [python, HERE / "sides.py", name, folder, size_px, cores, counter]
        environment = {
            "OMP_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": str(cores),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TMPDIR": str(scratch),
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | environment,
            )

    @property
    def images(self) -> int:
        """So far."""
        return int(self._slots.sum())

    def why_ended(self) -> str:
        """The last line of what it said."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no reason given"

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        os.killpg(self.process.pid, number)

    def pin(self, processors: Iterable[int]) -> None:
        """Keep every thread of all its processes to these."""
        for task in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = task.read_text(encoding="utf-8").rpartition(") ")[2].split()
                if int(fields[2]) == self.process.pid:
                    for thread in (task.parent / "task").iterdir():
                        os.sched_setaffinity(int(thread.name), processors)
            except OSError:  # gone in the meantime
                continue

    def moment(self) -> Moment:
        """The next time that its counter moves: a batch that is half done is in no window."""
        before, begun = self.images, time.perf_counter()
        while (images := self.images) == before:
            if self.process.poll() is not None or time.perf_counter() - begun > STALL_SECONDS:
                raise Stalled(f"stopped making images: {self.why_ended()}")
            time.sleep(0.001)
        return Moment(images, time.perf_counter(), group_cpu_seconds(self.process.pid))

    def window(self, seconds: float) -> Rates:
        """Let it run, and it alone."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        start = self.moment()
        time.sleep(seconds)
        end = self.moment()
        self.signal(signal.SIGSTOP)
        images = end.images - start.images
        return Rates(images / max(end.cpu - start.cpu, 1 / _TICKS), images / (end.wall - start.wall))

    def end(self) -> None:
        """End all its processes, stopped or not."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


def start_all(names: Sequence[str], start: Any, notes: dict[str, str]) -> dict[str, Running]:
    """Start the sides, each stopped as soon as it has made `START_IMAGES`; those that fail go to the notes."""
    waiting = {name: start(name) for name in names}
    ready: dict[str, Running] = {}
    begun = time.perf_counter()
    while waiting:
        time.sleep(0.05)
        late = time.perf_counter() - begun > START_SECONDS
        for name, side in list(waiting.items()):
            if side.process.poll() is not None or late:
                notes[name] = f"does not start here: {side.why_ended()}"
                if late:
                    side.end()
            elif side.images >= START_IMAGES:
                side.signal(signal.SIGSTOP)
                ready[name] = side
            else:
                continue
            del waiting[name]
    return {name: ready[name] for name in names if name in ready}


@dataclass
class Taken:
    """A side's ratios to the baseline, and its own rates, a window each."""

    ratios: list[Rates] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Medians."""
        return {
            "ratio_cpu": round(statistics.median(one.cpu for one in self.ratios), 2),
            "ratio_wall": round(statistics.median(one.wall for one in self.ratios), 2),
            "images_per_cpu_second": round(statistics.median(one.cpu for one in self.rates)),
            "images_per_second": round(statistics.median(one.wall for one in self.rates)),
        }


def measure(sides: dict[str, Running], rounds: int, seconds: float, notes: dict[str, str]) -> dict[str, Taken]:
    """Windows of all sides in turn, the baseline's between them."""
    baseline = sides[BASELINE]
    taken = {name: Taken() for name in sides}
    before = baseline.window(seconds)
    for number in range(rounds):
        for name in [name for name in sides if name != BASELINE and name not in notes]:
            try:
                own = sides[name].window(seconds)
            except Stalled as error:
                notes[name] = str(error)
                with contextlib.suppress(ProcessLookupError):
                    sides[name].signal(signal.SIGSTOP)
                continue
            after = baseline.window(seconds)
            mean = Rates((before.cpu + after.cpu) / 2, (before.wall + after.wall) / 2)
            taken[name].ratios.append(Rates(own.cpu / mean.cpu, own.wall / mean.wall))
            taken[name].rates.append(own)
            taken[BASELINE].ratios.append(Rates(1.0, 1.0))
            taken[BASELINE].rates.append(after)
            before = after
        say(f"  round {number + 1} of {rounds} is done")
    return {name: one for name, one in taken.items() if one.ratios}


def measure_case(
    folder: Path, names: Sequence[str], size_px: int, cores: int, rounds: int, seconds: float, notes: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Every side's medians at a size, on so many cores."""
    known = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        start = partial(Running, folder=folder, size_px=size_px, cores=cores, scratch=Path(scratch))
        sides = start_all(names, start, notes)
        try:
            for side in sides.values():
                side.pin(known[:cores])
            # Not where they are, if there is room.
            os.sched_setaffinity(0, known[cores:] or known)
            say("all are started")
            taken = measure(sides, rounds, seconds, notes)
        finally:
            os.sched_setaffinity(0, known)
            for side in sides.values():
                side.end()
            remove_stale()  # their shared memory
    return {name: one.row() for name, one in taken.items()}


def prepare(folder: Path, images: int, names: Sequence[str], notes: dict[str, str]) -> dict[str, int]:
    """Draw the images and write the formats of these sides, where they are not there; return the bytes of each."""
    for form in dict.fromkeys(("tree", *(SIDES[name].form for name in names))):
        ready = folder / f"{form}.ready"
        if ready.exists() and ready.read_text(encoding="utf-8") == str(images):
            continue
        shutil.rmtree(folder / form, ignore_errors=True)
        if form == "tree":
            make_tree(folder / form, images)
        elif reason := _write(folder, form):
            failed = [name for name in names if SIDES[name].form == form]
            notes.update(dict.fromkeys(failed, f"cannot write its format here: {reason}"))
            continue
        ready.write_text(str(images), encoding="utf-8")
        say(f"{form} is written")
    return {
        ready.stem: sum(path.stat().st_size for path in (folder / ready.stem).rglob("*") if path.is_file())
        for ready in folder.glob("*.ready")
    }


def _write(folder: Path, form: str) -> str | None:
    """Write a format; what went wrong, if something did."""
    peer = WRITERS[form][1]
    command = [python_of(peer) if peer else sys.executable, HERE / "formats.py", form, folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else None


def print_table(cases: list[dict[str, Any]]) -> None:
    """A row a side, a column a case: the ratio to the baseline by CPU, and by wall time."""
    heads = [f"{one['size_px']} px, {one['cores']} {'core' if one['cores'] == 1 else 'cores'}" for one in cases]
    print(f"\n| ratio by CPU / by wall | {' | '.join(heads)} |")
    print("|---|" + "---|" * len(cases))
    for name in SIDES:
        if any(name in one["sides"] for one in cases):
            cells = [
                f"{row['ratio_cpu']:.2f} / {row['ratio_wall']:.2f}" if (row := one["sides"].get(name)) else ""
                for one in cases
            ]
            print(f"| {name} | {' | '.join(cells)} |")
    for one in cases:
        row = one["sides"][BASELINE]
        print(
            f"baseline at {one['size_px']} px on {one['cores']}: {row['images_per_cpu_second']} images a CPU second, "
            f"{row['images_per_second']} a second"
        )


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 176, 128])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", nargs="+", help="only those whose names contain one of these; the baseline always")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--window-seconds", type=float, default=1.0)
    parser.add_argument(
        "--shares", action=argparse.BooleanOptionalAction, default=True, help="where our time goes, at the first size"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the images stay for the next run; not kept if not given")
    options = parser.parse_args()
    wanted = [
        name for name in SIDES if name == BASELINE or not options.sides or any(text in name for text in options.sides)
    ]
    notes = {name: reason for name in wanted if (peer := SIDES[name].peer) and (reason := why_missing(peer))}
    cases: list[dict[str, Any]] = []
    shares: list[dict[str, Any]] = []
    found = {"images": options.images, "rounds": options.rounds, "cases": cases, "shares": shares, "missing": notes}

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        size_bytes = prepare(folder, options.images, [name for name in wanted if name not in notes], notes)
        found["bytes"] = size_bytes
        for size_px in options.sizes:
            for cores in options.cores:
                say(f"{size_px} px on {cores} cores")
                names = [name for name in wanted if name not in notes]
                sides = measure_case(folder, names, size_px, cores, options.rounds, options.window_seconds, notes)
                cases.append({"size_px": size_px, "cores": cores, "sides": sides})
                keep()  # a long run that is stopped leaves what it has
        for side, (form, resize) in OURS.items():
            if side in wanted and form in size_bytes and options.shares:
                say(f"shares of {side}")
                parts = shares_of(folder, form, options.sizes[0], resize)
                shares.append({"side": side, "size_px": options.sizes[0]} | parts)
                keep()
    print(f"{options.images:,} images of {size_bytes['tree'] / options.images / 1000:.0f} kB, {options.rounds} rounds")
    print_table(cases)
    print_shares(shares)
    for name, reason in notes.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
