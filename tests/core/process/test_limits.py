"""The limit of open files."""

import subprocess
import sys

from tests.support.command import environment

PROGRAM = """
import resource
from imagenet_mds.process.limits import raise_open_files_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
raise_open_files_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 1 << 16) > 64)
raise_open_files_limit()
"""


def test_the_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
