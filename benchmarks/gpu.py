"""What a training step costs on one GPU, and what each part of the recipe adds to it.

A side (`gpu_sides.py`) is a call: a whole step of ResNet-50 on a batch of random uint8 images that lies on the device,
or a part of a step by itself. Sides run in turn, a window of some calls each, in several rounds. A figure is the median
over the rounds of the median of a window, between CUDA events, after calls that are not counted. So a step that waits
for its launches is as slow here as in training. A figure's spread is from the fastest window to the slowest.

Sides with and without `cudnn.benchmark` run in two processes, because cuDNN's choices are kept per process, whoever
made them. Data loading is not part of it: see `load.py`.

Usage: python benchmarks/gpu.py [--sides TEXT ...] [--rounds N] [--calls N] [--json FILE]
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpu_sides import BATCH_SIZE, ONLY, SIDES, STEPS, Call, Step, Training

WARM_UP_CALLS = 3
GRAPHS = "graph breaks"


@dataclass(frozen=True)
class Window:
    """One window of a side: the median time of a call on the device; its time on the host, without waiting for the
    device at the end; the time of the very first call, with cuDNN's search or the compiler's work in the first window;
    the most that torch had allocated."""

    seconds: float
    host_seconds: float
    first_seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Profile:
    """What one call does: its kernels and copies, and their total time; copies to the host; and, for a step, the bytes
    that its forward pass keeps for the backward pass."""

    kernels: int
    busy_seconds: float
    readbacks: int
    saved_bytes: int | None


def run_window(call: Call, calls: int) -> Window:
    """Time calls, each between two events."""
    import torch

    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first_seconds = time.perf_counter() - begun
    for _ in range(WARM_UP_CALLS):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    begun = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    host_seconds = (time.perf_counter() - begun) / calls
    torch.cuda.synchronize()
    seconds = statistics.median(one.elapsed_time(other) for one, other in pairwise(events)) / 1000
    return Window(seconds, host_seconds, first_seconds, torch.cuda.max_memory_allocated())


def profile(call: Call) -> Profile:
    """Look at one call."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    # A range that covers several kernels, such as an optimizer's step, is listed beside them.
    done = [
        event
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Optimizer.", "ProfilerStep"))
    ]
    return Profile(
        kernels=len(done),
        busy_seconds=sum(event.device_time for event in done) / 1e6,
        readbacks=sum(event.name.startswith("Memcpy DtoH") for event in done),
        saved_bytes=getattr(getattr(call, "__self__", None), "saved_bytes", None),
    )


def requests(pipe: Connection) -> Iterator[Any]:
    """Iterate over what the other process asks for, until it asks for None or has ended."""
    with contextlib.suppress(EOFError):
        while request := pipe.recv():
            yield request


def serve(pipe: Connection, benchmark: bool) -> None:
    """Answer requests for windows, (side, calls, whether to profile), with (window, profile) or the text of an error,
    and `GRAPHS` with the numbers of graph breaks."""
    warnings.simplefilter("ignore")
    import composer  # noqa: F401 # imported now because it takes seconds, and both processes do it at once
    import torch

    torch.backends.cudnn.benchmark = benchmark
    kept: dict[str, Call] = {}
    for request in requests(pipe):
        if request == GRAPHS:
            pipe.send(count_graph_breaks())
            continue
        name, calls, profiled = request
        torch._dynamo.config.capture_scalar_outputs = True
        torch.backends.cudnn.allow_tf32 = name not in STEPS or STEPS[name].precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = name in STEPS and STEPS[name].precision == "tf32"
        try:
            call = kept.get(name) or SIDES[name].make()
            if SIDES[name].keep:
                kept[name] = call
            answer: Any = run_window(call, calls), profile(call) if profiled else None
        except Exception as error:  # reported beside the figures of the others
            answer = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        call = None  # type: ignore[assignment] # its memory is the next side's
        torch.cuda.empty_cache()
        pipe.send(answer)


@dataclass
class Taken:
    """The windows of a side, and its profile."""

    windows: list[Window] = field(default_factory=list)
    profile: Profile | None = None

    def add(self, window: Window, profiled: Profile | None) -> None:
        """Add a window."""
        self.windows.append(window)
        self.profile = self.profile or profiled

    def row(self, is_step: bool) -> dict[str, Any]:
        """Return the medians. A step has a rate."""
        times = [one.seconds for one in self.windows]
        seconds = statistics.median(times)
        row: dict[str, Any] = {
            "ms": round(1000 * seconds, 3),
            "spread": round((max(times) - min(times)) / seconds, 3),
            "images_per_second": round(BATCH_SIZE / seconds) if is_step else None,
            "host_ms": round(1000 * statistics.median(one.host_seconds for one in self.windows), 3),
            "first_s": round(self.windows[0].first_seconds, 1),
            "peak_mib": round(max(one.peak_bytes for one in self.windows) / 2**20),
        }
        if found := self.profile:
            row |= {
                "kernels": found.kernels,
                "busy_ms": round(1000 * found.busy_seconds, 3),
                "readbacks": found.readbacks,
                "saved_mib_per_image": round(found.saved_bytes / BATCH_SIZE / 2**20, 1) if found.saved_bytes else None,
            }
        return row


