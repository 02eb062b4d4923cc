"""The curves of one run, and of two beside each other, drawn without a display."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, StrMethodFormatter
from numpy.typing import NDArray

from imagenet_mds.report.svg import inline_svg
from imagenet_mds_train.history.events import Point
from imagenet_mds_train.history.runs import Run

_MOST_POINTS = 1_500
"""Points of a curve. A longer one is drawn by the extremes of its parts, so that the page stays small."""

_SMOOTHED_OVER = 50
"""The smoothed loss is the mean over this part of all lines: a fiftieth."""

_COLORS = "tab:blue", "tab:orange"
_ENDS = {"stopped": "tab:olive", "killed or failed": "tab:red"}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Places and values, (points) each."""


def run_svg(run: Run) -> str:
    """The curves of one run over its batches, with the ends of its starts marked."""
    with _style("run"):
        return inline_svg(run_figure(run))


def comparison_svg(a: Run, b: Run, names: tuple[str, str]) -> str:
    """The losses and the validations of two runs."""
    with _style("comparison"):
        return inline_svg(comparison_figure(a, b, names))


def run_figure(run: Run) -> Figure:
    """Draw loss, learning rate, images/s, waiting share, top-1 and top-5 over the batches."""
    history = run.history
    figure = Figure(figsize=(9, 11), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True, height_ratios=[3, 1.4, 1.4, 1.4, 2.4])
    loss, rate, speed, waiting, accuracy = axes
    _draw_loss(loss, _curve(history.points, lambda point: point.loss), _COLORS[0], "smoothed", raw="logged")
    loss.set_ylabel("training loss")
    places, rates = _curve(history.points, lambda point: point.next_lr)
    trained = places < history.batch  # the last rate is that of a batch which has not been trained, or never will be
    rate.plot(*_thinned((places[trained] + 1, rates[trained])), color="0.3")
    rate.set_ylabel("learning rate")
    speed.plot(*_thinned(_curve(history.points, lambda point: point.images_per_second)), color="0.3", linewidth=0.8)
    speed.set(ylabel="images/s")
    speed.set_ylim(bottom=0)
    places, shares = _curve(history.points, lambda point: point.waiting_for_data)
    waiting.plot(*_thinned((places, shares * 100)), color="0.3", linewidth=0.8)
    waiting.set(ylabel="waiting for\ndata, %", ylim=(-2, 102))
    batches = [one.batch for one in history.validations]
    accuracy.plot(
        batches, [_percent(one.top1) for one in history.validations], color=_COLORS[0], marker=".", label="top-1"
    )
    accuracy.plot(
        batches, [_percent(one.top5) for one in history.validations], color=_COLORS[1], marker=".", label="top-5"
    )
    accuracy.set(ylabel="validation, %", xlabel="batch", ylim=(-2, 102))
    for panel in axes:
        for first, last in history.repeated:
            panel.axvspan(first, last, color="0.92", zorder=0, label="repeated")
        for start, end in zip(history.starts, run.ends(), strict=True):
            if end in _ENDS:
                panel.axvline(start.last_batch, color=_ENDS[end], linestyle="--", linewidth=1, label=end)
    accuracy.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(loss)
    handles, labels = accuracy.get_legend_handles_labels()
    accuracy.legend(handles[:2], labels[:2], frameon=False, loc="best")
    return figure


def comparison_figure(a: Run, b: Run, names: tuple[str, str]) -> Figure:
    """Draw the losses over the images seen, and top-1 over epochs and over hours."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "loss"], ["epochs", "hours"]], height_ratios=[3, 2.4])
    loss, epochs, hours = panels["loss"], panels["epochs"], panels["hours"]
    for run, color, letter, name in zip((a, b), _COLORS, "AB", names, strict=True):
        label = f"{letter}: {_literal(name)}"
        places, losses = _curve(run.history.points, lambda point: point.loss)
        _draw_loss(loss, (places * run.config.global_batch_size, losses), color, label)
        top1 = [_percent(one.top1) for one in run.history.validations]
        for panel, at in ((epochs, "epoch"), (hours, "hours")):
            panel.plot([getattr(one, at) for one in run.history.validations], top1, color=color, marker=".")
    loss.set(ylabel="training loss", xlabel="training images seen")
    loss.xaxis.set_major_formatter(EngFormatter(sep=""))
    loss.set_xlim(left=0)
    _legend(loss)
    epochs.set(xlabel="epoch", ylabel="validation top-1, %")
    hours.set(xlabel="hours trained", ylabel="validation top-1, %")
    for panel in (epochs, hours):
        panel.set_xlim(left=0)
    return figure


def _style(salt: str) -> AbstractContextManager[None]:
    """The look of all figures; `salt` keeps the ids within a page apart and the same every time."""
    return mpl.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "0.93",
            "svg.hashsalt": salt,
        }
    )


def _draw_loss(axes: Any, curve: Curve, color: str, label: str, raw: str | None = None) -> None:
    """Draw a curve in a light colour, and its running mean above it."""
    axes.plot(*_thinned(curve), color=color, alpha=0.25, linewidth=0.8, label=raw, zorder=2)
    axes.plot(*_thinned((curve[0], _smoothed(curve[1]))), color=color, label=label, zorder=3)


def _legend(axes: Any) -> None:
    """A legend in which each label is once."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axes.legend(unique.values(), unique.keys(), frameon=False)


def _curve(points: Sequence[Point], value: Callable[[Point], float | None]) -> Curve:
    """The values over the batches, without those that the log lacks."""
    found = [(point.batch, one) for point in points if (one := value(point)) is not None]
    return np.array([batch for batch, _ in found], np.float64), np.array([one for _, one in found], np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over a window around each value; near the ends the window is cut off."""
    half = len(values) // (2 * _SMOOTHED_OVER)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def _thinned(curve: Curve) -> Curve:
    """A curve of at most `_MOST_POINTS`: the lowest and the highest of each of its parts, in their order."""
    places, values = curve
    if len(values) <= _MOST_POINTS:
        return curve
    kept: set[int] = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), _MOST_POINTS // 2 - 1):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    order = sorted(kept)
    return places[order], values[order]


def _percent(share: float | None) -> float:
    return float("nan") if share is None else share * 100


def _literal(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")
