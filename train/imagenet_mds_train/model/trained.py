"""The trained model of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from imagenet_mds_train.checkpoints.payload import load_payload
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.build import build_model
from imagenet_mds_train.model.classifier import Classifier


@dataclass(frozen=True)
class Trained:
    """A model with a checkpoint's weights, on the CPU.

    config: that of its run.
    class_names: the wnid or name of each class.
    averaged: whether the weights are an average.
    """

    model: Classifier
    config: TrainConfig
    class_names: list[str]
    averaged: bool


def load_trained(checkpoint: Path, *, averaged: bool = True) -> Trained:
    """Build the model of a checkpoint and load its weights.

    Args:
        checkpoint: a file that `imagenet-mds train` wrote.
        averaged: whether to take the average of the weights where there is one.

    Raises:
        UserError: it is not such a file, or a later version wrote it.
    """
    payload, weights = load_payload(checkpoint, averaged=averaged)
    config = parse_config(payload["config"], str(checkpoint))
    model = build_model(config, len(payload["classes"]))
    model.load_state_dict(weights)
    return Trained(model, config, payload["classes"], averaged and bool(config.algorithms.ema or config.algorithms.swa))
