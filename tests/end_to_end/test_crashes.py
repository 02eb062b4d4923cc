"""A command killed before any single change to the disk continues to exactly the same files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import environment


@pytest.mark.parametrize(("case", "least"), [("convert", 30), ("overwrite", 40), ("repair", 8)])
def test_a_command_killed_anywhere_and_run_again_gives_the_same_files(tmp_path: Path, case: str, least: int) -> None:
    # In a subprocess: it forks for every change, which this process must not, as it has threads.
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crashing", str(tmp_path), case],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    changes = re.search(r"^changes: (\d+)$", done.stdout, re.MULTILINE)
    assert changes is not None
    assert int(changes[1]) >= least