class Hosts:
    """The processes that run sides, with and without `cudnn.benchmark`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[bool, Connection] = {}
        self._processes = []
        for benchmark in (True, False):
            self._pipes[benchmark], theirs = context.Pipe()
            self._processes.append(context.Process(target=serve, args=(theirs, benchmark), daemon=True))
            self._processes[-1].start()
            theirs.close()  # so that the end of the process is seen

    def ask(self, request: Any, benchmark: bool = True) -> Any:
        """Return the answer of a process, the text of an error if it has ended."""
        try:
            self._pipes[benchmark].send(request)
            return self._pipes[benchmark].recv()
        except (EOFError, OSError):
            return "its process has ended"

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes.values():
            with contextlib.suppress(OSError):  # it has ended
                pipe.send(None)
        for process in self._processes:
            process.join()


def measure(hosts: Hosts, names: Sequence[str], rounds: int, calls: int) -> Iterator[tuple[str, Any]]:
    """Run windows of all sides in turn; a side that fails is not run again.

    Yields:
        A side, and its window and profile or the text of an error.
    """
    failed: set[str] = set()
    for number in range(rounds):
        for name in [name for name in names if name not in failed]:
            answer = hosts.ask((name, calls, number == 0), SIDES[name].benchmark)
            if isinstance(answer, str):
                failed.add(name)
            yield name, answer
        print(f"{time.strftime('%H:%M:%S')} round {number + 1} of {rounds} is done", file=sys.stderr, flush=True)


def count_graph_breaks() -> dict[str, int]:
    """Count where torch.compile's graph of the network breaks, with BlurPool by whether scalars are captured."""
    import torch

    def breaks(step: Step, capture: bool) -> int:
        torch._dynamo.reset()
        torch._dynamo.config.capture_scalar_outputs = capture
        training = Training(step)
        images = training.images.float()
        with torch.autocast("cuda", torch.float16):
            return int(torch._dynamo.explain(training.network)(images).graph_break_count)

    blurred = replace(STEPS["128 px"], blurpool="convolutions and max pool")
    return {
        "plain": breaks(STEPS["128 px"], False),
        "BlurPool": breaks(blurred, False),
        "BlurPool, scalars captured": breaks(blurred, True),
    }


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    import torch

    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "composer": version("mosaicml"),
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Print one row per side."""
    times = ("ms", "spread", "images_per_second", "host_ms", "busy_ms")
    heads = (*times, "kernels", "readbacks", "first_s", "saved_mib_per_image", "peak_mib")
    print(f"\n| side | {' | '.join(heads)} |")
    print("|---|" + "---|" * len(heads))
    for name, row in rows.items():
        cells = ["" if row.get(head) is None else str(row[head]) for head in heads]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", nargs="+", help="only sides whose name contains one of these texts")
    parser.add_argument("--without", nargs="+", default=[], help="no sides whose name contains one of these texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=15, help="calls of a window")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True, help="count graph breaks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    import torch  # takes seconds, which --help should not

    if not torch.cuda.is_available():
        print("gpu.py: torch finds no GPU here, and there is nothing to measure without one", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    names = [
        name
        for name in SIDES
        if (not options.sides or any(text in name for text in options.sides))
        and not any(text in name for text in options.without)
    ]
    found: dict[str, Any] = {"machine": machine(), "batch": BATCH_SIZE, "sides": {}, "missing": {}, "graph_breaks": {}}
    taken = {name: Taken() for name in names}

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")

    hosts = Hosts()
    for name, answer in measure(hosts, names, options.rounds, options.calls):
        if isinstance(answer, str):
            found["missing"][name] = answer
        else:
            taken[name].add(*answer)
            found["sides"][name] = taken[name].row(not name.startswith(ONLY))
        save()  # a long run that is stopped keeps its results
    if options.graphs:
        found["graph_breaks"] = hosts.ask(GRAPHS)
        save()
    hosts.close()
    print(", ".join(f"{name} {value}" for name, value in machine().items()) + f", batch {BATCH_SIZE}")
    print_table(found["sides"])
    for name, reason in found["missing"].items():
        print(f"{name}: {reason}")
    if options.graphs:
        print(f"graph breaks: {found['graph_breaks']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
