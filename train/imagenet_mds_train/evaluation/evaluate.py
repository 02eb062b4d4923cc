"""Evaluates a checkpoint on a split: each sample once, in one process."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imagenet_mds.dataset.access import Split
from imagenet_mds.dataset.manifest import read_keys
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.evaluation.figures import Figures, figures_of
from imagenet_mds_train.evaluation.predictions import Predictions, predict
from imagenet_mds_train.model.trained import load_trained

_IMAGENET_VAL = 50_000


@dataclass(frozen=True)
class Options:
    """What an evaluation may do differently from a run's own validation. None is as the run has it.

    samples: only the first of the split, which have the classes in equal share.
    resize_px: the shorter side that images are resized to.
    crop_px: the side of their centre that the network sees.
    flips: average the probabilities of each image and its mirror image.
    averaged: take the average of the weights where there is one.
    """

    samples: int | None = None
    resize_px: int | None = None
    crop_px: int | None = None
    flips: bool = False
    averaged: bool = True


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on a split. `averaged` says that the weights are an average, `flips` that each image counts with its
    mirror image."""

    checkpoint: str
    split: str
    config: TrainConfig
    averaged: bool
    flips: bool
    class_names: list[str]
    """The wnid or name of each class."""

    predictions: Predictions
    figures: Figures


def evaluate(
    checkpoint: Path,
    split: Split,
    options: Options | None = None,
    real: Path | None = None,
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Evaluation:
    """Run a checkpoint's model over a split.

    Args:
        checkpoint: a file that `imagenet-mds train` wrote.
        split: what to run on, ready to be read.
        options: see `Options`.
        real: the file of the ReaL labels (`real.json`), for ImageNet's val.
        on_samples: called after each batch with the number of its samples.

    Raises:
        UserError: not such a file, its classes are not the dataset's, or an option does not fit.
        WorldError: an image does not decode, and `data.damaged` says stop; or the storage fails.
    """
    options = options or Options()
    trained = load_trained(checkpoint, averaged=options.averaged)
    _refuse_other_classes(checkpoint, trained.class_names, split)
    config = _with_sizes(trained.config, options)
    if options.samples is not None and not 0 < options.samples <= split.info.samples:
        raise UserError(f"--subset {options.samples:,}: {split.info.split} has {split.info.samples:,} images")
    labels_of = _real_labels(real, split) if real else None
    predictions = predict(
        trained.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        config,
        split,
        options.samples or split.info.samples,
        flips=options.flips,
        on_samples=on_samples,
    )
    return Evaluation(
        checkpoint=str(checkpoint),
        split=split.info.split,
        config=config,
        averaged=trained.averaged,
        flips=options.flips,
        class_names=trained.class_names,
        predictions=predictions,
        figures=figures_of(predictions, labels_of and [labels_of[sample] for sample in predictions.samples.tolist()]),
    )


def _with_sizes(config: TrainConfig, options: Options) -> TrainConfig:
    given = {"resize_px": options.resize_px, "crop_px": options.crop_px}
    changed = config.evaluation.model_copy(update={name: value for name, value in given.items() if value is not None})
    if changed.crop_px > changed.resize_px:
        raise UserError(
            f"--crop-px {changed.crop_px} is larger than --resize-px {changed.resize_px}: the centre is cut out of the "
            f"resized image"
        )
    return config.model_copy(update={"evaluation": changed})


def _real_labels(file: Path, split: Split) -> Sequence[set[int]]:
    """The ReaL labels of each sample of a split.

    Raises:
        UserError: the file is not that of the ReaL labels, or the split is not ImageNet's val.
    """
    try:
        lists = json.loads(file.read_bytes())
        labels = [{int(label) for label in one} for one in lists]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read as ReaL labels, a JSON list of lists of classes: {error}") from None
    keys = read_keys(split.storage) if split.info.classes else []
    numbers = [int(found[1]) for key in keys if (found := re.search(r"ILSVRC2012_val_(\d{8})\.JPEG$", key))]
    if len(numbers) != split.info.samples or split.info.classes is None or len(split.info.classes) != 1000:
        raise UserError(
            f"--real-labels is for ImageNet's val with its 1,000 classes, and {split.storage.location} is another"
        )
    if len(labels) != _IMAGENET_VAL:
        raise UserError(f"{file} has the labels of {len(labels):,} images, and ImageNet's val has {_IMAGENET_VAL:,}")
    return [labels[number - 1] for number in numbers]


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
