"""Images per second by the number of loader workers, and how near the number that `auto` chooses comes to the best.

Every number has its windows in turn, in several rounds, with a loader of its own as training makes it. With a GPU the
batches feed a ResNet-50 that trains in fp16, as the phases do; otherwise, or with `--loader-only`, they are only taken.
The windows begin after all batches that were ready have been used.

Usage: python benchmarks/workers.py SPLIT [--sizes PX ...] [--tried N ...] [--loader-only] [--resize antialias|linear]
[--prefetch N] [--seconds S] [--rounds N] [--json FILE], where SPLIT is a folder of shards such as DATASET/train.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sides import BATCH_SIZE, our_config

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.process.processors import usable_processors
from imagenet_mds_train.config.workers import workers_of
from imagenet_mds_train.data.device import finish_batch
from imagenet_mds_train.data.loaders import training_loader
from imagenet_mds_train.data.stream import own_resources

EPOCH_SAMPLES = 400_000
"""Samples of an epoch at least: the shards are named again in the index, because every loader loses time at an epoch's
end, and ImageNet's epochs are long."""


def repeated(split: Path, into: Path) -> int:
    """Make a split of the same shards, each many times. Return its number of samples."""
    index = json.loads((split / "index.json").read_bytes())
    samples = sum(shard["samples"] for shard in index["shards"])
    times = -(-EPOCH_SAMPLES // samples)
    for shard in index["shards"]:
        name = shard["raw_data"]["basename"]
        (into / name).symlink_to((split / name).resolve())
    (into / "index.json").write_text(json.dumps(index | {"shards": index["shards"] * times}), encoding="utf-8")
    return samples * times


def trained_on(device: torch.device, size_px: int) -> Callable[[Any], None]:
    """A step of ResNet-50 on a batch, or nothing where there is no GPU."""
    if device.type != "cuda":
        return lambda batch: None
    from torchvision.models import resnet50

    model = resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)
    scaler = torch.amp.GradScaler("cuda")

    def step(batch: Any) -> None:
        images, labels = batch
        images = images.to(torch.float32).sub_(118.0).div_(58.0)
        with torch.autocast("cuda", torch.float16):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    random = torch.randint(0, 256, (BATCH_SIZE, 3, size_px, size_px), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 1000, (BATCH_SIZE,), device=device)
    for _ in range(5):  # kernels are chosen and loaded
        step((random.contiguous(memory_format=torch.channels_last), labels))
    torch.cuda.synchronize()
    return step


def rate_of(
    batches: Iterator[Any], workers: int, prefetch_batches: int, step: Callable[[Any], None], seconds: float
) -> float:
    """Images per second once the batches that were ready are used up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2 + 2 * prefetch_batches * max(1, workers)):
        step(next(batches))
    wait()
    begun, made = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or made < 4:
        step(next(batches))
        made += 1
    wait()
    return made * BATCH_SIZE / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("split", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 128])
    processors = usable_processors()
    parser.add_argument("--tried", type=int, nargs="+", default=sorted({1, *range(2, processors + 3)}))
    parser.add_argument("--loader-only", action="store_true")
    parser.add_argument("--resize", default="antialias")
    parser.add_argument("--prefetch", type=int, help="Batches that each worker keeps ready.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available() and not options.loader_only
    device = torch.device("cuda" if on_gpu else "cpu")
    chosen = workers_of("auto", 1)
    tried = sorted({*options.tried, chosen})
    found: dict[str, Any] = {"processors": processors, "on_gpu": on_gpu, "auto": chosen, "rates": {}}
    with own_resources(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = repeated(options.split, folder)
        for size_px in options.sizes:
            step = trained_on(device, size_px)
            taken: dict[int, list[float]] = {workers: [] for workers in tried}
            for _ in range(options.rounds):
                for workers in tried:
                    config = our_config(size_px, workers, options.resize, options.prefetch)
                    finish = partial(finish_batch, device=device, classes=1000, mixing=None) if on_gpu else None
                    loader = training_loader(config, ShardCache(folder), samples, finish=finish, device=device)
                    batches = iter(loader)
                    taken[workers].append(
                        rate_of(batches, workers, config.data.prefetch_batches, step, options.seconds)
                    )
                    del batches, loader
            rates = {workers: statistics.median(values) for workers, values in taken.items()}
            found["rates"][size_px] = rates
            best = max(rates.values())
            print(f"{size_px} px on {processors} processors, {'training' if on_gpu else 'the loader alone'}:")
            for workers, values in taken.items():
                spread = f"{min(values):,.0f} to {max(values):,.0f}"
                mark = "  auto" if workers == chosen else ""
                print(f"  {workers:3} workers  {rates[workers]:8,.0f} images/s ({spread}){mark}", flush=True)
            print(f"  auto reaches {rates[chosen] / best:.0%} of the best", flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
