"""Evaluates a checkpoint on a split: each sample once, in one process, with the metrics of training."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from imagenet_mds.dataset.access import Split
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds_train.checkpoints.payload import load_payload
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.data.device import finish_batch
from imagenet_mds_train.data.loaders import validation_loader
from imagenet_mds_train.data.stream import own_resources
from imagenet_mds_train.metrics.validation import validation_metrics
from imagenet_mds_train.model.build import build_model, precision_on


@dataclass(frozen=True)
class Evaluation:
    """The figures of a checkpoint on a split. Accuracies are 0 to 1; `averaged` says that the weights are the EMA's;
    `damaged` images did not decode and were not counted."""

    checkpoint: str
    split: str
    samples: int
    top1: float
    top5: float
    loss: float
    averaged: bool
    damaged: int = 0


def evaluate(checkpoint: Path, split: Split, on_samples: Callable[[int], None] = lambda samples: None) -> Evaluation:
    """Run a checkpoint's model over every sample of a split. Damaged images are treated as in training, by the
    configuration's `data.damaged`.

    Args:
        checkpoint: a file that `imagenet-mds train` wrote.
        split: what to run on, ready to be read.
        on_samples: called after each batch with the number of its samples.

    Raises:
        UserError: not such a file, or its classes are not the dataset's.
        WorldError: an image does not decode, and `data.damaged` says stop; or the storage fails.
    """
    payload, weights = load_payload(checkpoint)
    _refuse_other_classes(checkpoint, payload["classes"], split)
    config = parse_config(payload["config"], str(checkpoint))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = len(payload["classes"])
    model = build_model(config, classes)
    model.load_state_dict(weights)
    model.to(device).eval()
    metrics = {name: metric.to(device) for name, metric in validation_metrics(classes).items()}
    with own_resources():
        loader, damaged = (
            validation_loader(
                config.evaluation,
                split.shard_cache,
                split.info.samples,
                rank=0,
                ranks=1,
                replace_damaged=config.data.damaged == "black",
                finish=partial(finish_batch, device=device, classes=classes),
                device=device,
            ),
            0,
        )
        precision = precision_on(device.type, config)
        dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float16
        mixed = device.type == "cuda" and precision != "fp32"
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=mixed):
            for images, labels in loader:
                logits = model((images, labels))
                for metric in metrics.values():
                    metric.update(logits, labels)
                damaged += int((labels < 0).sum())
                on_samples(len(labels))
        del loader
    return Evaluation(
        checkpoint=str(checkpoint),
        split=split.info.split,
        samples=split.info.samples,
        top1=float(metrics["top1"].compute()),
        top5=float(metrics["top5"].compute()),
        loss=float(metrics["loss"].compute()),
        averaged=config.algorithms.ema is not None,
        damaged=damaged,
    )


def _refuse_other_classes(checkpoint: Path, names: list[str], split: Split) -> None:
    known, where = split.info.classes, split.storage.parent.location
    if known is None:
        return
    numbered = names == [str(number) for number in range(len(names))]  # trained on a dataset without a manifest
    if not numbered and (found := fingerprint(names)) != split.info.classes_fingerprint:
        raise UserError(
            f"{checkpoint} knows {len(names)} classes ({found}) and {where} has {len(known)} "
            f"({split.info.classes_fingerprint}): give the dataset it was trained on, or one with its classes"
        )
    if len(names) != len(known):
        raise UserError(
            f"{checkpoint} knows {len(names)} classes and {where} has {len(known)}: give the dataset it was trained on"
        )
