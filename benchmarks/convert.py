"""How fast images become shards, compared with other tools and with copying the files, which is the limit.

Every side works on the same drawn images (ImageNet's mean size, about 107 kB), from the page cache to the same disk. A
round runs each side once, in an order that rotates from round to round. Every figure is the median over the rounds.
Ratios are taken within a round, so that a machine that slows down slows both sides. On a shared machine only the ratios
mean something, not the images per second.

Usage: python benchmarks/convert.py [--images N] [--rounds N] [--sides TEXT ...] [--json FILE] [--folder FOLDER]
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import CLASSES, make_tree
from peers import PEERS, python_of, why_missing

BASELINE = "streaming.vision.convert.imagenet"

# The cost of starting a side before its first image is measured with the same command on a tree of a few images.
FEW = "few"
START_IMAGES = 2 * CLASSES

Side = Callable[[Path, Path], str | None]
"""Converts a tree to shards in a folder. May return the time it took after its imports; see `scripted`."""


def ours(*options: object) -> Side:
    """Return a side that runs `imagenet-mds convert` as a user does."""

    def run(tree: Path, out: Path) -> None:
        # A few images must be several shards too, so that every process starts.
        size = ("--shard-size", "1MiB") if tree.name == FEW else ()
        command = [sys.executable, "-m", "imagenet_mds", "convert", str(tree), str(out), *map(str, options), *size]
        subprocess.run(command, check=True, capture_output=True)

    return run


def scripted(imports: str, work: str) -> Side:
    """Return a side that is one Python process and prints the time it took after its imports.

    Some imports take ten times as long as the work, so the difference of two runs would be noise.
    """
    code = (
        f"import sys, pathlib, io, os, time\n{imports}\ntree, out = map(pathlib.Path, sys.argv[1:])\n"
        f"before = time.perf_counter(), sum(os.times()[:4])\n{work}\n"
        "print('took', time.perf_counter() - before[0], sum(os.times()[:4]) - before[1])\n"
    )

    def run(tree: Path, out: Path) -> str:
        command = [sys.executable, "-c", code, str(tree), str(out)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


_FILES = "files = sorted(tree.glob('train/*/*.JPEG'))\n"

official = scripted(
    "from streaming.vision.convert.imagenet import main, parse_args",
    "sys.argv[1:] = ['--in_root', str(tree), '--out_root', str(out), '--splits', 'train', "
    "'--hashes', 'sha1,xxh64', '--progress_bar', '0']; main(parse_args())",
)
writer = scripted(
    "from streaming import MDSWriter",
    _FILES + "columns = {'i': 'int', 'x': 'jpeg', 'y': 'int'}\n"
    "with MDSWriter(columns=columns, out=str(out), hashes=['xxh64']) as writer:\n"
    "    for i, path in enumerate(files):\n"
    "        writer.write({'i': i, 'x': path.read_bytes(), 'y': int(path.parent.name[1:])})",
)
# The cheapest decode that finds the same damage as `--check decode`.
bare_decode = scripted(
    "import simplejpeg",
    _FILES + "for path in files:\n"
    "    simplejpeg.decode_jpeg(path.read_bytes(), 'GRAY', min_height=1, min_width=1, min_factor=8)",
)


def bare_scaling(decode: str) -> Side:
    """Return a side that only decodes, resizes and encodes, with the libraries of `--max-side 400`."""
    return scripted(
        "import simplejpeg; from PIL import Image",
        _FILES + "for path in files:\n"
        f"    image = {decode}.resize((400, 300), Image.Resampling.LANCZOS)\n"
        "    image.save(io.BytesIO(), 'JPEG', quality=90)",
    )


# Each writes as in the peer's own examples, in one process, from the bytes of the files if it accepts them.
_WEBDATASET = """
import sys, pathlib, webdataset
tree, out = map(pathlib.Path, sys.argv[1:])
out.mkdir(parents=True)
with webdataset.ShardWriter(f"{out}/%06d.tar", maxsize=1 << 26, verbose=0) as writer:
    for path in sorted(tree.glob("train/*/*.JPEG")):
        writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": int(path.parent.name[1:])})
