"""What a learning-rate sweep found: as plain values, as a figure, and both as files. Imports no torch."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from imagenet_mds.errors import UserError
from imagenet_mds.storage.atomic import write_atomic, write_json
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.sweep.curve import SMOOTHING, Suggestions, Sweep, smooth

_DPI = 120


@dataclass(frozen=True)
class Found:
    """A sweep and what came of it.

    config: of the sweep, with the sizes of the first epoch.
    losses: of each batch, of which there may be fewer than planned.
    suggestions: None where the curve has none.
    """

    sweep: Sweep
    config: TrainConfig
    losses: list[float]
    suggestions: Suggestions | None

    @property
    def lrs(self) -> list[float]:
        """The learning rate of each batch."""
        return [self.sweep.lr(batch) for batch in range(len(self.losses))]

    def configured(self, lr: float) -> float:
        """A learning rate in terms of `optimizer.lr`."""
        return self.config.optimizer.configured_lr(lr, self.config.global_batch_size)

    def as_values(self) -> dict[str, Any]:
        """Plain values for JSON; a loss that is not finite becomes null there."""
        found = self.suggestions
        named = {"steepest": found.steepest, "tenth_of_minimum": found.tenth_of_minimum} if found else {}
        return {
            "lrs": self.lrs,
            "losses": self.losses,
            "smoothed": smooth(self.losses),
            "minimum_lr": found.minimum if found else None,
            "suggestions": {name: {"lr": lr, "optimizer.lr": self.configured(lr)} for name, lr in named.items()},
            "settings": {
                "from": self.sweep.from_lr,
                "to": self.sweep.to_lr,
                "batches": self.sweep.batches,
                "smoothing": SMOOTHING,
                "config": self.config.model_dump(mode="json"),
            },
        }


def write_files(found: Found, folder: Path) -> None:
    """Write `lr.png` and `lr.json` into a folder, which is created if it is not there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "lr.png", _png(found))
        write_json(folder / "lr.json", found.as_values())
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from None


def _png(found: Found) -> bytes:
    """The curve over the learning rate, with what it suggests."""
    smoothed = smooth(found.losses)
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(found.lrs, found.losses, color="0.75", linewidth=0.8, label="loss of a batch")
        axes.plot(found.lrs, smoothed, color="tab:blue", label="moving mean")
        if suggested := found.suggestions:
            for lr, what, color in (
                (suggested.steepest, "steepest descent", "tab:green"),
                (suggested.tenth_of_minimum, "a tenth of the minimum's", "tab:orange"),
            ):
                label = f"{what}: optimizer.lr={found.configured(lr):.2g}"
                axes.axvline(lr, color=color, linestyle="--", label=label)
        finite = [loss for loss in smoothed if math.isfinite(loss)]
        if finite:
            # The end of a curve that diverges would flatten the rest.
            lowest, start = min(finite), finite[0]
            margin = max(start - lowest, 0.1 * abs(start), 1e-6)
            axes.set_ylim(lowest - 0.4 * margin, start + margin)
        axes.set(xscale="log", xlabel="learning rate of a step", ylabel="training loss")
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=_DPI)
        return image.getvalue()
