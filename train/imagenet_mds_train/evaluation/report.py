"""The report of an evaluation: one HTML page without scripts and external parts, and the figures as JSON beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from PIL import Image

from imagenet_mds.dataset.access import Split
from imagenet_mds.dataset.manifest import read_manifest
from imagenet_mds.dataset.raw_pixels import open_stored
from imagenet_mds.dataset.samples import stored_samples
from imagenet_mds.errors import UserError
from imagenet_mds.report.svg import inline_svg
from imagenet_mds.storage.atomic import finite, write_json
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.evaluation.evaluate import Evaluation
from imagenet_mds_train.evaluation.figures import Bin, ClassFigures

_THUMBNAIL_PX = 128

_WORST = 25

_MARGIN = 0.03
"""Room at the edges of a diagram of shares, for its markers."""


@dataclass(frozen=True)
class _Pair:
    """A pair of confused classes with pictures, each an address of the page itself."""

    label: str
    taken_for: str
    samples: int
    share: float
    pictures: list[tuple[int, str]]


def as_values(evaluation: Evaluation) -> dict[str, Any]:
    """The figures as plain values, for JSON."""
    figures = asdict(evaluation.figures)
    names = evaluation.class_names
    classes = [one | {"class": names[one["label"]]} for one in figures.pop("classes")]
    confusions = [
        one | {"class": names[one["label"]], "taken_for_class": names[one["taken_for"]]}
        for one in figures.pop("confusions")
    ]
    return {
        "checkpoint": evaluation.checkpoint,
        "split": evaluation.split,
        **figures,
        "samples": figures["samples"] + figures["damaged"],
        "averaged": evaluation.averaged,
        "flips": evaluation.flips,
        "resize_px": evaluation.config.evaluation.resize_px,
        "crop_px": evaluation.config.evaluation.crop_px,
        "classes": classes,
        "confusions": confusions,
    }


def write_report(evaluation: Evaluation, split: Split, folder: Path, other: dict[str, Any] | None = None) -> Path:
    """Write `report.html` and `eval.json` into a folder, and return the page's path.

    Args:
        evaluation: what it is about.
        split: the split, whose pictures are shown.
        folder: created if it is not there.
        other: the same figures of another checkpoint and how it differs, None without one.

    Raises:
        UserError: the folder cannot be written.
    """
    names = _names(evaluation, split)
    worst = sorted(evaluation.figures.classes, key=lambda one: (one.top1, one.label))
    page = (
        Environment(
            loader=PackageLoader("imagenet_mds_train.evaluation", "."),
            autoescape=select_autoescape(),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        .get_template("report.html")
        .render(
            evaluation=evaluation,
            figures=evaluation.figures,
            names=names,
            worst=worst[:_WORST],
            classes=worst,
            pairs=_pairs(evaluation, split, names),
            reliability=_reliability(evaluation.figures.reliability),
            spread=_spread(evaluation.figures.classes),
            other=other,
        )
    )
    path = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "eval.json", finite(as_values(evaluation)))
        path.write_text(page, encoding="utf-8")
    except FileExistsError:
        raise UserError(f"--report {folder} is a file: pass a folder") from None
    except OSError as error:
        raise UserError(f"--report {folder} cannot be written: {error.strerror}") from None
    return path


def _names(evaluation: Evaluation, split: Split) -> list[str]:
    """What people call each class."""
    if split.info.classes is None:
        return evaluation.class_names
    return [entry.name or entry.wnid for entry in read_manifest(split.storage).classes]


def _pairs(evaluation: Evaluation, split: Split, names: list[str]) -> list[_Pair]:
    wanted = {sample for pair in evaluation.figures.confusions for sample in pair.examples}
    pictures = _pictures(split, wanted)
    return [
        _Pair(
            names[pair.label],
            names[pair.taken_for],
            pair.samples,
            pair.share,
            [(sample, pictures[sample]) for sample in pair.examples if sample in pictures],
        )
        for pair in evaluation.figures.confusions
    ]


def _pictures(split: Split, wanted: set[int]) -> dict[int, str]:
    """Small JPEGs of some samples as `data:` addresses, of those whose shards are on this machine: of a remote dataset
    with a small cache, some have been removed again."""
    found: dict[int, str] = {}
    local, first = LocalStorage(split.shard_cache.folder), 0
    for shard in split.info.shards:
        here = {sample for sample in wanted if first <= sample < first + shard.samples}
        if here and local.size_bytes(shard.basename) == shard.size_bytes:
            for stored in stored_samples(local, split.info, min(here)):
                if stored.sample in here:
                    found[stored.sample] = _address(open_stored(stored.record.image))
                if stored.sample >= max(here):
                    break
        first += shard.samples
    return found


def _address(image: Image.Image) -> str:
    image.draft("RGB", (_THUMBNAIL_PX, _THUMBNAIL_PX))
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _reliability(bins: Sequence[Bin]) -> str:
    """The reliability diagram, SVG."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "reliability"}):
        return inline_svg(reliability_figure(bins))


def reliability_figure(bins: Sequence[Bin]) -> Figure:
    """Draw the accuracy of each bin over its confidence."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="calibrated")
    confidence, top1 = [one.confidence for one in bins], [one.top1 for one in bins]
    axes.plot(confidence, top1, color="tab:blue", marker="o", label="measured")
    # Beyond 0 and 1, so that the frame cuts no marker.
    axes.set(xlim=(-_MARGIN, 1 + _MARGIN), ylim=(-_MARGIN, 1 + _MARGIN), xlabel="confidence", ylabel="top-1")
    axes.legend(frameon=False)
    return figure


def _spread(classes: list[ClassFigures]) -> str:
    """How many classes have which accuracy, SVG."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "spread"}):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.hist([one.top1 for one in classes], bins=[place / 20 for place in range(21)], color="tab:blue")
        axes.set(xlim=(0, 1), xlabel="top-1 of a class", ylabel="classes")
        return inline_svg(figure)
