"""The demo's report: an HTML page without scripts and external parts, and its images as files beside it."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from PIL import Image

from imagenet_mds.dataset.manifest import Manifest, read_manifest
from imagenet_mds.dataset.raw_pixels import open_stored
from imagenet_mds.dataset.samples import stored_samples
from imagenet_mds.dataset.split_info import read_split_info
from imagenet_mds.report.contact_sheet import contact_sheet
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage

_SHEET_ROWS = 4


@dataclass(frozen=True)
class Story:
    """What the report is about.

    `killed_at` is the last batch that was logged before the kill, `resumed_at` the batch of the checkpoint from which
    the second start continued. `seconds` is by step.
    """

    folder: Path
    train: Manifest
    val: Manifest
    events: list[dict[str, Any]]
    killed_at: int
    resumed_at: int
    evaluation: dict[str, Any]
    seconds: dict[str, float]

    @classmethod
    def read(
        cls,
        folder: Path,
        dataset: str,
        log: Path,
        killed_at: int,
        evaluation: dict[str, Any],
        seconds: dict[str, float],
    ) -> "Story":
        """Read the story from the files that the commands wrote.

        Raises:
            UserError: a manifest is missing or cannot be read.
            OSError: the log cannot be read.
        """
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        starts = [event["batch"] for event in events if event["event"] == "start"]
        train, val = (read_manifest(LocalStorage(folder / dataset / split)) for split in ("train", "val"))
        return cls(folder, train, val, events, killed_at, starts[-1], evaluation, seconds)

    @property
    def chance(self) -> float:
        """Top-1 accuracy of a random guess."""
        return 1 / len(self.val.classes)

    @property
    def times_chance(self) -> float:
        """Top-1 accuracy relative to a random guess."""
        return float(self.evaluation["top1"]) / self.chance

    def facts(self) -> list[tuple[str, str]]:
        """Return (name, value) of each line of the summary."""
        train, source = self.train, self.train.source.samples + self.val.source.samples
        return [
            ("images", f"{source:,} drawn in {len(train.classes)} classes"),
            (
                "converted",
                f"{train.samples:,} train and {self.val.samples:,} val "
                f"in {len(train.shards) + len(self.val.shards)} shards, "
                f"{len(train.left_out)} left out, {len(train.changed)} changed",
            ),
            ("killed", f"at batch {self.killed_at}, continued from the checkpoint of batch {self.resumed_at}"),
            ("top-1", f"{self.evaluation['top1']:.1%}, {self.times_chance:.1f} times chance ({self.chance:.0%})"),
            ("top-5", f"{self.evaluation['top5']:.1%}"),
        ]

    def curve(self, attempt: int) -> list[tuple[int, float]]:
        """Return (batch, loss) as one start of the run, counted from 1, logged them."""
        return [
            (event["batch"], event["loss"])
            for event in self.events
            if event["event"] == "batch" and event["attempt"] == attempt
        ]

    @property
    def repeated(self) -> tuple[int, int]:
        """Number of repeated batches that were logged both times, and how many of them had the same loss."""
        first, second = dict(self.curve(1)), dict(self.curve(2))
        both = first.keys() & second.keys()
        return len(both), sum(first[batch] == second[batch] for batch in both)

    def validations(self) -> list[tuple[int, float]]:
        """Return (batch, top-1) of each validation, by batch. If one was repeated, the last one counts."""
        return sorted({event["batch"]: event["top1"] for event in self.events if event["event"] == "eval"}.items())


def write_report(story: Story, folder: Path) -> Path:
    """Write `report.html`, with `loss.svg` and `contact_sheet.png` beside it, and return its path."""
    _plot(story, folder / "loss.svg")
    _sheet(story, LocalStorage(folder / "mds" / "train")).save(folder / "contact_sheet.png")
    # PackageLoader finds the template both in a wheel and in a checkout.
    environment = Environment(
        loader=PackageLoader("imagenet_mds.demo", "."), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("report.html").render(story=story)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _plot(story: Story, path: Path) -> None:
    """Plot the loss of both starts over the batches, with the kill marked, and top-1 accuracy below."""
    with mpl.rc_context(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "demo"}
    ):
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        loss, top1 = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        first, second = story.curve(1), story.curve(2)
        loss.plot(*zip(*first, strict=True), color="tab:blue", label="first start")
        loss.plot(*zip(*second, strict=True), color="tab:orange", label="second start, the same command")
        loss.axvspan(story.resumed_at, story.killed_at, color="0.9", label="repeated")
        loss.axvline(story.killed_at, color="tab:red", linestyle="--", label=f"SIGKILL at batch {story.killed_at}")
        loss.set_ylabel("training loss")
        loss.legend(frameon=False)
        top1.plot(*zip(*story.validations(), strict=True), color="0.2", marker="o", label="top-1 on validation")
        top1.axhline(story.chance, color="0.6", linestyle=":", label=f"chance, {story.chance:.0%}")
        top1.axvline(story.killed_at, color="tab:red", linestyle="--")
        top1.set_ylim(-0.03, 1.03)  # room for the markers
        top1.set_ylabel("top-1")
        top1.set_xlabel("batch")
        top1.legend(frameon=False, loc=(0.7, 0.18))
        figure.savefig(path, metadata={"Date": None})


def _sheet(story: Story, split: Storage) -> Image.Image:
    """Lay out the first images of the dataset, one column per class. Every prefix is balanced, so the rows fill up."""
    classes = len(story.train.classes)
    by_class: dict[int, list[Image.Image]] = {}
    most = _SHEET_ROWS * classes + len(story.train.left_out)
    for stored in itertools.islice(stored_samples(split, read_split_info(split)), most):
        by_class.setdefault(stored.record.label, []).append(open_stored(stored.record.image))
    images = [
        (story.train.classes[label].name, by_class[label][row])
        for row in range(_SHEET_ROWS)
        for label in sorted(by_class)
        if row < len(by_class[label])
    ]
    return contact_sheet(images, columns=len(by_class))
