"""The trainer's rate on one GPU, against a loop of torchvision and torch alone with the same network and optimizer.

Sides run in turn, a window of some batches each, in several rounds; a figure is the median over the rounds, and its
spread is from the slowest window to the fastest. `bare` and `in memory` take their batches from GPU memory: the first
is torchvision's ResNet-50 in the shortest loop that does the same, the second is this program's trainer as `train`
builds it, with its log. `loader` is the same with the real loader, on a dataset that it draws and converts first.

Usage: python benchmarks/trainer.py [--sides NAME ...] [--batch-size N] [--rounds N] [--batches N] [--json FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from gpu import machine
from images import make_tree

CLASSES = 1000
RESIDENT_BATCHES = 4
WARM_UP_BATCHES = 12
PROFILED_BATCHES = 8
SMOOTHING = 0.1

Kind = Literal["bare", "in memory", "loader"]


@dataclass(frozen=True)
class Side:
    """What is timed: whose loop, and the configuration's overrides beside the size."""

    kind: Kind
    size_px: int
    batch_size: int = 128
    precision: Literal["amp_fp16", "amp_bf16"] = "amp_fp16"
    recipe: str | None = None
    compiled: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The side's name in the table."""
        parts = [self.kind, f"{self.size_px} px", self.precision.removeprefix("amp_"), self.recipe, *self.overrides]
        return ", ".join(part for part in (*parts, "compiled" if self.compiled else None) if part)


def sides(batch_size: int) -> list[Side]:
    """All sides; those that are compared stand beside each other."""
    side = partial(Side, batch_size=batch_size)
    kinds: tuple[Kind, ...] = ("bare", "in memory")
    found = [side(kind, size) for size in (224, 176, 128, 88) for kind in kinds]
    found += [side("in memory", size, recipe="medium") for size in (224, 176)]
    without = ("algorithms.sam=null", "algorithms.blurpool=null", "algorithms.mixup=null", "algorithms.ema=null")
    found += [side("in memory", 224, recipe="medium", overrides=(one,)) for one in without]
    found += [side("loader", 224), side("loader", 224, recipe="medium")]
    found += [side(kind, 224, precision="amp_bf16") for kind in kinds]
    found += [side(kind, 224, compiled=True) for kind in kinds]
    return found


@dataclass(frozen=True)
class Window:
    """The seconds of a batch; of these, in which the GPU had no kernel running; the most memory that torch held."""

    seconds: float
    idle_seconds: float
    peak_bytes: int


