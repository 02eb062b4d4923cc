"""Evaluating a checkpoint on a split: each sample once, in one process, with the same metrics as in training."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imagenet_mds.dataset.access import Split
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint


@dataclass(frozen=True)
class Evaluation:
    """What a checkpoint does on a split. Shares are 0 to 1; `averaged` says that the weights are the EMA's."""

    checkpoint: str
    split: str
    samples: int
    top1: float
    top5: float
    loss: float
    averaged: bool


def evaluate(checkpoint: Path, split: Split, on_samples: Callable[[int], None] = lambda samples: None) -> Evaluation:
    """Run a checkpoint's model over every sample of a split.

    Args:
        checkpoint: a file that `imagenet-mds train` wrote.
        split: what to run on, ready to be read.
        on_samples: called after each batch with the number of its samples.

    Raises:
        UserError: not such a file, or its classes are not the dataset's.
    """
    warnings.simplefilter("ignore")  # as in a rank, see Attempt.environment
    import torch

    from imagenet_mds_train.checkpoints.payload import load_payload
    from imagenet_mds_train.config.load import parse_config
    from imagenet_mds_train.data.device import finish_batch
    from imagenet_mds_train.data.loaders import validation_loader
    from imagenet_mds_train.data.stream import own_resources
    from imagenet_mds_train.metrics.validation import validation_metrics
    from imagenet_mds_train.model.classifier import Classifier
    from imagenet_mds_train.model.resnet import resnet

    try:
        payload, weights = load_payload(checkpoint)
    except Exception as error:  # torch and pickle raise what they like on a file that is no checkpoint
        raise UserError(f"{checkpoint} is not a checkpoint of imagenet-mds ({type(error).__name__})") from None
    names, info = payload["classes"], split.info
    numbered = names == [str(number) for number in range(len(names))]  # as a dataset without a manifest leaves them
    if info.classes is not None and not numbered and (known := fingerprint(names)) != info.classes_fingerprint:
        raise UserError(
            f"{checkpoint} knows {len(names)} classes ({known}) and {split.storage.parent.location} has "
            f"{len(info.classes)} ({info.classes_fingerprint}): give the dataset it was trained on, "
            f"or one with its classes"
        )
    if info.classes is not None and len(names) != len(info.classes):
        raise UserError(
            f"{checkpoint} knows {len(names)} classes and {split.storage.parent.location} has "
            f"{len(info.classes)}: give the dataset it was trained on"
        )
    config = parse_config(payload["config"], str(checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = len(names)
    model = Classifier(resnet(config.model.depth, classes), classes)
    if config.algorithms.blurpool:
        from composer.algorithms.blurpool import apply_blurpool

        apply_blurpool(model)
    model.load_state_dict(weights)
    model.to(device).eval()
    metrics = {name: metric.to(device) for name, metric in validation_metrics(classes).items()}
    with own_resources():
        finish = partial(finish_batch, device=device, classes=classes)
        loader = validation_loader(
            config.evaluation, split.shard_cache, info.samples, rank=0, ranks=1, finish=finish, device=device
        )
        dtype = torch.bfloat16 if config.system.precision == "amp_bf16" else torch.float16
        mixed = device.type == "cuda" and config.system.precision != "fp32"  # as it was validated in training
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=mixed):
            for images, labels in loader:
                logits = model((images, labels))
                for metric in metrics.values():
                    metric.update(logits, labels)
                on_samples(len(labels))
        del loader
    return Evaluation(
        checkpoint=str(checkpoint),
        split=info.split,
        samples=info.samples,
        top1=float(metrics["top1"].compute()),
        top5=float(metrics["top5"].compute()),
        loss=float(metrics["loss"].compute()),
        averaged=config.algorithms.ema is not None,
    )
