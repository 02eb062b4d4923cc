import warnings
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.evaluation.figures import Bin, compared, figures_of
    from imagenet_mds_train.evaluation.predictions import Predictions
    from imagenet_mds_train.evaluation.report import reliability_figure


def predictions(labels: list[int], best: list[list[int]], confidence: list[float] | None = None) -> Predictions:
    count = len(labels)
    return Predictions(
        samples=np.arange(count) * 10,
        labels=np.array(labels, np.int64),
        best=np.array(best, np.int64),
        confidence=np.array(confidence or [0.5] * count),
        losses=np.arange(count, dtype=np.float64),
        damaged=2,
    )


def test_accuracy_by_hand() -> None:
    figures = figures_of(predictions([0, 0, 1, 2], [[0, 1], [1, 0], [1, 0], [0, 1]]))
    assert (figures.samples, figures.damaged, figures.top1, figures.top5) == (4, 2, 0.5, 0.75)
    assert figures.loss == 1.5
    assert [(one.label, one.samples, one.top1, one.top5, one.precision) for one in figures.classes] == [
        (0, 2, 0.5, 1.0, 0.5),
        (1, 1, 1.0, 1.0, 0.5),
        (2, 1, 0.0, 0.0, 0.0),
    ]


def test_confused_pairs_are_counted_and_the_surest_mistakes_named() -> None:
    labels = [3, 3, 3, 3, 3, 1, 3]
    best = [[2], [2], [2], [2], [3], [0], [1]]
    figures = figures_of(predictions(labels, best, [0.4, 0.9, 0.6, 0.7, 1.0, 1.0, 0.3]))
    first, second, third = figures.confusions
    assert (first.label, first.taken_for, first.samples) == (3, 2, 4)
    assert first.share == pytest.approx(4 / 6)
    assert first.examples == (10, 30, 20)
    assert (second.label, second.taken_for, second.examples) == (1, 0, (50,))
    assert (third.label, third.taken_for) == (3, 1)


def test_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    # Ten samples with confidence 0.9 of which six are right, and five with 0.3 of which none is.
    right = [[0]] * 6 + [[1]] * 4 + [[1]] * 5
    figures = figures_of(predictions([0] * 15, right, [0.9] * 10 + [0.3] * 5))
    assert figures.calibration_error == pytest.approx((10 * 0.3 + 5 * 0.3) / 15)
    assert [one.samples for one in figures.reliability] == [5, 10]
    # A network that is sure and right is calibrated.
    assert figures_of(predictions([0, 0], [[0], [0]], [1.0, 1.0])).calibration_error == 0


def test_a_sure_network_is_drawn_within_the_frame() -> None:
    axes: Any = reliability_figure([Bin(3, 0.0, 0.0), Bin(2, 1.0, 1.0)]).axes[0]
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < 0
        assert high > 1


def test_real_labels_count_what_people_saw() -> None:
    seen = [{0}, {0, 1}, set(), {0}]
    figures = figures_of(predictions([0, 0, 1, 2], [[0], [1], [1], [2]]), seen)
    assert figures.real_top1 == pytest.approx(2 / 3)


def test_two_models_are_compared_on_the_same_samples() -> None:
    one = predictions([0] * 12, [[0]] * 10 + [[1]] * 2)
    other = predictions([0] * 12, [[1]] * 10 + [[1]] * 2)
    difference = compared(one, other)
    assert (difference["only_first"], difference["only_second"], difference["samples"]) == (10, 0, 12)
    assert difference["chance"] == pytest.approx(2 * 0.5**10)
    assert compared(one, one)["chance"] == 1


def test_nothing_wrong_has_no_confusions() -> None:
    figures = figures_of(predictions([0, 1], [[0], [1]]))
    assert (figures.confusions, figures.top1) == ([], 1.0)
