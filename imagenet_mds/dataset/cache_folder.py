"""Where this machine keeps what it fetches. Imports nothing heavy, because listing runs needs it too."""

import os
from pathlib import Path


def default_cache() -> Path:
    """Return the cache folder used without --cache, as the XDG base directory specification defines it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagenet-mds"
