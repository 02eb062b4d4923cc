"""Running the program as a user does: a process of its own, its status, what it printed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# `python -m` and not the script beside it, so that the tests run on a checkout that is not installed too.
PROGRAM = [sys.executable, "-m", "imagenet_mds"]
ROOTS = [str(Path(__file__).resolve().parents[2] / part) for part in ("", "convert", "train", "infra")]


HANG_SECONDS = 900
"""After this long a wait is a hang. It is no measure of speed: the suite must pass on a machine with other work."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """The environment of a command under test: ours on the path."""
    path = os.pathsep.join([*ROOTS, os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "120"} | more


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> Outcome:
    """Run `imagenet-mds ARGUMENTS` to its end."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start `imagenet-mds ARGUMENTS` in the background, its output to a file."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)], env=environment(**variables), stdout=file, stderr=subprocess.STDOUT
        )


def done(*arguments: object, cwd: Path | None = None, **variables: str) -> Outcome:
    """Run `imagenet-mds ARGUMENTS`, which must succeed."""
    outcome = run(*arguments, cwd=cwd, **variables)
    assert outcome.status == 0, outcome.err + outcome.out
    return outcome


def wait_until(condition: Callable[[], object], what: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
    """Wait for a condition, as long as `process` runs, if one is given. A process that is waited for in vain is killed,
    because tests wait for its end next."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode} before {what}"
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"waited {HANG_SECONDS} s for {what}")
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """The children of a process, in the order in which they were started."""
    found = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return sorted(found)
