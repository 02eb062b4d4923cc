"""Settles `device_microbatch_size: auto` before a run is recorded, which then keeps the size. Imports no torch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.lifetime import PARENT_VARIABLE
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.environment import lasting_defaults

AUTO = "auto"

# The user's working folder is removed from the path, as for a rank.
_SEARCH = """
import sys
sys.path[:] = [path for path in sys.path if path]
from imagenet_mds.process.lifetime import die_with_launcher, ignore_warning_signals
ignore_warning_signals()
die_with_launcher()
from imagenet_mds_train.microbatch import main
main()
"""


def with_microbatch_size(config: TrainConfig, size: int | None) -> TrainConfig:
    """The configuration with a size in the place of `auto`; None for a rank's whole batch."""
    return config.model_copy(
        update={"system": config.system.model_copy(update={"device_microbatch_size": size})},
    )


def recorded_size(identity: Mapping[str, Any]) -> int | None:
    """The microbatch size that a run was started with, None for a rank's whole batch."""
    size: int | None = identity.get("recipe", {}).get("system", {}).get("device_microbatch_size")
    return size


def find_largest(config: TrainConfig, classes: int, program: str = _SEARCH) -> int:
    """The largest microbatch that fits the GPU, found in a process that trains on random images for some seconds.

    Args:
        config: the run's, for GPUs.
        classes: outputs of the network.
        program: the search, as Python source.

    Raises:
        UserError: not even one image fits.
        WorldError: the search failed.
    """
    own = {PARENT_VARIABLE: str(os.getpid()), "PYTHONWARNINGS": "ignore"}
    given = {"config": config.model_dump(mode="json"), "classes": classes}
    found = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        env=lasting_defaults() | os.environ | own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = found.stdout.split()
    if found.returncode == 0 and lines and lines[-1].isdecimal():
        return int(lines[-1])
    said = found.stderr.rstrip().rsplit("\n", 1)[-1].removeprefix("imagenet-mds: ") or f"status {found.returncode}"
    if found.returncode == UserError.exit_status:
        raise UserError(said)
    raise WorldError(
        f"the largest microbatch could not be found ({said}): pass a number as system.device_microbatch_size"
    )


def largest_that_fits(device_batch_size: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of a rank's batch that fits.

    Args:
        device_batch_size: images of one rank's batch.
        fits: whether that many images at once fit.

    Raises:
        UserError: not even one image fits.
    """
    for size in _divisors(device_batch_size):
        if fits(size):
            return size
    raise UserError(
        "not even one image at a time fits the GPU's memory: pass a smaller augment.size_px, or end what else uses it"
    )


def _divisors(number: int) -> Iterator[int]:
    """The divisors, the largest first."""
    return (number // parts for parts in range(1, number + 1) if number % parts == 0)
