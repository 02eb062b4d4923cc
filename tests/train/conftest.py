"""What the tests of the trainer share."""

import os
from collections.abc import Iterator

import pytest

from imagenet_mds_train.attempt import attempt


@pytest.fixture(scope="module")
def blocks() -> Iterator[None]:
    """Streaming datasets in this process, with shared memory blocks and lock files of its own."""
    from imagenet_mds_train.stream import use_own_blocks

    with attempt() as mine, pytest.MonkeyPatch.context() as patch:
        for name, value in mine.environment().items():
            patch.setenv(name, value)
        patch.setattr("tempfile.tempdir", os.environ["TMPDIR"])
        use_own_blocks()
        yield
