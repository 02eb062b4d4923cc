"""The GPUs of this machine, counted without torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass


def gpus() -> int:
    """Return how many NVIDIA GPUs the ranks will see, 0 without a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@dataclass(frozen=True)
class GPU:
    """A GPU as its driver describes it. `capability` is the compute capability, 7.5 for a T4."""

    name: str
    memory_mib: int
    capability: float
    driver: str


def describe_gpus() -> list[GPU]:
    """All GPUs of this machine, none without a driver that answers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    asked = subprocess.run([tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
    if asked.returncode:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]
    return [GPU(name, int(memory), float(capability), driver) for name, memory, capability, driver in rows]
