"""The curve of a learning-rate sweep and the rates that it suggests. Imports no torch.

The learning rate rises batch by batch (Smith 2017, "Cyclical learning rates for training neural networks"),
exponentially, as in fastai's `lr_find`. The loss first stays, then falls, then rises. The rate at which it falls
fastest and a tenth of the rate at which it is lowest are suggested.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from imagenet_mds.errors import UserError

SMOOTHING = 0.9
"""The weight of the past in the moving mean. fastai's 0.98 looks back by up to 49 batches, which is half of a sweep of
100 and moves the minimum by as much; 0.9 looks back by 9, half a decade of the default sweep."""

DIVERGED_TIMES = 4.0
"""The sweep ends when the smoothed loss exceeds its minimum this many times, as fastai's does."""

LEAST_BATCHES = 20
"""The shortest sweep that has a curve."""

_LEAST_POINTS = LEAST_BATCHES // 2
"""Batches of a sweep that ended early that are still a curve."""

_SKIPPED = 0.1
"""The share of the batches at the start of which the mean is of too few losses; fastai skips as many."""

_SLOPE_WINDOW = 0.05
"""Half the window over which a slope is fitted, as a share of the batches."""

_LEAST_SIGMAS = 6.0
"""How far the smoothed loss must move, in its own standard deviations, to count as a fall or a rise. Noise alone moves
as far down and up again in two of a thousand sweeps of 100 batches."""

_ROUNDING = 1e-9
"""Differences below this share of the loss are rounding."""


@dataclass(frozen=True)
class Sweep:
    """A learning rate that rises exponentially over a number of batches.

    from_lr: of the first batch.
    to_lr: of the last batch.
    batches: how many, unless the loss diverges.
    """

    from_lr: float
    to_lr: float
    batches: int

    def lr(self, batch: int) -> float:
        """The learning rate of a batch, counted from 0."""
        share = min(batch / (self.batches - 1), 1.0)
        return self.from_lr * math.exp(math.log(self.to_lr / self.from_lr) * share)


@dataclass(frozen=True)
class Suggestions:
    """Learning rates that a curve suggests, per step.

    steepest: where the smoothed loss falls fastest over the logarithm of the rate.
    minimum: where it is lowest, which is too high to train with.
    """

    steepest: float
    minimum: float

    @property
    def tenth_of_minimum(self) -> float:
        """A tenth of the rate with the lowest loss."""
        return self.minimum / 10


class NoMinimumError(UserError):
    """The curve has no minimum. The message says what to pass to get one."""


def smooth(losses: Sequence[float]) -> list[float]:
    """The exponential moving mean of losses, with the bias towards its start at 0 corrected (Kingma, Ba 2015). It is
    not finite from the first loss on that is not."""
    means, mean = [], 0.0
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**count))
    return means


def has_diverged(smoothed: Sequence[float]) -> bool:
    """Whether the last value of a smoothed curve is not finite or exceeds `DIVERGED_TIMES` the minimum."""
    return not math.isfinite(smoothed[-1]) or smoothed[-1] > DIVERGED_TIMES * min(smoothed)


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> Suggestions:
    """What a sweep suggests. Its curve ends before the first loss that is not finite.

    Args:
        lrs: of each batch, rising.
        losses: of each batch.

    Raises:
        NoMinimumError: the loss has no minimum within the sweep.
    """
    curve = list(itertools.takewhile(math.isfinite, losses))
    if len(curve) < _LEAST_POINTS:
        raise NoMinimumError(
            f"the loss diverged after {len(curve)} of the batches, at learning rate {lrs[max(len(curve) - 1, 0)]:.2g}: "
            f"pass a smaller --from"
        )
    smoothed = smooth(curve)
    first = round(_SKIPPED * len(curve))
    lowest = min(range(first, len(curve)), key=smoothed.__getitem__)
    least = _LEAST_SIGMAS * _deviation(curve[: max(lowest + 1, _LEAST_POINTS)]) + _ROUNDING * abs(smoothed[first])
    rises = len(curve) < len(losses) or max(smoothed[lowest:]) - smoothed[lowest] > least
    falls = max(smoothed[first : lowest + 1]) - smoothed[lowest] > least
    if not falls:
        raise NoMinimumError(
            f"the loss never falls between learning rates {lrs[0]:.2g} and {lrs[len(curve) - 1]:.2g}: "
            f"pass a {'smaller --from' if rises else 'larger --to'}, or if the curve is noise, a larger "
            f"global_batch_size or more --batches"
        )
    if not rises:
        raise NoMinimumError(
            f"the loss still falls at the largest learning rate, {lrs[len(curve) - 1]:.2g}, so there is no minimum: "
            f"pass a larger --to"
        )
    half = max(2, round(_SLOPE_WINDOW * len(curve)))

    def slope(at: int) -> float:
        window = slice(max(first, at - half), min(lowest, at + half) + 1)
        return statistics.linear_regression([math.log(lr) for lr in lrs[window]], smoothed[window]).slope

    return Suggestions(steepest=lrs[min(range(first, lowest + 1), key=slope)], minimum=lrs[lowest])


def _deviation(losses: Sequence[float]) -> float:
    """The standard deviation of the moving mean of losses, from their differences from one to the next (von Neumann
    1941), which a trend does not count in."""
    variance = statistics.fmean((after - before) ** 2 for before, after in itertools.pairwise(losses)) / 2
    return math.sqrt(variance * (1 - SMOOTHING) / (1 + SMOOTHING))
