"""What a training needs of this machine, each thing checked by itself: it is fine, or what to do about it."""

import contextlib
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagenet_mds.dataset.cache_folder import default_cache
from imagenet_mds.errors import CommandError
from imagenet_mds.process.attempt import SHARED_MEMORY, leftover_blocks
from imagenet_mds.process.gpus import describe_gpus
from imagenet_mds.process.metadata import MetadataService, NoAnswer, is_disabled
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.words import counted
from imagenet_mds_train.run.permissions import check_permissions

State = Literal["ok", "note", "bad"]
"""A note is worth knowing and stops nothing. Bad ends a training, or makes it wrong."""

_LIBRARIES = ("torch", "torchvision", "mosaicml", "mosaicml-streaming", "boto3", "pillow", "numpy", "simplejpeg")
_LEAST_SHARED_MEMORY = 1 << 30
_LEAST_DISK = 5 << 30
_SLOW_DISK_MBPS = 80.0
_PROBE_BYTES = 64 << 20
_LEAST_OPEN_FILES = 4096
_LEAST_DRIVER = {12: 525, 13: 580}
"""The major version of the driver that CUDA's major version needs, by NVIDIA's compatibility guide."""

_BF16_CAPABILITY = 8.0
_TRY_GPU = "import torch; torch.zeros(1, device='cuda').add_(1).cpu(); print(torch.cuda.device_count())"
_TRY_SECONDS = 120


@dataclass(frozen=True)
class Check:
    """One thing. `hint` says what to do, and is empty where nothing is."""

    name: str
    state: State
    found: str
    hint: str = ""


def check_machine(places: list[str]) -> Iterator[Check]:
    """Check everything, one after the other.

    Args:
        places: folders and `s3://` addresses that a training reads or writes.
    """
    yield _python()
    yield from _libraries()
    yield from _gpus()
    yield _shared_memory()
    yield from _leftovers()
    folders = [place for place in places if not place.startswith("s3://")] or ["."]
    for folder in dict.fromkeys([*folders, tempfile.gettempdir(), str(default_cache())]):
        yield _disk(folder)
    for place in places:
        if place.startswith("s3://"):
            yield _s3(place)
    yield _weights_and_biases()
    yield _metadata()
    yield _clock()
    yield from _limits()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = (3, 10) <= sys.version_info[:2] <= (3, 12)
    return Check("Python", "ok" if fine else "bad", version, "" if fine else "install Python 3.10, 3.11 or 3.12")


def _libraries() -> Iterator[Check]:
    wanted = {}
    for line in importlib.metadata.requires("imagenet-mds") or []:
        if match := re.match(r"([\w-]+)==([\w.]+)", line):
            wanted[match[1]] = match[2]
    for name in _LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "bad", "missing", "install imagenet-mds again, with its lock: `make setup`")
            continue
        pinned = wanted.get(name)
        if pinned and version.partition("+")[0] != pinned:
            yield Check(name, "bad", version, f"{pinned} is needed: `make setup`")
        else:
            yield Check(name, "ok", version)


def _gpus() -> Iterator[Check]:
    found = describe_gpus()
    if not found:
        yield Check("GPU", "note", "none", "phases 2 and 3 need one; the demo and phase 1 run on the processor")
        return
    for place, gpu in enumerate(found):
        words = f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, capability {gpu.capability}"
        precision = "fp16 and bf16" if gpu.capability >= _BF16_CAPABILITY else "fp16; bf16 is refused (capability 8.0)"
        yield Check(f"GPU {place}", "ok", f"{words}: {precision}")
    cuda = _cuda_of_torch()
    least = _LEAST_DRIVER.get(int(cuda.split(".")[0])) if cuda else None
    driver = found[0].driver
    if least and int(driver.split(".")[0]) < least:
        hint = f"torch is built for CUDA {cuda}, which needs {least} or later: update the driver"
        yield Check("driver", "bad", driver, hint)
    else:
        yield Check("driver", "ok", f"{driver}, torch is built for CUDA {cuda or 'none'}")
    yield _torch_on_gpu(len(found))