"""
_ARRAYRECORD = """
import sys, pathlib
from array_record.python.array_record_module import ArrayRecordWriter
tree, out = map(pathlib.Path, sys.argv[1:])
out.mkdir(parents=True)
writer = ArrayRecordWriter(f"{out}/train.array_record", "group_size:1,uncompressed")
for path in sorted(tree.glob("train/*/*.JPEG")):
    writer.write(path.read_bytes())
writer.close()
"""
_LITDATA = """
import sys, pathlib, litdata
def sample(path):
    return {"image": pathlib.Path(path).read_bytes(), "class": int(pathlib.Path(path).parent.name[1:])}
if __name__ == "__main__":
    tree, out = map(pathlib.Path, sys.argv[1:])
    files = [str(path) for path in sorted(tree.glob("train/*/*.JPEG"))]
    litdata.optimize(fn=sample, inputs=files, output_dir=str(out), num_workers=1, chunk_bytes="64MB")
"""
_FFCV = """
import sys, pathlib
from PIL import Image
from ffcv.writer import DatasetWriter
from ffcv.fields import IntField, RGBImageField
class Tree:
    def __init__(self, tree):
        self.files = sorted(tree.glob("train/*/*.JPEG"))
    def __len__(self):
        return len(self.files)
    def __getitem__(self, index):
        return Image.open(self.files[index]).convert("RGB"), int(self.files[index].parent.name[1:])
if __name__ == "__main__":
    tree, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True)
    fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90), "label": IntField()}
    DatasetWriter(f"{out}/train.beton", fields, num_workers=1).from_indexed_dataset(Tree(tree))
"""


def peer(name: str, code: str) -> Side:
    """Return a side that runs a peer's writer in its environment, as a file, because its worker processes import it."""

    def run(tree: Path, out: Path) -> None:
        script = out.with_name(f"{name}_side.py")
        script.write_text(code, encoding="utf-8")
        subprocess.run([python_of(name), str(script), str(tree), str(out)], check=True, capture_output=True)

    return run


def copy(tree: Path, out: Path) -> None:
    """Copy the files: the limit, reading and writing every byte once."""
    subprocess.run(["cp", "-r", str(tree), str(out)], check=True)


def durable_copy(tree: Path, out: Path) -> None:
    """Copy the files durably, as ours are. A plain `sync` would also wait for files of other processes."""
    copy(tree, out)
    files = [str(path) for path in out.rglob("*") if path.is_file()]
    for at in range(0, len(files), 1000):
        subprocess.run(["sync", "--data", *files[at : at + 1000]], check=True)


SIDES: dict[str, Side] = {
    "cp -r": copy,
    "cp -r, then sync": durable_copy,
    BASELINE: official,
    "MDSWriter, bytes handed over": writer,
    "ours, --check none, 1 process": ours("--check", "none", "--workers", 1),
    "ours, --check structure, 1 process": ours("--check", "structure", "--workers", 1),
    "ours, --check structure, 2 processes": ours("--check", "structure", "--workers", 2),
    "ours, --check decode, 1 process": ours("--check", "decode", "--workers", 1),
    "bare decode at 1/8": bare_decode,
    "ours, --check decode, 2 processes": ours("--check", "decode", "--workers", 2),
    "ours, --tiles, 1 process": ours("--tiles", "--workers", 1),
    "ours, --raw --min-side 256, 1 process": ours("--raw", "--min-side", 256, "--workers", 1),
    "ours, --max-side 400, 1 process": ours("--max-side", 400, "--workers", 1),
    "bare decode, resize, encode, Pillow": bare_scaling("Image.open(path)"),
    "bare decode, resize, encode, simplejpeg": bare_scaling(
        "Image.fromarray(simplejpeg.decode_jpeg(path.read_bytes()))"
    ),
    "ours, --max-side 400, 2 processes": ours("--max-side", 400, "--workers", 2),
    "webdataset": peer("webdataset", _WEBDATASET),
    "arrayrecord": peer("arrayrecord", _ARRAYRECORD),
    "litdata": peer("litdata", _LITDATA),
    "ffcv, q90/500": peer("ffcv", _FFCV),
}


