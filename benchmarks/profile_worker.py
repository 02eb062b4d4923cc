"""Where a loader worker's time goes, by py-spy, a sampling profiler that sees native frames too.

Usage: pip install --target FOLDER py-spy, then PATH=FOLDER/bin:$PATH python benchmarks/profile_worker.py SPLIT ...
[--size PX] [--resize antialias|linear] [--seconds S], where SPLIT is a folder of shards such as DATASET/train. A loader
with one worker runs for that long, and each sample of the worker's stack counts for the innermost of `STEPS` in it.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

STEPS = {
    "decoding": ("simplejpeg/", "_decode_whole ("),
    "resizing, torch's kernel": ("upsample_",),
    "mirroring": ("flip",),
    "resizing, the rest": ("resize_to (",),
    "tile table": ("tiles_of (",),
    "cutting": ("cut (",),
    "reading": ("read (",),
    "header": ("jpeg_size (",),
    "drawing the crop": ("draw_crop (", "on_grid ("),
    "collating": ("collate (",),
}
"""What is in the name of a stack's frame, by the step that it belongs to."""

_WORKER, _WAITING = "_worker_loop (", "Queue.get ("
_SAMPLES_PER_SECOND = 40
"""The worker stands still while its native frames are read, and more samples distort what is seen: of crops at 224 px
from tiles, decoding had 60% at 50 a second, as it has by its own time, 47% at 100, and 26% at 250."""


def step_of(stack: list[str]) -> str:
    """The step that a stack, outermost frame first, is in."""
    for frame in reversed(stack):
        for step, texts in STEPS.items():
            if any(text in frame for text in texts):
                return step
    return "the rest"


def profiled(split: Path, size_px: int, resize: str, seconds: int) -> Counter[str]:
    """Samples of the worker by step."""
    command = [sys.executable, "-W", "ignore", __file__, "--run", str(split)]
    command += ["--size", str(size_px), "--resize", resize]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loader,
    ):
        try:
            assert loader.stdout is not None
            worker = loader.stdout.readline().strip()
            stacks = Path(folder) / "stacks"
            recorder = ["py-spy", "record", "--pid", worker, "--native", "--format", "raw", "--output", str(stacks)]
            recorder += ["--duration", str(seconds), "--rate", str(_SAMPLES_PER_SECOND)]
            subprocess.run(recorder, check=True, capture_output=True)
        finally:
            loader.kill()
        counts: Counter[str] = Counter()
        for line in stacks.read_text(encoding="utf-8").splitlines():
            stack, _, samples = line.rpartition(" ")
            frames = stack.split(";")
            # The thread that sends batches waits in the kernel, as the worker does where batches are not taken.
            if any(_WORKER in frame for frame in frames) and not any(_WAITING in frame for frame in frames):
                counts[step_of(frames)] += int(samples)
        return counts


def run(split: Path, size_px: int, resize: str) -> None:
    """Load without end with one worker. Prints the number of the worker's process once it makes batches."""
    from sides import our_config, samples_of

    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds_train.data.loaders import training_loader
    from imagenet_mds_train.data.stream import own_resources

    samples = samples_of(split)
    with own_resources():
        loader = training_loader(our_config(size_px, 1, resize), ShardCache(split), samples)
        batches = iter(loader)
        next(batches)
        print(multiprocessing.active_children()[0].pid, flush=True)
        while True:
            for _ in batches:
                pass
            batches = iter(loader)


def main() -> None:
    """Profile and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("splits", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize", default="antialias")
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.splits[0], options.size, options.resize)
    print("| share of time, % | " + " | ".join([*STEPS, "the rest"]) + " | samples |")
    print("|---" * (len(STEPS) + 3) + "|")
    for split in options.splits:
        counts = profiled(split, options.size, options.resize, options.seconds)
        whole = max(1, sum(counts.values()))
        shares = [f"{100 * counts[step] / whole:.1f}" for step in [*STEPS, "the rest"]]
        print(f"| {split} | {' | '.join(shares)} | {whole:,} |", flush=True)


if __name__ == "__main__":
    main()
