"""What a rank computes with, as the log's event `start` has it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from imagenet_mds import __version__

_PROCESSORS = Path("/proc/cpuinfo")
_DRIVER = Path("/sys/module/nvidia/version")


def machine(*, on_gpu: bool) -> dict[str, Any]:
    """The device, the threads and the versions that losses may depend on, by name."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "imagenet_mds": __version__,
        "torch": torch.__version__.split("+")[0],
        "simplejpeg": version("simplejpeg"),
    }
    if on_gpu:
        found |= {"cuda": torch.version.cuda, "driver": _line(_DRIVER)}
    return found


def _processor() -> str | None:
    """The processor's model, None where the kernel does not tell."""
    lines = (_line(_PROCESSORS, start) for start in ("model name", "Model", "CPU part"))
    return next((line.partition(":")[2].strip() for line in lines if line), None)


def _line(file: Path, start: str = "") -> str | None:
    """The first line of a file that has this start, None if there is none."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.strip() for line in lines if line.startswith(start)), None)
