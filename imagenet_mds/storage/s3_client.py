"""The S3 client of this process: its timeouts, its retries, and what becomes of it in a forked process."""

import os
import threading
from functools import cache
from typing import Any

import boto3
from botocore.config import Config

from imagenet_mds.storage import retry

_lock = threading.Lock()


def client() -> Any:
    """Return the client of this process, which its threads share.

    The lock keeps threads from making one each, which takes 0.1 seconds.
    """
    with _lock:
        return _make_client()


@cache
def _make_client() -> Any:
    return boto3.session.Session().client(
        "s3",
        config=Config(
            retries={"mode": "adaptive", "max_attempts": retry.REQUEST_RETRIES},  # not counting the first request
            connect_timeout=retry.CONNECT_TIMEOUT_SECONDS,
            read_timeout=retry.READ_TIMEOUT_SECONDS,
            max_pool_connections=32,
        ),
    )


def reset_client() -> None:
    """Make the next call of `client` make a new one.

    A forked process, such as a loader worker, must not share connections with its parent, nor wait for a lock that a
    thread of the parent held.
    """
    global _lock
    _lock = threading.Lock()
    _make_client.cache_clear()


os.register_at_fork(after_in_child=reset_client)
