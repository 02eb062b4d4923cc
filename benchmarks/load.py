"""How fast stored images become training batches, compared with other loaders.

Every side of `sides.py` is a process that makes uint8 batches of 128 of the same images, with RandomResizedCrop
and flip, out of the page cache. All sides are started and stopped with SIGSTOP. Then one at a time runs for a window of
a second. The windows of the baseline alternate with the others, and the rate of a side is divided by the mean of the
baseline's before and after it, so a machine that slows down slows both. A figure is the median of such ratios, of
images per CPU second of all processes of the side and of images per second of wall time. A side resumes with the
batches that it had ready when it was stopped, so the first part of a window is not counted. Running one side after the
other would be simpler, but on a shared machine it is wrong by a factor of two.

Usage: python benchmarks/load.py [--photos FOLDER] [--sizes PX ...] [--cores N ...] [--sides TEXT ...] [--rounds N]
[--json FILE]
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
from images import copy_tree, make_tree, photos_in
from peers import python_of, why_missing
from sides import BASELINE, BATCH_SIZE, COUNTER_SLOTS, SIDES
from timing import TICK_SECONDS, group_cpu_seconds, group_processes

from imagenet_mds.process.attempt import remove_stale

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.2
START_SECONDS = 240
STALL_SECONDS = 60
START_IMAGES = 4 * BATCH_SIZE


def say(what: str) -> None:
    """Print progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


class Stalled(RuntimeError):  # noqa: N818 # it names a state, which is no error
    """A side has stopped making images."""


@dataclass(frozen=True)
class Moment:
    """The images that a side has made, and when: wall and CPU seconds."""

    images: int
    wall: float
    cpu: float


@dataclass(frozen=True)
class Rates:
    """Images per second of CPU and wall time."""

    cpu: float
    wall: float


class Running:
    """The process group of a side, running or stopped."""

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
        """Number of images made so far."""
        return int(self._slots.sum())

    def why_ended(self) -> str:
        """Return the last line of its output."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no reason given"

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the side."""
        os.killpg(self.process.pid, number)

    def pin(self, processors: Iterable[int]) -> None:
        """Pin every thread of all processes of the side to these processors."""
        for folder, _ in group_processes(self.process.pid):
            with contextlib.suppress(OSError):  # the process or thread has ended
                for thread in (folder / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), processors)

    def moment(self) -> Moment:
        """Wait until the counter moves, so that windows do not cut batches, and return that moment.

        Raises:
            Stalled: the side has ended, or makes no images.
        """
        before, begun = self.images, time.perf_counter()
        while (images := self.images) == before:
            if self.process.poll() is not None or time.perf_counter() - begun > STALL_SECONDS:
                raise Stalled(f"stopped making images: {self.why_ended()}")
            time.sleep(0.001)
        return Moment(images, time.perf_counter(), group_cpu_seconds(self.process.pid))

    def window(self, seconds: float) -> Rates:
        """Run this side for a window.

        Raises:
            Stalled: the side has ended, or makes no images.
        """
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        start = self.moment()
        time.sleep(seconds)
        end = self.moment()
        self.signal(signal.SIGSTOP)
        images = end.images - start.images
        return Rates(images / max(end.cpu - start.cpu, TICK_SECONDS), images / (end.wall - start.wall))

    def end(self) -> None:
        """Kill all processes of the side, stopped or not."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait()


def start_all(names: Sequence[str], start: Any, missing: dict[str, str]) -> dict[str, Running]:
    """Start the sides, and stop each one after `START_IMAGES`. Those that fail are reported in `missing`."""
    waiting = {name: start(name) for name in names}
    ready: dict[str, Running] = {}
    begun = time.perf_counter()
    while waiting:
        time.sleep(0.05)
        late = time.perf_counter() - begun > START_SECONDS
        for name, side in list(waiting.items()):
            if side.process.poll() is not None or late:
                missing[name] = f"does not start here: {side.why_ended()}"
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
    """The ratios of a side to the baseline, and its rates, one per window."""

    ratios: list[Rates] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Return the medians."""
        return {
            "ratio_cpu": round(statistics.median(one.cpu for one in self.ratios), 2),
            "ratio_wall": round(statistics.median(one.wall for one in self.ratios), 2),
            "images_per_cpu_second": round(statistics.median(one.cpu for one in self.rates)),
            "images_per_second": round(statistics.median(one.wall for one in self.rates)),
        }


