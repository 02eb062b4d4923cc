"""Where the time of our loader goes: each step of loading a sample, measured alone on the same crops, in one process.

Steps that cannot run alone are differences. Entropy decoding is a decode to grey at an eighth, which does little else;
IDCT and colour are what training's decode takes beyond that; handing over is what a loader with one worker takes beyond
all other steps. The unit is CPU time, so that waiting does not count.

`python benchmarks/shares.py FOLDER FORM SIZE RESIZE` prints them as JSON, in microseconds per image.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = (
    "reading",
    "slicing",
    "entropy decoding",
    "IDCT and colour",
    "resizing",
    "augmentation",
    "handing over",
)
IMAGES, ROUNDS = 128, 5
_LOADER_BATCHES = 4


def shares_of(folder: Path, form: str, size_px: int, resize: str) -> dict[str, float]:
    """Measure every part in a process of its own; return microseconds per image."""
    command = [sys.executable, __file__, str(folder), form, str(size_px), resize]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def print_shares(rows: list[dict[str, Any]]) -> None:
    """Print one row per form and one column per part: its share of the total in percent."""
    if not rows:
        return
    print("\n| share of time, % | size | us per image | " + " | ".join(PARTS) + " |")
    print("|---|---|---|" + "---|" * len(PARTS))
    for row in rows:
        whole = sum(row[part] for part in PARTS)
        cells = [f"{100 * row[part] / whole:.0f}" for part in PARTS]
        print(f"| {row['side']} | {row['size_px']} | {whole:.0f} | {' | '.join(cells)} |")


def measure(folder: Path, form: str, size_px: int, resize: Any) -> dict[str, float]:
    """Measure every part; return microseconds per image."""
    import simplejpeg
    import torch
    from sides import our_config, samples_of

    from imagenet_mds.dataset.raw_pixels import decode_raw, is_raw
    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds.jpeg.tiles import cut
    from imagenet_mds.seeds import SampleRandom, sample_seed
    from imagenet_mds_train.augment.crop import draw_crop, on_grid
    from imagenet_mds_train.augment.decode import decode_crop, fractions, jpeg_size, part_of, tiles_of
    from imagenet_mds_train.augment.decode import resize as resized
    from imagenet_mds_train.augment.views import Augmentation
    from imagenet_mds_train.data.loaders import TrainingImages
    from imagenet_mds_train.data.stream import own_resources

    torch.set_num_threads(1)  # as in a worker
    config = our_config(size_px, 1, resize)
    augment, local = config.augment, folder / form / "train"
    with own_resources():
        images = TrainingImages(config, ShardCache(local), samples_of(local))
        samples = range(0, images.num_samples, images.num_samples // IMAGES)[:IMAGES]
        stored = [images.read(sample)[0] for sample in samples]
        files, halves = ([one.image for one in stored], [one.half for one in stored])
        seeds = [sample_seed(config.seed, 0, sample) for sample in samples]
        raw = is_raw(files[0])
        sizes = [decode_raw(data).shape[1::-1] if raw else jpeg_size(data) for data in files]

        def draw(at: int) -> Any:
            random = SampleRandom(seeds[at])
            crop = draw_crop(random, *sizes[at], augment.scale, augment.ratio)
            flip = random.uniform() < augment.flip_probability
            return crop if raw else on_grid(crop, *sizes[at], size_px, fractions(resize, halves[at])), flip

        drawn = [draw(at) for at in range(IMAGES)]

        def slice_out(at: int) -> bytes:
            """Do everything that happens to the bytes before they are decoded."""
            data, crop = files[at], drawn[at][0]
            jpeg_size(data)
            if halves[at] and crop.denominator > 1:
                data, crop = halves[at], crop.halved
            if (tiles := tiles_of(data)) is None:
                return data
            small, *_ = cut(data, tiles, (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
            jpeg_size(small)
            return small

        def part(at: int) -> Any:
            if raw:
                return part_of(decode_raw(files[at]), drawn[at][0])
            return decode_crop(files[at], halves[at], drawn[at][0], sizes[at], resize)

        parts = [part(at) for at in range(IMAGES)]
        smalls = [b"" if raw else slice_out(at) for at in range(IMAGES)]

        def entropy(at: int) -> Any:
            return simplejpeg.decode_jpeg(smalls[at], "GRAY", min_height=1, min_width=1, min_factor=8, strict=False)

        augmentation = Augmentation(augment)
        # Training slices and decodes in one function, so that is measured, and slicing alone is subtracted.
        steps: dict[str, Callable[[int], Any]] = {
            "read": lambda at: images.read(samples[at]),
            "part": part,
            "resize": lambda at: resized(parts[at], size_px, resize),
            "flipped": lambda at: resized(parts[at], size_px, resize, flip=drawn[at][1]),
            "draw": draw,
            "view": lambda at: augmentation.view(files[at], seeds[at], 0, halves[at]),
        }
        if not raw:
            steps |= {"slice": slice_out, "entropy": entropy}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                begun = time.process_time()
                for at in range(IMAGES):
                    step(at)
                taken[name].append((time.process_time() - begun) / IMAGES * 1e6)
        found = {name: statistics.median(times) for name, times in taken.items()}
    known = {
        "reading": found["read"],
        "slicing": found["part"] if raw else found["slice"],
        "entropy decoding": 0 if raw else found["entropy"],
        "IDCT and colour": 0 if raw else found["part"] - found["slice"] - found["entropy"],
        "resizing": found["resize"],
        "augmentation": found["flipped"] - found["resize"] + found["draw"],
    }
    known_us = found["read"] + found["view"]
    return {name: round(max(us, 0), 1) for name, us in known.items()} | {
        "handing over": round(max(loader_us(config, local) - known_us, 0), 1),
        "view": round(found["view"], 1),
    }


def loader_us(config: Any, local: Path) -> float:
    """Return the CPU microseconds per image of training's loader with one worker, both processes together."""
    import os

    from sides import BATCH_SIZE, samples_of
    from timing import group_cpu_seconds

    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds_train.data.loaders import training_loader
    from imagenet_mds_train.data.stream import own_resources

    os.setpgid(0, 0)
    with own_resources():
        batches = iter(training_loader(config, ShardCache(local), samples_of(local)))
        for _ in range(4):
            next(batches)
        taken = []
        for _ in range(ROUNDS):
            begun = group_cpu_seconds(os.getpid())
            for _ in range(_LOADER_BATCHES):
                next(batches)
            taken.append((group_cpu_seconds(os.getpid()) - begun) / _LOADER_BATCHES / BATCH_SIZE * 1e6)
    return statistics.median(taken)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])))
