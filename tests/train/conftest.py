"""What the tests of the trainer share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def blocks() -> Iterator[None]:
    """Streaming datasets in this process, with shared memory blocks and lock files of its own."""
    from imagenet_mds_train.data.stream import own_resources

    with own_resources():
        yield