def _torch_on_gpu(count: int) -> Check:
    """Whether torch can compute there, in a process of its own: torch takes seconds to import, and memory of a GPU."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY_GPU], capture_output=True, text=True, timeout=_TRY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("torch on it", "bad", "no answer", "a GPU hangs: `nvidia-smi`, `dmesg`, or another instance")
    if tried.returncode == 0:
        return Check("torch on it", "ok", f"computes, sees {counted(int(tried.stdout), 'GPU')} of {count}")
    said = tried.stderr.strip().splitlines()
    reason = said[-1] if said else f"status {tried.returncode}"
    return Check("torch on it", "bad", reason, "nothing would be trained on the processor instead")


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch is built for, read without importing it; None for a build without."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        text = Path(str(importlib.metadata.distribution("torch").locate_file("torch/version.py"))).read_text()
        if match := re.search(r"^cuda\b[^=]*= '([\d.]+)'", text, re.MULTILINE):
            return match[1]
    return None


def _shared_memory() -> Check:
    name = str(SHARED_MEMORY)
    if not SHARED_MEMORY.is_dir():
        return Check(name, "bad", "missing", "loader workers hand over batches through it: mount a tmpfs there")
    usage = shutil.disk_usage(SHARED_MEMORY)
    words = f"{usage.free / (1 << 30):.1f} of {usage.total / (1 << 30):.1f} GiB free"
    if usage.free < _LEAST_SHARED_MEMORY:
        return Check(name, "bad", words, "in Docker: --shm-size=1g, or --ipc=host; else remove what is left in it")
    return Check(name, "ok", words)


def _leftovers() -> Iterator[Check]:
    """What is in shared memory, and what owns it."""
    blocks = leftover_blocks()
    if not blocks.live and not blocks.stale and not blocks.foreign:
        yield Check("shared memory in use", "ok", "none of a training")
    if blocks.live:
        owners = ", ".join(map(str, sorted(blocks.live)))
        yield Check("shared memory in use", "ok", f"by processes {owners}, which run")
    if blocks.stale:
        yield Check(
            "left-over shared memory", "note", counted(len(blocks.stale), "block"), "the next training removes it"
        )
    if blocks.foreign:
        names = ", ".join(sorted(blocks.foreign)[:3])
        yield Check(
            "Streaming's shared memory",
            "note",
            f"{counted(len(blocks.foreign), 'block')} of other programs ({names})",
            "in use by a program, or left over from one that was killed; imagenet-mds is not disturbed by it",
        )


def _disk(folder: str) -> Check:
    path = Path(folder).absolute()
    existing = next(one for one in (path, *path.parents) if one.is_dir())
    name = f"disk at {path}"
    free = shutil.disk_usage(existing).free
    try:
        mbps = _write_speed(existing)
    except OSError as error:
        return Check(name, "bad", f"cannot be written: {error.strerror}", "choose another folder, or its permissions")
    words = f"{free / 1e9:,.0f} GB free, writes {mbps:,.0f} MB/s"
    if free < _LEAST_DISK:
        return Check(name, "bad", words, "checkpoints of a ResNet-50 take 0.3 GB each: make room, or choose another")
    if mbps < _SLOW_DISK_MBPS:
        return Check(name, "note", words, "a slow disk delays checkpoints, not training; keep datasets elsewhere")
    return Check(name, "ok", words)


def _write_speed(folder: Path) -> float:
    """MB/s of a file that is written and synced.

    Raises:
        OSError: it cannot be written.
    """
    data = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".imagenet-mds-doctor-") as file:
        started = time.perf_counter()
        for _ in range(_PROBE_BYTES >> 20):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_BYTES / 1e6 / (time.perf_counter() - started)


def _s3(place: str) -> Check:
    from imagenet_mds.storage import open_storage  # boto3

    try:
        check_permissions(open_storage(f"{place.rstrip('/')}/doctor"))
    except (CommandError, OSError) as error:
        return Check(place, "bad", "not usable", str(error))
    return Check(place, "ok", "lists, writes, reads and deletes")


def _weights_and_biases() -> Check:
    version = importlib.metadata.version("wandb")
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError):
        netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
        has_key = has_key or "api.wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
    if has_key:
        return Check("W&B", "ok", f"{version}, with a key")
    return Check("W&B", "note", f"{version}, no key", "for logging.wandb: `wandb login`, or WANDB_MODE=offline")


def _metadata() -> Check:
    name = "instance metadata"
    if is_disabled():
        return Check(name, "note", "off", "AWS_EC2_METADATA_DISABLED is set: no spot notice would be seen")
    try:
        service = MetadataService()
        kind, life = service.get("instance-type"), service.get("instance-life-cycle")
    except NoAnswer as error:
        if os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
            return Check(name, "bad", str(error), "no spot notice would be seen: check the address")
        if _is_ec2():
            hint = "no spot notice would be seen: allow a second hop (docs/interruption.md)"
            return Check(name, "bad", "no answer on a machine of EC2", hint)
        return Check(name, "ok", "none: this is no machine of EC2")
    return Check(name, "ok", f"{kind}, {life or 'on-demand'}")


def _is_ec2() -> bool:
    with contextlib.suppress(OSError):
        return Path("/sys/devices/virtual/dmi/id/sys_vendor").read_text(encoding="ascii").strip() == "Amazon EC2"
    return False


def _clock() -> Check:
    tool = shutil.which("timedatectl")
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if tool is None:
        return Check("clock", "ok", f"{shown}; whether it is synchronized is not known here")
    asked = subprocess.run(
        [tool, "show", "--property=NTPSynchronized", "--value"], capture_output=True, text=True, check=False
    )
    if asked.returncode == 0 and asked.stdout.strip() == "no":
        return Check("clock", "note", f"{shown}, not synchronized", "S3 refuses requests 15 min off: start chrony")
    return Check("clock", "ok", shown)


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fine = hard == resource.RLIM_INFINITY or hard >= _LEAST_OPEN_FILES
    words = "unlimited" if hard == resource.RLIM_INFINITY else f"{soft:,} of {hard:,}"
    hint = "" if fine else f"{_LEAST_OPEN_FILES:,} are needed: `ulimit -Hn`, or LimitNOFILE of the unit"
    yield Check("open files", "ok" if fine else "bad", words, hint)
    yield Check("processors", "ok", f"{usable_processors()}, load {os.getloadavg()[0]:.1f}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_limit()
    words = f"{min(memory, limit or memory) / (1 << 30):.1f} GiB" + (", a limit of the container" if limit else "")
    yield Check("memory", "ok", words)


def _cgroup_limit() -> int | None:
    """The memory limit of the container or unit in bytes, None if there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            value = int(Path(path).read_text(encoding="ascii"))
            if value < 1 << 60:
                return value
    return None
