"""A run that starts from the weights of another one: with another recipe, or for more epochs. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.storage.base import file_xxh64
from imagenet_mds_train.run.folder import find_checkpoint


@dataclass(frozen=True)
class Fork:
    """The checkpoint that a run starts from: its file, and the hash by which the run knows it."""

    checkpoint: Path
    xxh64: str

    @classmethod
    def at(cls, location: str) -> "Fork":
        """The checkpoint that a user means; see `find_checkpoint`.

        Raises:
            UserError: there is none.
            WorldError: it cannot be used.
        """
        path = find_checkpoint(location).absolute()
        return cls(path, file_xxh64(path))

    def identity(self) -> dict[str, Any]:
        """What the run's identity says of it."""
        return {"weights_xxh64": self.xxh64}
