"""The number of loader workers."""

import pytest

from imagenet_mds_train.config import workers
from imagenet_mds_train.config.workers import workers_of


@pytest.mark.parametrize(("processors", "ranks", "expected"), [(2, 1, 2), (48, 4, 12), (2, 4, 1), (15, 4, 3)])
def test_auto_is_a_ranks_share_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, processors: int, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(workers, "usable_processors", lambda: processors)
    assert workers_of("auto", ranks) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert workers_of("auto") == expected
    assert workers_of(0) == 0
    assert workers_of(7, ranks) == 7
