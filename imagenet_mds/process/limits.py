"""Limits of the system that are lower than they need to be."""

import resource

_MOST_OPEN_FILES = 1 << 16


def raise_open_files_limit() -> None:
    """Raise this process's limit of open files, and that of its children, as far as the system allows. The usual 1,024
    is too few for ranks with many loader workers, each with its shards, pipes and shared memory open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
