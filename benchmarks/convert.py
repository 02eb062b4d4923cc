"""How fast images become shards, beside what else makes shards, and the copy of the files as the limit.

Every side works on the same generated images (ImageNet's mean size, about 107 kB), in the page cache, into the same
disk. A round runs each side once, in an order that turns from round to round, and every figure is the median over the
rounds; ratios are taken within a round, so that a machine that slows down slows both. Images a second of wall time mean
nothing on a shared machine; the ratios do.

Usage: python benchmarks/convert.py [--images N] [--rounds N] [--json FILE] [--folder FOLDER]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 10
BASELINE = "streaming.vision.convert.imagenet"


def make_image(seed: int, path: Path) -> None:
    """A 500 x 375 picture with the spectrum of natural ones (1/f), at the quality that gives ImageNet's bytes."""
    random = np.random.Generator(np.random.PCG64(seed))
    height, width = 375, 500
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / width) ** 1.1
    planes = []
    for _ in range(3):
        noise = random.normal(size=(height, width // 2 + 1)) + 1j * random.normal(size=(height, width // 2 + 1))
        plane = np.fft.irfft2(noise * falloff, (height, width))
        planes.append(plane / plane.std())
    grey = planes[0][..., None]
    picture = 128 + 45 * (0.85 * grey + 0.5 * np.stack(planes, -1)) + random.normal(0, 5, (height, width, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, "JPEG", quality=93)


def make_tree(root: Path, images: int) -> int:
    """Draw the images as a tree; return their bytes."""
    jobs = []
    for number in range(images):
        folder = root / "train" / f"n{number % CLASSES:08}"
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((number, folder / f"n{number % CLASSES:08}_{number}.JPEG"))
    with multiprocessing.Pool() as pool:
        pool.starmap(make_image, jobs)
    return sum(path.stat().st_size for _, path in jobs)


def ours(*options: object) -> Callable[[Path, Path], None]:
    """`imagenet-mds convert`, as a user runs it: a process of its own, its start counted."""

    def run(tree: Path, out: Path) -> None:
        command = [sys.executable, "-m", "imagenet_mds", "convert", str(tree), str(out), *map(str, options)]
        subprocess.run(command, check=True, capture_output=True)

    return run


def official(tree: Path, out: Path) -> None:
    """The library's own converter, in a process of its own; its imports are taken off by `START`."""
    code = (
        "import sys; from streaming.vision.convert.imagenet import main, parse_args; "
        "sys.argv[1:] = ['--in_root', sys.argv[1], '--out_root', sys.argv[2], '--splits', 'train', "
        "'--hashes', 'sha1,xxh64', '--progress_bar', '0']; main(parse_args())"
    )
    subprocess.run([sys.executable, "-c", code, str(tree), str(out)], check=True, capture_output=True)


def writer(tree: Path, out: Path) -> None:
    """The library's MDSWriter, fed the files' bytes."""
    code = (
        "import sys, pathlib; from streaming import MDSWriter\n"
        "tree, out = map(pathlib.Path, sys.argv[1:])\n"
        "files = sorted(tree.glob('train/*/*.JPEG'))\n"
        "columns = {'i': 'int', 'x': 'jpeg', 'y': 'int'}\n"
        "with MDSWriter(columns=columns, out=str(out), hashes=['xxh64']) as writer:\n"
        "    for i, path in enumerate(files):\n"
        "        writer.write({'i': i, 'x': path.read_bytes(), 'y': int(path.parent.name[1:])})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tree), str(out)], check=True, capture_output=True)


def copy(tree: Path, out: Path) -> None:
    """The limit: read every byte, write every byte."""
    subprocess.run(["cp", "-r", str(tree), str(out)], check=True)


SIDES: dict[str, Callable[[Path, Path], None]] = {
    "cp -r": copy,
    BASELINE: official,
    "MDSWriter, bytes handed over": writer,
    "ours, --check none, 1 process": ours("--check", "none", "--workers", 1),
    "ours, --check structure, 1 process": ours("--check", "structure", "--workers", 1),
    "ours, --check structure, 2 processes": ours("--check", "structure", "--workers", 2),
    "ours, --check decode, 1 process": ours("--check", "decode", "--workers", 1),
    "ours, --check decode, 2 processes": ours("--check", "decode", "--workers", 2),
    "ours, --max-side 400, 2 processes": ours("--max-side", 400, "--workers", 2),
}

# What starting a side costs before its first image: the same command on a tree of a few images.
START_IMAGES = 2 * CLASSES


def measure(tree: Path, few: Path, scratch: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, seconds of starting) of each side in each round."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    names = list(SIDES)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = []
            for source in (tree, few):
                out = scratch / "out"
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                begun = time.perf_counter()
                SIDES[name](source, out)
                seconds.append(time.perf_counter() - begun)
            taken[name].append((seconds[0], seconds[1]))
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    return taken


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        size_bytes = make_tree(root / "tree", options.images)
        make_tree(root / "few", START_IMAGES)
        taken = measure(root / "tree", root / "few", root, options.rounds)
    images = options.images - START_IMAGES
    rows: list[dict[str, Any]] = []
    for side, seconds in taken.items():
        net = [whole - start for whole, start in seconds]
        against = [whole - start for whole, start in taken[BASELINE]]
        limit = [whole - start for whole, start in taken["cp -r"]]
        rows.append(
            {
                "side": side,
                "images_per_second": round(images / statistics.median(net)),
                "against_official": round(statistics.median(b / a for a, b in zip(net, against, strict=True)), 2),
                "against_cp": round(statistics.median(b / a for a, b in zip(net, limit, strict=True)), 2),
                "start_seconds": round(statistics.median(start for _, start in seconds), 2),
            }
        )
    print(
        f"{options.images:,} images, {size_bytes / options.images / 1000:.0f} kB each, {options.rounds} rounds, medians"
    )
    print("| side | images/s | times the official converter | times cp -r | start, s |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['side']} | {row['images_per_second']:,} | {row['against_official']} | {row['against_cp']} "
            f"| {row['start_seconds']} |"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"images": options.images, "rounds": options.rounds, "sides": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
