"""Finding the run, or the checkpoint, that a user means: here or in S3. Imports no torch."""

import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from imagenet_mds.dataset.cache_folder import default_cache
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.atomic import write_atomic
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.mirror import FILES, RunMirror


def find_run_folder(location: str) -> RunFolder:
    """The run that a user means: its folder, its name within `runs`, or its address in S3.

    Raises:
        UserError: there is no run.
        OSError: the storage refuses.
    """
    if location.startswith("s3://"):
        return _copied(location)
    for path in (Path(location), Path("runs") / location):
        if (path / "run.json").is_file():
            return RunFolder(path)
    raise UserError(f"there is no run at {location}: pass the folder of a run, which holds run.json")


def _copied(location: str) -> RunFolder:
    """A run in S3, with its small files in the cache of this machine, and its checkpoints where they are. The working
    copy is another one, because a run in progress writes it."""
    storage = open_storage(location)
    place = xxhash.xxh64_hexdigest(storage.location.encode())
    path = default_cache() / "read" / place / storage.name
    there = set(storage.list_names()) & set(FILES)
    if "run.json" not in there:
        raise UserError(f"there is no run at {location}: pass the address of a run, which holds run.json")
    path.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name in there:
            write_atomic(path / name, storage.read(name))
        else:
            (path / name).unlink(missing_ok=True)
    return RunFolder(path, storage.location, RunMirror.at(location).checkpoints)


def find_checkpoint(location: str, warn: Callable[[str], None] = lambda warning: None) -> Path:
    """The checkpoint that a user means: a file, or the newest whole one of a run's folder.

    Args:
        location: what was typed, an `s3://` address among others.
        warn: called with a line for each newer checkpoint that is broken.

    Raises:
        UserError: there is none.
        WorldError: the run's checkpoints are broken.
    """
    if location.startswith("s3://"):
        return _fetch_newest(location, warn)
    path = Path(location)
    if path.is_file():
        return path
    # A run's folder may be meant by its name alone, or by one of the folders in it.
    candidates = [path, Path("runs") / location, *([path.parent] if path.name in ("checkpoints", ".staging") else [])]
    path = next((one for one in candidates if (one / "run.json").is_file()), path)
    if (path / "run.json").is_file():
        run = RunFolder(path)
        record, warnings = run.newest_checkpoint()
        for warning in warnings:
            warn(warning)
        if record is None:
            raise UserError(f"{path} has no checkpoint yet: continue it with its `imagenet-mds train` command")
        return Path(run.checkpoints.location_of(record))
    raise UserError(f"there is no checkpoint at {path}: give the file, or the folder of a run")


WEIGHTS = (".pth", ".bin", ".safetensors")
"""The names of files of weights alone."""


def find_weights(location: str) -> Path:
    """The weights that a user means: a file of any program, here or in S3, or the newest checkpoint of a run.

    Raises:
        UserError: there are none.
        WorldError: the run's checkpoints are broken.
        OSError: the storage refuses.
    """
    if not location.startswith("s3://") or not location.endswith(WEIGHTS):
        return find_checkpoint(location)
    folder, _, name = location.rpartition("/")
    place = xxhash.xxh64_hexdigest(location.encode())
    kept = default_cache() / "weights" / place / name
    try:
        data = open_storage(folder).read(name)
    except FileNotFoundError:
        raise UserError(f"there is no file at {location}: pass one that ends in {', '.join(WEIGHTS)}") from None
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, data)
    return kept


def _fetch_newest(location: str, warn: Callable[[str], None]) -> Path:
    """The newest whole checkpoint of a run in S3, or the one that is named, in this machine's cache.

    Args:
        location: of the run, or of a checkpoint in it.
        warn: called with a line for each newer checkpoint that is broken.

    Raises:
        UserError: there is none.
        WorldError: none can be used.
        OSError: the storage refuses.
    """
    wanted = None
    if location.endswith(".pt"):
        location, _, wanted = location.rpartition("/")
        location = location.removesuffix("/checkpoints")
    store = RunMirror.at(location).checkpoints
    records = [record for record in store.records() if wanted in (None, record.basename)]
    for record in records:
        kept = default_cache() / "checkpoints" / f"{record.xxh64}-{record.basename}"
        if kept.is_file() and kept.stat().st_size == record.size_bytes:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f".{os.getpid()}-{kept.name}")
        fault = store.fetch(record, partial)
        if fault is None:
            partial.replace(kept)
            return kept
        partial.unlink(missing_ok=True)
        warn(f"{store.location_of(record)} is skipped: {fault}")
    if records:
        raise WorldError(f"{location} saved checkpoints and none can be used")
    what = f"no checkpoint {wanted}" if wanted else "no checkpoint yet, or it is no run"
    raise UserError(f"{location} has {what}: give the address of a run")
