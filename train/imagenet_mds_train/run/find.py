"""Finding the checkpoint that a user means. Imports no torch."""

from collections.abc import Callable
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.mirror import fetch_newest


def find_checkpoint(location: str, warn: Callable[[str], None] = lambda warning: None) -> Path:
    """The checkpoint that a user means: a file, or the newest whole one of a run's folder.

    Args:
        location: what was typed, an `s3://` address among others.
        warn: called with a line for each newer checkpoint that is broken.

    Raises:
        UserError: there is none.
        WorldError: the run's checkpoints are broken.
    """
    if location.startswith("s3://"):
        return fetch_newest(location, warn)
    path = Path(location)
    if path.is_file():
        return path
    # A run's folder may be meant by its name alone, or by one of the folders in it.
    candidates = [path, Path("runs") / location, *([path.parent] if path.name in ("checkpoints", ".staging") else [])]
    path = next((one for one in candidates if (one / "run.json").is_file()), path)
    if (path / "run.json").is_file():
        run = RunFolder(path)
        record, warnings = run.newest_checkpoint()
        for warning in warnings:
            warn(warning)
        if record is None:
            raise UserError(f"{path} has no checkpoint yet: continue it with its `imagenet-mds train` command")
        return Path(run.checkpoints.location_of(record))
    raise UserError(f"there is no checkpoint at {path}: give the file, or the folder of a run")
