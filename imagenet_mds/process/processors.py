"""How many processors this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/proc/self/cgroup")
_HIERARCHY = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """The processors that this process is allowed on, or fewer where its control group has a quota: a container with
    `--cpus 4` sees all processors of its host."""
    quotas = list(_quotas())
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def _quotas() -> Iterator[float]:
    """Processors that each control group of this process, and each group above it, may use together.

    Formats: docs.kernel.org, `admin-guide/cgroup-v2.rst` (`cpu.max`) and `scheduler/sched-bwc.rst` (version 1).
    """
    for line in _text(_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _HIERARCHY / "cpu" if controllers else _HIERARCHY
        group = Path(path.lstrip("/"))
        for folder in (root / group, *(root / above for above in group.parents)):
            values = (
                [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
                if controllers
                else _text(folder / "cpu.max").split()
            )
            # Without a limit the quota is `max`, or -1 in version 1.
            if len(values) == 2 and all(value.isdecimal() for value in values) and int(values[1]):
                yield int(values[0]) / int(values[1])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