@dataclass(frozen=True)
class Taken:
    """Seconds that a side took in a round, without its start: wall time, and CPU time of all its processes. `start` is
    the wall time of the start."""

    wall: float
    cpu: float
    start: float


def timed(side: Side, source: Path, out: Path) -> tuple[float, float, str]:
    """Run a side once; return its seconds of wall and CPU time, and its output."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    said = side(source, out)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said or ""


def take(side: Side, tree: Path, few: Path, out: Path) -> Taken:
    """Run a side once. Unless it prints its time without the start, subtract the time for a few images."""
    wall, cpu, said = timed(side, tree, out)
    if found := re.search(r"^took (\S+) (\S+)$", said, re.MULTILINE):
        return Taken(float(found[1]), float(found[2]), wall - float(found[1]))
    start, start_cpu, _ = timed(side, few, out)
    return Taken(wall - start, cpu - start_cpu, start)


def chosen(texts: list[str]) -> list[str]:
    """Return the available sides whose name contains one of the texts, and those that the ratios refer to."""
    there = [name for name in SIDES if name.split(",")[0] not in PEERS or not why_missing(name.split(",")[0])]
    return [name for name in there if name in ("cp -r", BASELINE) or any(text in name for text in texts)]


def measure(names: list[str], tree: Path, few: Path, scratch: Path, rounds: int) -> dict[str, list[Taken]]:
    """Run every round; return what each side took in each of them."""
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(take(SIDES[name], tree, few, scratch / "out"))
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr)
    return taken


def compared(taken: dict[str, list[Taken]], images: int) -> list[dict[str, Any]]:
    """Return a row per side: medians over the rounds, and medians of the ratios within each round."""
    rows: list[dict[str, Any]] = []
    for side, rounds in taken.items():

        def against(other: str, rounds: list[Taken] = rounds, of: str = "wall") -> float:
            pairs = zip(rounds, taken[other], strict=True)
            return round(statistics.median(getattr(b, of) / getattr(a, of) for a, b in pairs), 2)

        rows.append(
            {
                "side": side,
                "images_per_second": round(images / statistics.median(one.wall for one in rounds)),
                "images_per_cpu_second": round(images / statistics.median(one.cpu for one in rounds)),
                "against_official": against(BASELINE),
                "against_official_cpu": against(BASELINE, of="cpu"),
                "against_cp": against("cp -r"),
                "start_seconds": round(statistics.median(one.start for one in rounds), 2),
            }
        )
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--images", type=int, default=2500, help="number of images; 2,500 fill four shards, two per process"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sides", nargs="+", default=[""], metavar="TEXT", help="only sides whose name contains one of these texts"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="folder to work in, instead of a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        size_bytes = make_tree(root / "tree", options.images)
        make_tree(root / FEW, START_IMAGES)
        taken = measure(chosen(options.sides), root / "tree", root / FEW, root, options.rounds)
    rows = compared(taken, options.images)
    print(
        f"{options.images:,} images, {size_bytes / options.images / 1000:.0f} kB each, {options.rounds} rounds, medians"
    )
    print("| side | images/s | per CPU second | times the official | by CPU | times cp -r | start, s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(f'{value:,}' if isinstance(value, int) else str(value) for value in row.values())} |")
    missing = {name: reason for name in PEERS if (reason := why_missing(name))}
    for name, reason in missing.items():
        print(f"{name}: {reason}")
    if options.json:
        options.json.write_text(
            json.dumps(
                {"images": options.images, "rounds": options.rounds, "sides": rows, "missing": missing}, indent=2
            )
        )


if __name__ == "__main__":
    main()
