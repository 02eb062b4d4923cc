"""What ImageNet's number of samples costs a loader, whatever their size: 1,281,167 tiny samples in 2,104 shards.

Measured on 1 and on 4 ranks with 2 workers each: seconds to the first batch, to the first batch of the next epoch, and
to the first batch of a run resumed at 90% of an epoch; memory of a rank and of its workers at the start and five epochs
later, and all shared memory. Every rank is a process, as in training. Imports are not counted.

Usage: python benchmarks/epoch.py [--samples N] [--json FILE] [--folder FOLDER]
"""

import argparse
import faulthandler
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGENET_SAMPLES, SHARDS = 1_281_167, 2_104
GLOBAL_BATCH_SIZE = 512
EPOCHS = 5
HANG_SECONDS = 560
CONFIG: dict[str, Any] = {
    "global_batch_size": GLOBAL_BATCH_SIZE,
    "data": {"workers_per_rank": 2},
    "augment": {"size_px": 8},
    "optimizer": {"lr": 0.1},
    "schedule": {"epochs": 90},
}


def tiny_image() -> bytes:
    """Return a JPEG of 8 x 8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(buffer, "JPEG", quality=10)
    return buffer.getvalue()


def write_shard(job: tuple[Path, int, int, int, bytes]) -> Any:
    """Write a shard of `count` samples, the first with index `first`, and describe it."""
    from imagenet_mds.dataset.mds import Record, describe_shard, shard_basename
    from tests.support.shards import encode_shard

    folder, shard, first, count, image = job
    data = encode_shard([Record(number, image, number % 1000) for number in range(first, first + count)], 1 << 26)
    (folder / shard_basename(shard)).write_bytes(data)
    return describe_shard(shard_basename(shard), data, count)


def make_dataset(folder: Path, samples: int) -> None:
    """Write a training split with an index and without a manifest."""
    from imagenet_mds.dataset.mds import Layout, index_json
    from imagenet_mds.storage.atomic import write_json

    folder.mkdir(parents=True)
    edges = [samples * shard // SHARDS for shard in range(SHARDS + 1)]
    image = tiny_image()
    jobs = [(folder, n, start, end - start, image) for n, (start, end) in enumerate(itertools.pairwise(edges))]
    with multiprocessing.Pool() as pool:
        shards = pool.map(write_shard, jobs)
    write_json(folder / "index.json", index_json(shards, Layout(1 << 26)))


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its own memory and its share of what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(text.split("\nPss:")[1].split()[0]) * 1024


def shared_bytes() -> int:
    """Return the size of everything in /dev/shm."""
    return sum(path.stat().st_size for path in Path("/dev/shm").iterdir() if path.is_file())


def children() -> list[int]:
    """Return the children of this process, the loader workers among them."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def rank_main(folder: Path, samples: int, ranks: int, out: Path) -> None:
    """Run one rank, and write its figures as JSON."""
    import torch

    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds_train.config.load import parse_config
    from imagenet_mds_train.data.loaders import training_loader
    from imagenet_mds_train.data.stream import use_own_blocks

    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    use_own_blocks()
    torch.distributed.init_process_group("gloo")
    config = parse_config(CONFIG | {"ranks": ranks}, "the benchmark")
    files = ShardCache(folder)
    per_epoch = samples // GLOBAL_BATCH_SIZE
    found: dict[str, Any] = {}

    def first_of(loader: Any) -> tuple[float, Any]:
        begun = time.perf_counter()
        batches = iter(loader)
        next(batches)
        return time.perf_counter() - begun, batches

    begun = time.perf_counter()
    loader = training_loader(config, files, samples)
    seconds, batches = first_of(loader)
    found["first batch"] = time.perf_counter() - begun
    del batches, loader
    torch.distributed.barrier()

    begun = time.perf_counter()
    loader = training_loader(config, files, samples)
    known = loader.dataset.state_dict(0, from_beginning=True)
    # Ranks share the position to resume from, so none may set it while another still reads it.
    torch.distributed.barrier()
    loader.dataset.load_state_dict(known | {"sample_in_epoch": per_epoch * 9 // 10 * GLOBAL_BATCH_SIZE})
    torch.distributed.barrier()
    seconds, batches = first_of(loader)
    found["resume at 90%"] = time.perf_counter() - begun
    found["memory"], found["workers' memory"] = memory_bytes(os.getpid()), [memory_bytes(pid) for pid in children()]
    found["shared memory"] = shared_bytes()
    del batches, loader
    torch.distributed.barrier()

    # From the end of one epoch into the next, again and again, without the middle of each epoch.
    loader = training_loader(config, files, samples)
    over = []
    for epoch in range(EPOCHS):
        torch.distributed.barrier()
        # A round uses two epochs: the end of one and the beginning of the next.
        near_the_end = {"epoch": 2 * epoch, "sample_in_epoch": (per_epoch - 4) * GLOBAL_BATCH_SIZE}
        loader.dataset.load_state_dict(known | near_the_end)
        torch.distributed.barrier()
        for _ in loader:
            pass
        seconds, batches = first_of(loader)
        over.append(seconds)
        found.setdefault("worker memory by epoch", []).append([memory_bytes(pid) for pid in children()])
        del batches
    found["next epoch"] = over
    out.write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()
    os._exit(0)


def measure(folder: Path, samples: int, ranks: int) -> list[dict[str, Any]]:
    """Run `ranks` ranks and return the figures of each."""
    from imagenet_mds.process.attempt import attempt
    from imagenet_mds_train.run.environment import rendezvous

    outs = [folder.parent / f"{rank}of{ranks}.json" for rank in range(ranks)]
    with attempt() as mine:
        variables = os.environ | mine.environment() | rendezvous(ranks) | {"OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--rank-of",
                    str(ranks),
                    "--folder",
                    str(folder),
                    "--json",
                    str(out),
                    "--samples",
                    str(samples),
                ],
                env=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, out in enumerate(outs)
        ]
        assert [process.wait() for process in processes] == [0] * ranks
    return [json.loads(out.read_bytes()) for out in outs]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=IMAGENET_SAMPLES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="folder to work in, instead of a temporary one")
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        rank_main(options.folder, options.samples, options.rank_of, options.json)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "mds" / "train"
        make_dataset(folder, options.samples)
        found = {ranks: measure(folder, options.samples, ranks) for ranks in (1, 4)}
    print(f"{options.samples:,} samples in {SHARDS:,} shards, 2 workers per rank, global batch {GLOBAL_BATCH_SIZE}")
    print(
        "| ranks | first batch, s | next epoch, s | at 90%, s | rank, MB | worker, MB | 5 epochs later | shared, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for ranks, of_ranks in found.items():
        first, resumed = (max(one[name] for one in of_ranks) for name in ("first batch", "resume at 90%"))
        following = max(seconds for one in of_ranks for seconds in one["next epoch"])
        memory = max(one["memory"] for one in of_ranks) / 1e6
        workers = [max(max(pids) for pids in one["worker memory by epoch"][:1]) for one in of_ranks]
        later = [max(max(pids) for pids in one["worker memory by epoch"][-1:]) for one in of_ranks]
        shared = max(one["shared memory"] for one in of_ranks) / 1e6
        print(
            f"| {ranks} | {first:.1f} | {following:.1f} | {resumed:.1f} | {memory:.0f} | {max(workers) / 1e6:.0f} "
            f"| {max(later) / 1e6:.0f} | {shared:.1f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
