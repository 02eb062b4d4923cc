"""The figures of an evaluation, from the predictions: accuracy, by class, confused pairs, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagenet_mds_train.evaluation.predictions import Predictions

_BINS = 15
"""Of the reliability diagram and of the calibration error, as in Guo et al. 2017."""

_PAIRS = 20


@dataclass(frozen=True)
class ClassFigures:
    """A class: its number, accuracies of its samples (0 to 1), and the share of what was taken for it that is of it."""

    label: int
    samples: int
    top1: float
    top5: float
    precision: float


@dataclass(frozen=True)
class Confusion:
    """Two classes, of which `samples` of the first were taken for the second; `share` of the first's. `examples` are
    the numbers of some of these samples in the split, the surest mistakes first."""

    label: int
    taken_for: int
    samples: int
    share: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Bin:
    """The samples of a range of confidence: its mean, and their accuracy."""

    samples: int
    confidence: float
    top1: float


@dataclass(frozen=True)
class Figures:
    """The figures of a model on the samples of a split. Accuracies are 0 to 1.

    samples: that were counted; `damaged` ones did not decode and were not.
    loss: mean cross entropy, which training's binary cross entropy or smoothing does not change.
    calibration_error: the expected calibration error (Guo et al. 2017), of 15 bins.
    real_top1: accuracy on the ReaL labels (Beyer et al. 2020), None without them.
    classes: those with samples, by number.
    confusions: the pairs with the most samples.
    reliability: the bins with samples, by confidence.
    """

    samples: int
    damaged: int
    top1: float
    top5: float
    loss: float
    calibration_error: float
    real_top1: float | None
    classes: list[ClassFigures]
    confusions: list[Confusion]
    reliability: list[Bin]


def figures_of(predictions: Predictions, real: Sequence[set[int]] | None = None) -> Figures:
    """Compute the figures.

    Args:
        predictions: of at least one sample.
        real: the labels of each counted sample, by `real_labels`. A sample without any is not counted.
    """
    among = (predictions.best == predictions.labels[:, None]).any(axis=1)
    reliability = _reliability(predictions)
    samples = len(predictions.labels)
    return Figures(
        samples=samples,
        damaged=predictions.damaged,
        top1=_share(predictions.right),
        top5=_share(among),
        loss=float(predictions.losses.mean()) if samples else 0.0,
        calibration_error=sum(one.samples * abs(one.confidence - one.top1) for one in reliability) / max(samples, 1),
        real_top1=None if real is None else _real_top1(predictions, real),
        classes=_classes(predictions, among),
        confusions=_confusions(predictions),
        reliability=reliability,
    )


def compared(one: Predictions, other: Predictions) -> dict[str, Any]:
    """How two models differ on the same samples.

    Returns:
        The numbers of samples that only one of them has right, and the probability of a difference as large by chance
        (McNemar's test, exact; two-sided).
    """
    _, mine, theirs = np.intersect1d(one.samples, other.samples, return_indices=True)
    right, others = one.right[mine], other.right[theirs]
    only_one, only_other = int((right & ~others).sum()), int((others & ~right).sum())
    from scipy.stats import binomtest

    differing = only_one + only_other
    chance = float(binomtest(only_one, differing, 0.5).pvalue) if differing else 1.0
    return {"samples": len(mine), "only_first": only_one, "only_second": only_other, "chance": chance}


def _classes(predictions: Predictions, among: NDArray[np.bool_]) -> list[ClassFigures]:
    classes = int(max(predictions.labels.max(initial=-1), predictions.best.max(initial=-1))) + 1
    count = np.bincount(predictions.labels, minlength=classes)
    taken = np.bincount(predictions.best[:, 0], minlength=classes)
    right = np.bincount(predictions.labels[predictions.right], minlength=classes)
    in_five = np.bincount(predictions.labels[among], minlength=classes)
    return [
        ClassFigures(
            label=label,
            samples=int(count[label]),
            top1=float(right[label] / count[label]),
            top5=float(in_five[label] / count[label]),
            precision=float(right[label] / taken[label]) if taken[label] else 0.0,
        )
        for label in np.flatnonzero(count).tolist()
    ]


def _confusions(predictions: Predictions) -> list[Confusion]:
    wrong = np.flatnonzero(~predictions.right)
    pairs = np.stack([predictions.labels[wrong], predictions.best[wrong, 0]], axis=1)
    found, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    of_class = np.bincount(predictions.labels)
    confusions = []
    # The sort is stable, so that pairs of equal count are in the order of their numbers.
    for place in np.argsort(-counts, kind="stable")[:_PAIRS].tolist():
        members = wrong[inverse.reshape(-1) == place]
        surest = members[np.argsort(-predictions.confidence[members], kind="stable")][:3]
        label, taken_for = found[place].tolist()
        confusions.append(
            Confusion(
                label=label,
                taken_for=taken_for,
                samples=int(counts[place]),
                share=float(counts[place] / of_class[label]),
                examples=tuple(predictions.samples[surest].tolist()),
            )
        )
    return confusions


def _reliability(predictions: Predictions) -> list[Bin]:
    places = np.minimum((predictions.confidence * _BINS).astype(np.int64), _BINS - 1)
    return [
        Bin(int(members.sum()), float(predictions.confidence[members].mean()), _share(predictions.right[members]))
        for place in range(_BINS)
        if (members := places == place).any()
    ]


def _real_top1(predictions: Predictions, real: Sequence[set[int]]) -> float:
    counted = [
        guess in labels for guess, labels in zip(predictions.best[:, 0].tolist(), real, strict=True) if len(labels)
    ]
    return sum(counted) / max(len(counted), 1)


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else 0.0
