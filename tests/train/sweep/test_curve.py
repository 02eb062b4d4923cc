"""What the curve of a learning-rate sweep suggests, on curves whose answer is known."""

import math
import random
from collections.abc import Callable

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.sweep.curve import SMOOTHING, NoMinimumError, Sweep, has_diverged, smooth, suggest

SWEEP = Sweep(1e-5, 10.0, 100)
LRS = [SWEEP.lr(batch) for batch in range(100)]
LAG_BATCHES = SMOOTHING / (1 - SMOOTHING)
LAG_TIMES = (LRS[1] / LRS[0]) ** LAG_BATCHES
"""By how much the moving mean is late, in batches and as a factor of the learning rate."""


def curve(loss_at: Callable[[float], float], noise: float = 0.0) -> list[float]:
    """A loss as a function of the logarithm of the learning rate, to the base of 10."""
    draw = random.Random(0)
    return [loss_at(math.log10(lr)) + draw.gauss(0, noise) for lr in LRS]


def test_the_rate_rises_exponentially_from_the_first_batch_to_the_last() -> None:
    assert LRS[0] == 1e-5
    assert LRS[-1] == pytest.approx(10.0)
    assert LRS[50] / LRS[49] == pytest.approx(LRS[1] / LRS[0])
    assert SWEEP.lr(100) == LRS[-1], "no rate is above the last one"


def test_the_mean_has_no_bias_towards_its_start() -> None:
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0])[1] == pytest.approx((SMOOTHING * 1 + 2) / (SMOOTHING + 1))
    assert smooth([]) == []


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_minimum_of_a_parabola_is_found_as_late_as_the_mean_is(noise: float) -> None:
    found = suggest(LRS, curve(lambda at: 1 + 0.2 * (at + 1) ** 2, noise))
    assert found.minimum == pytest.approx(0.1 * LAG_TIMES, rel=0.3)
    assert found.tenth_of_minimum == found.minimum / 10
    assert found.steepest < found.minimum


def test_the_steepest_descent_is_in_the_middle_of_a_step_down() -> None:
    step = curve(lambda at: 2 - 1 / (1 + math.exp(-6 * (at + 2))) + max(0.0, at) ** 2, noise=0.01)
    assert suggest(LRS, step).steepest == pytest.approx(0.01 * LAG_TIMES, rel=0.5)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (curve(lambda at: 2.0), "never falls between learning rates 1e-05 and 10: pass a larger --to, or if"),
        (curve(lambda at: 2.0, noise=0.1), "never falls between learning rates 1e-05 and 10: pass a larger --to"),
        (curve(lambda at: 2 + (at + 5) ** 2), "never falls between learning rates 1e-05 and 10: pass a smaller --from"),
        (curve(lambda at: -at, noise=0.05), "still falls at the largest learning rate, 10, so there is no minimum: "),
        ([2.0, 9.0, math.nan], "diverged after 2 of the batches, at learning rate 1.1e-05: pass a smaller --from"),
        ([math.nan], "diverged after 0 of the batches, at learning rate 1e-05: pass a smaller --from"),
        ([2.0] * 8 + [2e9], "diverged after 9 of the batches"),
    ],
)
def test_a_curve_without_a_minimum_is_refused_with_what_to_pass(losses: list[float], words: str) -> None:
    with pytest.raises(NoMinimumError) as caught:
        suggest(LRS, losses)
    assert words in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_noise_alone_is_no_fall() -> None:
    def is_refused(seed: int) -> bool:
        draw = random.Random(seed)
        try:
            suggest(LRS, [6.9 + draw.gauss(0, 0.1) for _ in LRS])
        except NoMinimumError:
            return True
        return False

    assert sum(map(is_refused, range(300))) >= 297


def test_the_curve_ends_before_a_loss_that_is_not_finite() -> None:
    losses = curve(lambda at: 1 + 0.2 * (at + 1) ** 2)
    whole = suggest(LRS, losses)
    for end in (math.nan, math.inf):
        assert suggest(LRS, [*losses[:95], end, *losses[96:]]) == whole
    # Even where the loss has not risen before: it is the rise.
    falling = curve(lambda at: -at)
    assert suggest(LRS[:80], [*falling[:79], math.nan]).minimum == LRS[78]


def test_a_sweep_ends_at_four_times_its_minimum_or_a_loss_that_is_not_finite() -> None:
    assert not has_diverged([1.0, 4.0])
    assert has_diverged([1.0, 4.1])
    assert not has_diverged([4.1, 1.0])
    for end in (math.nan, math.inf):
        assert has_diverged(smooth([1.0, end]))
        assert has_diverged(smooth([end]))


def test_a_rate_is_said_in_terms_of_the_configured_one() -> None:
    optimizer = load_config("demo", ["optimizer.lr_batch_size=64"]).optimizer
    assert optimizer.configured_lr(0.2, 128) == pytest.approx(0.1)
    assert optimizer.configured_lr(optimizer.scaled_lr(96), 96) == pytest.approx(optimizer.lr)
    assert load_config("demo").optimizer.configured_lr(0.2, 128) == 0.2


def test_the_sweep_keeps_the_size_of_the_first_epoch() -> None:
    growing = load_config("demo", ["augment.progressive={start_px: 32, until_epoch: 5}"])
    sweeping = growing.for_sweep()
    assert {sweeping.size_at(epoch) for epoch in range(10)} == {32}
    assert sweeping.evaluation.every_epochs is None
    assert sweeping.algorithms == growing.algorithms
