"""The figures of a run in words, and the files that pages may be written to. Imports no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_mds.errors import UserError

_SUFFIXES = (".html", ".htm")


def _share(value: float) -> str:
    return f"{value:.2%}"


FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "state": ("state", str),
    "epoch": ("finished epochs", "{:,}".format),
    "epochs": ("planned epochs", "{:,}".format),
    "batch": ("finished batches", "{:,}".format),
    "top1": ("top-1", _share),
    "best_top1": ("best top-1", _share),
    "best_epoch": ("epoch of the best", "{:,}".format),
    "top5": ("top-5", _share),
    "loss": ("validation loss", "{:.4f}".format),
    "train_loss": ("last training loss", "{:.4f}".format),
    "images_per_second": ("images/s", "{:,.0f}".format),
    "waiting_for_data": ("waiting for data", _share),
    "hours": ("hours trained", "{:,.2f}".format),
    "starts": ("starts", "{:,}".format),
    "checkpoint": ("newest checkpoint", str),
}
"""The figures of a run by key: their names for people, and how they are shown."""


def shown(figures: dict[str, Any]) -> dict[str, str]:
    """A run's figures for people, by their keys. What is not known is a dash."""
    return {key: "-" if figures[key] is None else show(figures[key]) for key, (_, show) in FIGURES.items()}


def refuse_page(file: Path, option: str) -> None:
    """Refuse a file that a page cannot be written to, before anything is read.

    Args:
        file: as typed.
        option: how messages name it.

    Raises:
        UserError: it does not end in .html, or its folder does not exist.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{option} {file}: pass a file that ends in .html")
    if not file.parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {file.parent}")
