"""CPU time of process groups: a loader is measured with all of its workers."""

import os
from collections.abc import Iterator
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""Resolution of the kernel's CPU times."""


def group_cpu_seconds(group: int) -> float:
    """Return the CPU time of all processes of a group, and of their children that have ended."""
    return sum(sum(map(int, fields[11:15])) for _, fields in group_processes(group)) * TICK_SECONDS


def group_processes(group: int) -> Iterator[tuple[Path, list[str]]]:
    """Iterate over the processes of a group.

    Yields:
        The folder of a process in /proc, and the fields of its `stat` after the name: state, parent, group, ...
    """
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name is in parentheses and may contain anything.
            fields = path.read_text(encoding="utf-8").rpartition(") ")[2].split()
        except OSError:  # the process has ended
            continue
        if int(fields[2]) == group:
            yield path.parent, fields
