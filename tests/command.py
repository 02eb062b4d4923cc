"""Running the program as a user does: a process of its own, its status, what it printed."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# `python -m` and not the script beside it, so that the tests run on a checkout that is not installed too.
PROGRAM = [sys.executable, "-m", "imagenet_mds"]
ROOTS = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "convert", "train")]


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


def run(*arguments: object, cwd: Path | None = None, timeout: float = 240, **variables: str) -> Outcome:
    """Run `imagenet-mds ARGUMENTS` to its end."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start `imagenet-mds ARGUMENTS` in the background, its output to a file."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)], env=environment(**variables), stdout=file, stderr=subprocess.STDOUT
        )


def done(*arguments: object) -> Outcome:
    """Run `imagenet-mds ARGUMENTS`, which must succeed."""
    outcome = run(*arguments)
    assert outcome.status == 0, outcome.err + outcome.out
    return outcome
