"""How many loader workers a rank has. Imports no torch."""

import os
from typing import Literal

from imagenet_mds.process.processors import usable_processors


def workers_of(asked: int | Literal["auto"], ranks: int | None = None) -> int:
    """The loader workers of each rank: as asked, or its share of the processors.

    One for each processor, although a rank that drives a GPU needs one itself: workers wait for the disk and for the
    rank, and where they are more than the GPU needs, those that wait cost memory alone. `benchmarks/README.md` has what
    every number of them makes.

    Args:
        asked: the configuration's `workers_per_rank`.
        ranks: that share this machine; None for those of the run that this process is of.
    """
    if asked != "auto":
        return asked
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks is None else ranks
    return max(1, usable_processors() // sharing)
