"""What a run's folder says of its last start. Imports no torch, and nothing that takes time: `runs ls` reads it."""

from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import WorldError
from imagenet_mds_train.run.folder import read_object


@dataclass(frozen=True)
class LastJob:
    """What `job.json` says of a run's last start. A run does not need the file to continue, so a damaged one is as good
    as none: then everything is None.

    dataset: its location.
    cache: the folder of its fetched shards, None if they are read in place.
    limit_bytes: the room that they may take there.
    experiment: the group of runs that the run is of.
    """

    dataset: str | None = None
    cache: Path | None = None
    limit_bytes: int | None = None
    experiment: str | None = None

    @classmethod
    def of(cls, run: Path) -> "LastJob":
        """Read it from a run's folder."""
        try:
            job = read_object(run / "job.json")
        except WorldError:
            return cls()
        train = job.get("train") if isinstance(job, dict) else None
        if job is None or not isinstance(train, dict):
            return cls()
        folder, remote = train.get("folder"), train.get("remote")
        location = remote or folder
        # The shards of a split are in CACHE/FINGERPRINT/SPLIT.
        cache = Path(str(folder)).parent.parent if remote and folder else None
        return cls(
            str(location).removesuffix("/train") if location else None,
            cache,
            train.get("limit_bytes"),
            job.get("experiment"),
        )