class Stopwatch:
    """Times the batches after the warm-up, then profiles some more, of whatever loop calls `batch_end`."""

    def __init__(self, batches: int, device: torch.device) -> None:
        self.timed, self.device = batches, device
        self.seconds = self.busy_seconds = 0.0
        self._begun = 0.0
        self._profile: Any = None

    @property
    def batches(self) -> int:
        """Batches that the loop has to make."""
        return WARM_UP_BATCHES + self.timed + PROFILED_BATCHES

    def batch_end(self, batch: int) -> None:
        """Note the end of a batch, counted from 1."""
        if batch == WARM_UP_BATCHES:
            self._begun = self._now()
        elif batch == WARM_UP_BATCHES + self.timed:
            self.seconds = (self._now() - self._begun) / self.timed
            if self.device.type == "cuda":
                self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self._profile.__enter__()
        elif batch == self.batches and self._profile is not None:
            self._now()
            self._profile.__exit__(None, None, None)
            busy = sum(event.self_device_time_total for event in self._profile.key_averages())
            self.busy_seconds = busy / 1e6 / PROFILED_BATCHES

    def window(self) -> Window:
        """What was found."""
        peak = torch.cuda.max_memory_reserved() if self.device.type == "cuda" else 0
        return Window(self.seconds, max(0.0, self.seconds - self.busy_seconds), peak)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def resident_batches(batch_size: int, size_px: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches as the loader makes them, with their images on the device already."""
    return [
        (
            torch.randint(256, (batch_size, size_px, size_px, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2),
            torch.randint(CLASSES, (batch_size,)),
        )
        for _ in range(RESIDENT_BATCHES)
    ]


def run_bare(side: Side, batches: int, device: torch.device) -> Window:
    """The shortest loop that trains this network with this optimizer."""
    from torch.nn.functional import cross_entropy
    from torchvision.models import resnet50

    network = resnet50(num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    model = torch.compile(network, dynamic=False) if side.compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-5)
    half = torch.float16 if side.precision == "amp_fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16 and device.type == "cuda")
    mean = torch.tensor((123.675, 116.28, 103.53), device=device).view(1, 3, 1, 1)
    std = torch.tensor((58.395, 57.12, 57.375), device=device).view(1, 3, 1, 1)
    resident = [
        (images, labels.to(device)) for images, labels in resident_batches(side.batch_size, side.size_px, device)
    ]
    watch = Stopwatch(batches, device)
    for batch in range(1, watch.batches + 1):
        images, labels = resident[batch % RESIDENT_BATCHES]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, half, enabled=device.type == "cuda"):
            loss = cross_entropy(model((images - mean) / std), labels, label_smoothing=SMOOTHING)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        watch.batch_end(batch)
    return watch.window()


def run_ours(side: Side, batches: int, device: torch.device, dataset: Path | None) -> Window:
    """This program's trainer, as a rank builds it."""
    from composer.core import Callback, State
    from composer.loggers import Logger
    from composer.utils import dist, get_device, reproducibility

    import imagenet_mds_train.trainer as trainer_module
    from imagenet_mds_train.data.device import DeviceLoader, finish_batch
    from imagenet_mds_train.data.stream import own_resources
    from imagenet_mds_train.loggers.run_log import RunLog

    watch = Stopwatch(batches, device)

    class Clock(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            watch.batch_end(state.timestamp.batch.value)

    def in_memory(config: Any, job: Any, at: torch.device, mixing: Any) -> Any:
        class Endless(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return 100_000

            def __getitem__(self, number: int) -> Any:
                return resident[number % RESIDENT_BATCHES]

        finish = partial(finish_batch, device=at, classes=CLASSES, mixing=mixing)
        return DeviceLoader(finish=finish, device=at, dataset=Endless(), batch_size=None), None

    composer_device = get_device("gpu" if device.type == "cuda" else "cpu")
    dist.initialize_dist(composer_device, timeout=60)
    reproducibility.seed_all(17)
    with own_resources(), tempfile.TemporaryDirectory() as folder:
        job, config = job_of(side, Path(folder), dataset, watch.batches)
        build = trainer_module._build_loaders
        if side.kind == "in memory":
            resident = resident_batches(side.batch_size, side.size_px, device)
            trainer_module._build_loaders = in_memory
        try:
            log = RunLog(Path(folder) / "log.jsonl", attempt=1, every_batches=config.logging.every_batches)
            trainer = trainer_module.build_trainer(config, job, composer_device, callbacks=[Clock()], loggers=[log])
        finally:
            trainer_module._build_loaders = build
        trainer.fit()
        trainer.close()
    return watch.window()


def job_of(side: Side, folder: Path, dataset: Path | None, batches: int) -> Any:
    """The job of a rank, and its configuration."""
    from imagenet_mds.dataset.access import Dataset
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.run.job import RankJob, SplitJob

    config = load_config(
        "dev",
        (
            *([f"recipe={side.recipe}"] if side.recipe else []),
            f"global_batch_size={side.batch_size}",
            "data.subset=null",
            "data.workers_per_rank=14",
            "model.depth=50",
            f"augment.size_px={side.size_px}",
            "augment.progressive=null",
            "evaluation.every_epochs=null",
            "schedule.epochs=10",
            f"system.precision={side.precision if torch.cuda.is_available() else 'auto'}",
            f"system.compile={str(side.compiled).lower()}",
            *(["algorithms.label_smoothing={smoothing: 0.1}"] if side.recipe is None else []),
            *side.overrides,
        ),
    )
    train = SplitJob(folder=str(folder), samples=0)
    if dataset:
        split = Dataset.at(str(dataset)).split("train")
        train = SplitJob.of(split.shard_cache, split.info.samples)
    job = RankJob(
        config=config.model_dump(mode="json"),
        run_folder=str(folder),
        train=train,
        val=None,
        classes=[str(number) for number in range(CLASSES)],
        identity={},
        checkpoint=None,
        attempt=1,
        until_batch=batches,
    )
    return job, config


def draw_dataset(folder: Path, images: int) -> Path:
    """A dataset of drawn images of ImageNet's size, with stored pixels, which a loader reads fastest."""
    make_tree(folder / "source", images)
    command = [sys.executable, "-m", "imagenet_mds", "convert", str(folder / "source"), str(folder / "mds")]
    options = ["--split", "train", "--max-side", "256", "--raw", "--check", "structure", "--classes", "present"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return folder / "mds"


def row(batch_size: int, windows: list[Window]) -> dict[str, float]:
    """A side's figures."""
    seconds = [window.seconds for window in windows]
    middle = statistics.median(seconds)
    idle = statistics.median(window.idle_seconds for window in windows)
    return {
        "images_per_second": round(batch_size / middle),
        "slowest": round(batch_size / max(seconds)),
        "fastest": round(batch_size / min(seconds)),
        "ms": round(middle * 1000, 2),
        "idle_share": round(idle / middle, 3),
        "peak_mib": max(window.peak_bytes for window in windows) >> 20,
    }


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", nargs="+", help="only these sides, by their names in the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128, help="images of a step")
    parser.add_argument("--batches", type=int, default=60, help="timed batches of a window")
    parser.add_argument("--images", type=int, default=13_000, help="images of the drawn dataset")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cpu", action="store_true", help="run on the processor, to try the benchmark itself")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        print("trainer.py: torch finds no GPU here, and there is nothing to measure without one", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    device = torch.device("cpu" if options.cpu else "cuda")
    chosen = [side for side in sides(options.batch_size) if not options.sides or side.name in options.sides]
    found: dict[str, list[Window]] = {side.name: [] for side in chosen}
    with tempfile.TemporaryDirectory() as folder:
        dataset = draw_dataset(Path(folder), options.images) if any(s.kind == "loader" for s in chosen) else None
        for _ in range(options.rounds):
            for side in chosen:
                run: Callable[[], Window] = (
                    partial(run_bare, side, options.batches, device)
                    if side.kind == "bare"
                    else partial(run_ours, side, options.batches, device, dataset)
                )
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                begun = time.perf_counter()
                try:
                    found[side.name].append(run())
                except Exception:  # a side that fails must not take the others' figures with it
                    traceback.print_exc()
                    continue
                print(f"{side.name}: {found[side.name][-1]} in {time.perf_counter() - begun:.0f} s", flush=True)
                if options.json:  # a long run that is stopped keeps its results
                    rows = {name: row(options.batch_size, windows) for name, windows in found.items() if windows}
                    what = machine() if device.type == "cuda" else {}
                    options.json.write_text(json.dumps({"machine": what, "sides": rows}, indent=2), encoding="utf-8")
    rows = {name: row(options.batch_size, windows) for name, windows in found.items() if windows}
    heads = list(next(iter(rows.values()), {}))
    print(f"\n| side | {' | '.join(heads)} |\n|---|" + "---|" * len(heads))
    for name, figures in rows.items():
        print(f"| {name} | {' | '.join(f'{figures[head]:,}' for head in heads)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
