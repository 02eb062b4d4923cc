"""What an interruption costs: seconds to the first trained batch, and the stall of the training by a save.

Real commands on a dataset of many tiny samples, so that the place in an epoch is far from its start. In a round a new
run is started, and a run that was stopped late in its first epoch is continued; the time is from the command to
the first batch in the log. Then a rank of a run with `--until-done` is killed, and the next batch is waited for. The
stall is what the log says of the saves of a ResNet-50 with momentum and average: `stall_seconds` is how long training
stood still, `durable_seconds` how long it would have stood still beside that if it waited for the disk.

Usage: python benchmarks/resume.py [--samples N] [--rounds N] [--json FILE]
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from epoch import make_dataset

BATCH_SIZE = 256
LATE_SHARE = 0.9
HANG_SECONDS = 900
COMMON = (
    f"global_batch_size={BATCH_SIZE}",
    "augment.size_px=16",
    "evaluation.every_epochs=null",
    "model={depth: 10, classes: 1000}",
    "schedule={epochs: 2, warmup_epochs: 0}",
    "data={subset: null, workers_per_rank: 1}",
    "algorithms={ema: null, mixup: null, cutmix: null}",
    "logging={every_batches: 1, print_every_batches: 1000}",
)
SAVING = ("model.depth=50", "global_batch_size=8", "augment.size_px=32", "algorithms.ema={half_life_batches: 10}")
SAVES = 6


def command(dataset: Path, folder: Path, *more: str) -> list[str]:
    """The command that starts a run and continues it."""
    place = ["--data", str(dataset), "--save", str(folder.parent), "--run-name", folder.name]
    return [sys.executable, "-m", "imagenet_mds", "train", "--config", "demo", *place, *COMMON, *more]


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    """The whole lines of a run's log that are of a kind."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def started(arguments: list[str], output: Path) -> "subprocess.Popen[bytes]":
    """Start a command, its output to a file."""
    with open(output, "ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file)


def wait(process: "subprocess.Popen[bytes]", until: Callable[[], bool], output: Path) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    while not until():
        if process.poll() is not None or time.monotonic() - begun > HANG_SECONDS:
            raise RuntimeError(f"ended with {process.returncode}: {output.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.01)
    return time.monotonic() - begun


def seconds_to_first_batch(dataset: Path, folder: Path) -> float:
    """Seconds from the command to its first batch in the log; the run is killed then."""
    before, output = len(events(folder, "batch")), folder.with_suffix(".out")
    process = started(command(dataset, folder), output)
    seconds = wait(process, lambda: len(events(folder, "batch")) > before, output)
    end(process)
    return seconds


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command; its ranks end with it."""
    process.kill()
    process.wait()
    time.sleep(1)


def stopped_late(dataset: Path, folder: Path, batch: int) -> None:
    """Train until a batch, and stop in good order."""
    output = folder.with_suffix(".out")
    process = started(command(dataset, folder), output)
    wait(process, lambda: any(event["batch"] >= batch for event in events(folder, "batch")), output)
    process.send_signal(signal.SIGTERM)
    process.wait()


def crash_to_next_batch(dataset: Path, folder: Path) -> dict[str, float]:
    """Seconds from the kill of a rank to the next batch, and the parts of it that the log tells."""
    output = folder.with_suffix(".out")
    process = started(command(dataset, folder, "--until-done", "checkpoint.every_batches=5"), output)
    wait(process, lambda: bool(events(folder, "checkpoint")), output)
    rank = next(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()[1] == str(process.pid)
    )
    os.kill(rank, signal.SIGKILL)
    killed = time.time()
    starts = len(events(folder, "start"))
    wait(process, lambda: len(events(folder, "start")) > starts and after(folder), output)
    noticed, start = events(folder, "restart")[-1], events(folder, "start")[-1]
    first = next(event for event in events(folder, "batch") if event["attempt"] == start["attempt"])
    end(process)
    return {
        "to_next_batch": first["time"] - killed,
        "to_noticed": noticed["time"] - killed,
        "pause": noticed["pause_seconds"],
        "start_to_batch": first["time"] - start["time"],
    }


def after(folder: Path) -> bool:
    """Whether the last start has trained a batch."""
    last = events(folder, "start")[-1]["attempt"]
    return any(event["attempt"] == last for event in events(folder, "batch"))


def import_seconds() -> float:
    """Seconds of a process that imports what a rank imports."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import imagenet_mds_train.rank"], check=True, capture_output=True)
    return time.monotonic() - begun


def saves(dataset: Path, folder: Path) -> list[dict[str, Any]]:
    """What the log says of the saves of a ResNet-50 with momentum and average."""
    output = folder.with_suffix(".out")
    process = started(command(dataset, folder, *SAVING, "checkpoint.every_batches=5"), output)
    wait(process, lambda: len(events(folder, "checkpoint")) >= SAVES, output)
    end(process)
    return events(folder, "checkpoint")[:SAVES]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        dataset = root / "mds"
        make_dataset(dataset / "train", options.samples)
        late = int(options.samples // BATCH_SIZE * LATE_SHARE)
        stopped_late(dataset, root / "late", late)
        new: list[float] = []
        continued: list[float] = []
        for number in range(options.rounds):
            new.append(seconds_to_first_batch(dataset, root / f"new{number}"))
            shutil.copytree(root / "late", root / f"late{number}")
            continued.append(seconds_to_first_batch(dataset, root / f"late{number}"))
        found = {
            "start_seconds": statistics.median(new),
            "resume_seconds": statistics.median(continued),
            "ratios": [other / one for one, other in zip(new, continued, strict=True)],
            "import_seconds": statistics.median(import_seconds() for _ in range(options.rounds)),
            "crash": crash_to_next_batch(dataset, root / "crash"),
            "stall_seconds": [event["stall_seconds"] for event in saves(dataset, root / "saves")],
            "durable_seconds": [event["durable_seconds"] for event in events(root / "saves", "checkpoint")[:SAVES]],
        }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
