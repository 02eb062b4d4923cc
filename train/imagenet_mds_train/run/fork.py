"""A run that starts from the weights of another one: with another recipe, or for more epochs. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import file_xxh64
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.find import WEIGHTS, find_checkpoint, find_weights
from imagenet_mds_train.run.folder import read_object


@dataclass(frozen=True)
class Fork:
    """The checkpoint that a run starts from: its file, and the hash by which the run knows it."""

    checkpoint: Path
    xxh64: str
    run: dict[str, Any] | None = None
    """The record of the run that it is of, None for a file alone."""
    is_pretrained: bool = False
    """Whether it may be of other classes, and another program's."""

    @classmethod
    def at(cls, location: str) -> "Fork":
        """The checkpoint that a user means; see `find_checkpoint`.

        Raises:
            UserError: there is none.
            WorldError: it cannot be used.
        """
        path = find_checkpoint(location).absolute()
        return cls(path, file_xxh64(path), read_object(path.parent.parent / "run.json"))

    @classmethod
    def pretrained(cls, location: str) -> "Fork":
        """Weights of any origin, or the newest checkpoint of a run; see `find_weights`.

        Raises:
            UserError: there are none.
            WorldError: the run's checkpoints are broken.
        """
        path = find_weights(location).absolute()
        if path.suffix not in (".pt", *WEIGHTS):
            raise UserError(f"{path} is no file of weights: pass one that ends in .pt, {', '.join(WEIGHTS)}")
        return cls(path, file_xxh64(path), is_pretrained=True)

    def refuse_misfit(self, config: TrainConfig, classes_fingerprint: str | None) -> None:
        """Refuse weights of another network or other classes, as far as the record of their run says so. The ranks
        refuse the rest.

        Raises:
            UserError: they do not fit.
        """
        if self.run is None:
            return
        theirs = parse_config(self.run["config"], f"the configuration of {self.checkpoint}")
        if (theirs.model.depth, theirs.algorithms.blurpool) != (config.model.depth, config.algorithms.blurpool):
            raise UserError(
                f"{self.checkpoint} is of another network (ResNet-{theirs.model.depth}): pass model.depth and "
                f"algorithms.blurpool as it has them"
            )
        if self.run["identity"]["dataset"]["classes"] != classes_fingerprint:
            raise UserError(f"{self.checkpoint} was trained on other classes: give the dataset's own, or train anew")

    def identity(self) -> dict[str, Any]:
        """What the run's identity says of it."""
        return {"weights_xxh64": self.xxh64}
