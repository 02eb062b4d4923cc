"""The one place that builds a model: network, surgery, classifier.

Training, evaluation and whatever else needs the network of a configuration take it from here, so that weights always
meet the modules they were trained in.
"""

from pathlib import Path
from typing import Literal

from composer.algorithms.blurpool import apply_blurpool

from imagenet_mds.errors import UserError
from imagenet_mds_train.checkpoints.payload import load_payload
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.classifier import Classifier
from imagenet_mds_train.model.resnet import resnet

Precision = Literal["fp32", "amp_fp16", "amp_bf16"]


def build_model(config: TrainConfig, classes: int) -> Classifier:
    """The model of a configuration, freshly initialised.

    Args:
        config: the run's.
        classes: outputs.
    """
    smoothing = config.algorithms.label_smoothing.smoothing if config.algorithms.label_smoothing else 0.0
    model = Classifier(resnet(config.model.depth, classes), classes, smoothing)
    if config.algorithms.blurpool:
        apply_blurpool(model.network)
    return model


def take_weights(model: Classifier, checkpoint: Path, classes: list[str]) -> None:
    """Take the weights of a checkpoint, the averaged ones where it has an average.

    Args:
        model: what takes them.
        checkpoint: a file that `imagenet-mds train` wrote.
        classes: the model's, in the order of their numbers.

    Raises:
        UserError: it is not such a file, or of another network or other classes.
    """
    payload, weights = load_payload(checkpoint)
    if payload["classes"] != classes:
        raise UserError(
            f"{checkpoint} knows {len(payload['classes'])} classes, and the dataset has {len(classes)}, or others: "
            f"give a checkpoint with the dataset's classes"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        depth = payload["config"]["model"]["depth"]
        raise UserError(
            f"{checkpoint} is of another network (ResNet-{depth}): pass model.depth and algorithms.blurpool as it has "
            f"them"
        ) from None


def precision_on(device_type: str, config: TrainConfig) -> Precision:
    """The precision to compute in.

    Args:
        device_type: as torch names it, `cuda` or `cpu`.
        config: the run's. `auto` is fp16 on a GPU: a T4 only emulates bf16, although it claims to support it.
    """
    if config.system.precision == "auto":
        return "amp_fp16" if device_type == "cuda" else "fp32"
    return config.system.precision