def measure(sides: dict[str, Running], rounds: int, seconds: float, missing: dict[str, str]) -> dict[str, Taken]:
    """Run windows of all sides in turn, with the baseline's between them."""
    baseline = sides[BASELINE]
    taken = {name: Taken() for name in sides}
    before = baseline.window(seconds)
    for number in range(rounds):
        for name in [name for name in sides if name != BASELINE and name not in missing]:
            try:
                own = sides[name].window(seconds)
            except Stalled as error:
                missing[name] = str(error)
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
    folder: Path, names: Sequence[str], size_px: int, cores: int, rounds: int, seconds: float, missing: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Return the medians of every side at a size, on `cores` cores."""
    known = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        start = partial(Running, folder=folder, size_px=size_px, cores=cores, scratch=Path(scratch))
        sides = start_all(names, start, missing)
        try:
            for side in sides.values():
                side.pin(known[:cores])
            # This process stays off their cores if there are others.
            os.sched_setaffinity(0, known[cores:] or known)
            say("all are started")
            taken = measure(sides, rounds, seconds, missing)
        finally:
            os.sched_setaffinity(0, known)
            for side in sides.values():
                side.end()
            remove_stale()  # removes their shared memory
    return {name: one.row() for name, one in taken.items()}


def prepare(
    folder: Path, images: int, photos: Sequence[Path], names: Sequence[str], missing: dict[str, str]
) -> dict[str, int]:
    """Copy the photographs, or draw as many images, and write the formats of these sides, unless they exist; return
    the size of each in bytes."""
    what = "\n".join(map(str, (images, *photos)))
    for form in dict.fromkeys(("tree", *(SIDES[name].form for name in names))):
        ready = folder / f"{form}.ready"
        if ready.exists() and ready.read_text(encoding="utf-8") == what:
            continue
        shutil.rmtree(folder / form, ignore_errors=True)
        if form == "tree":
            copy_tree(folder / form, photos) if photos else make_tree(folder / form, images)
        elif reason := _write(folder, form):
            failed = [name for name in names if SIDES[name].form == form]
            missing.update(dict.fromkeys(failed, f"cannot write its format here: {reason}"))
            continue
        ready.write_text(what, encoding="utf-8")
        say(f"{form} is written")
    return {
        ready.stem: sum(path.stat().st_size for path in (folder / ready.stem).rglob("*") if path.is_file())
        for ready in folder.glob("*.ready")
    }


def _write(folder: Path, form: str) -> str | None:
    """Write a format. Return the error, None if there was none."""
    peer = WRITERS[form][1]
    command = [python_of(peer) if peer else sys.executable, HERE / "formats.py", form, folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else None


def print_table(cases: list[dict[str, Any]]) -> None:
    """Print one row per side and one column per case: the ratios to the baseline by CPU and by wall time."""
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
            f"baseline at {one['size_px']} px on {one['cores']}: {row['images_per_cpu_second']} images per CPU second, "
            f"{row['images_per_second']} per second"
        )


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000, help="number of images; with --photos at most that many")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="your JPEG files, in place of drawn images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 176, 128])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--sides", nargs="+", help="only sides whose name contains one of these texts, and the baseline"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--window-seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the images here for the next run")
    options = parser.parse_args()
    wanted = [
        name for name in SIDES if name == BASELINE or not options.sides or any(text in name for text in options.sides)
    ]
    missing = {name: reason for name in wanted if (peer := SIDES[name].peer) and (reason := why_missing(peer))}
    photos = photos_in(options.photos)[: options.images] if options.photos else []
    if options.photos and not photos:
        parser.error(f"there is no JPEG file in {options.photos}")
    images = len(photos) or options.images
    cases: list[dict[str, Any]] = []
    found = {
        "images": images,
        "photos": len(photos),
        "rounds": options.rounds,
        "cases": cases,
        "missing": missing,
    }

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        size_bytes = prepare(folder, images, photos, [name for name in wanted if name not in missing], missing)
        found["bytes"] = size_bytes
        for size_px in options.sizes:
            for cores in options.cores:
                say(f"{size_px} px on {cores} cores")
                names = [name for name in wanted if name not in missing]
                sides = measure_case(folder, names, size_px, cores, options.rounds, options.window_seconds, missing)
                cases.append({"size_px": size_px, "cores": cores, "sides": sides})
                save()  # a long run that is stopped keeps its results
    kind = "photographs" if photos else "drawn images"
    print(f"{images:,} {kind} of {size_bytes['tree'] / images / 1000:.0f} kB, {options.rounds} rounds")
    print_table(cases)
    for name, reason in missing.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
