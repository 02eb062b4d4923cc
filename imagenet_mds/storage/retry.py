"""How often and how long operations that may fail for a moment are retried. All attempt counts are here.

A request to S3 that fails or gets no answer is repeated by boto3: 11 requests at most. It waits up to 1, 2, 4, 8, 16,
then 20 seconds between them, 131 seconds in all; a throttling server may add 5 seconds to each wait.

    a line that takes no connection     11 x 10 s + 131 s                    241 seconds
    a line that falls silent            11 x 30 s + 131 s                    461 seconds, then the command ends

The body of an answer is read after the request has succeeded, so boto3 does not repeat it; `s3.py` does, 6 times at
most, and waits up to 0.2, 0.4, 0.8, 1.6 and 3.2 seconds in between.

    bodies that break off at once       6.2 s                                6 seconds
    bodies that fall silent             6 x 30 s + 6.2 s                     186 seconds
    all of it at once                   6 x (461 s + 30 s) + 6.2 s           2,952 seconds, the worst case of one read

Uploads go in parts, each a request with these limits. A create-only write that meets another one in flight is tried 6
times with the same waits as a body.

The counts for whole files do not multiply these times, because an error of the line ends them at once:

    a shard whose hash is wrong         3 downloads without waits, so three times the time of one
    a shard evicted before it is read   50 downloads without waits
    a shard task whose worker is lost   6 runs; how soon a loss is noticed is up to Ray
"""

import random
import time

REQUEST_RETRIES = 10
"""Requests that boto3 sends after the first one failed."""

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 30

BODY_ATTEMPTS = 6
"""Requests for the bytes of one object or range whose body breaks off."""

CREATE_ATTEMPTS = 6
"""Requests to create an object while other writers of it are in flight and fail."""

SHARD_DOWNLOADS = 3
"""Downloads of a shard whose size or hash is not that of the index."""

EVICTED_SHARD_DOWNLOADS = 50
"""Downloads of a shard that other processes evict from a small cache before its reader opens it."""

LOST_TASK_RETRIES = 5
"""Runs of a shard task on Ray after the first one, where its worker or machine was lost."""

_FIRST_PAUSE_SECONDS = 0.2


def pause(attempt: int) -> None:
    """Wait before the next attempt: up to 0.2 seconds after attempt 0, and twice as long after each one.

    The wait is drawn at random, so that processes that failed together do not return together.
    """
    time.sleep(random.uniform(0, longest_pause_seconds(attempt)))


def longest_pause_seconds(attempt: int) -> float:
    """Return the upper bound of the wait after an attempt, counted from 0."""
    return _FIRST_PAUSE_SECONDS * 2.0**attempt
