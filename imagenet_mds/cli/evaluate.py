"""`imagenet-mds eval`: the accuracy of a checkpoint."""

import csv
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.options import AsJson, CacheFolder, CacheLimit, CheckpointArgument, open_dataset
from imagenet_mds.cli.tables import print_note
from imagenet_mds.errors import UserError
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.vocabulary import SplitName
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Split
    from imagenet_mds_train.evaluation.evaluate import Evaluation

_SHOWN = 5
"""Classes and pairs that are printed; the report and the JSON have the others."""

_COLUMNS = (
    *("checkpoint", "split", "samples", "damaged", "resize_px", "crop_px", "flips", "averaged"),
    *("top1", "top5", "loss", "calibration_error", "real_top1"),
)


def evaluate(
    checkpoint: CheckpointArgument,
    data: Annotated[str, typer.Option(metavar="DATASET", help="Dataset with the classes of the checkpoint.")],
    split: Annotated[SplitName, typer.Option(help="Split to evaluate on.")] = "val",
    subset: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="First N images, which have the classes in equal share.")
    ] = None,
    resize_px: Annotated[int | None, typer.Option(min=8, help="Shorter side; by default that of the run.")] = None,
    crop_px: Annotated[int | None, typer.Option(min=8, help="Side of the centre; by default that of the run.")] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mean over each image and its mirror image.")] = False,
    raw_weights: Annotated[
        bool, typer.Option("--raw-weights", help="The weights that training goes on with, not their average.")
    ] = False,
    real_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ReaL labels (real.json), for ImageNet's val.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Another checkpoint to compare with, on the same images.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for report.html and eval.json.")] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="File that gets a row; created with a header.")
    ] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint over every sample exactly once.

    Top-1, top-5, loss, by class, the most confused pairs, and calibration.
    """
    from imagenet_mds.storage.atomic import finite
    from imagenet_mds_train.run.find import find_checkpoint

    if results:
        _refuse_other_columns(results)
    paths = [find_checkpoint(one, print_note) for one in [checkpoint, *([against] if against else [])]]
    opened = open_dataset(data, cache, cache_limit).split(split)
    opened.check_available(opened.info.shards)
    for warning in [opened.warning, *opened.verify(opened.info.shards, usable_processors())]:
        if warning:
            print_note(warning)
    warnings.simplefilter("ignore")  # what torch and Composer deprecate, as in a rank
    # torch and composer, after cheap refusals
    from imagenet_mds_train.evaluation.evaluate import Options
    from imagenet_mds_train.evaluation.figures import compared
    from imagenet_mds_train.evaluation.report import as_values, write_report

    options = Options(subset, resize_px, crop_px, flips, averaged=not raw_weights)
    evaluations = [_evaluated(path, opened, options, real_labels) for path in paths]
    first, values = evaluations[0], [as_values(one) for one in evaluations]
    other: dict[str, Any] | None = None
    if len(evaluations) > 1:
        other = values[1] | {"difference": compared(first.predictions, evaluations[1].predictions)}
        other = {name: value for name, value in other.items() if name not in ("classes", "confusions", "reliability")}
    if results:
        for one in values:
            _append_row(results, one)
    page = write_report(first, opened, report, other) if report else None
    if as_json:
        print(json.dumps(finite(values[0] | ({"against": other} if other else {})), indent=2, allow_nan=False))
        return
    _print(evaluations, values[0], other)
    if page:
        print(f"report: {page}")


def _evaluated(path: Path, split: "Split", options: Any, real: Path | None) -> "Evaluation":
    from imagenet_mds.progress import ProgressLine
    from imagenet_mds_train.evaluation.evaluate import evaluate

    with ProgressLine(f"evaluating on {split.info.split}", options.samples or split.info.samples, "images") as progress:
        return evaluate(path, split, options, real, progress.advance)


def _refuse_other_columns(file: Path) -> None:
    """Refuse a file that has other columns, before anything is computed."""
    try:
        with file.open(encoding="utf-8", newline="") as rows:
            header = next(csv.reader(rows), None)
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise UserError(f"--results {file}: there is no folder {file.parent}") from None
        return
    except UnicodeDecodeError:
        raise UserError(f"--results {file} is no CSV file: choose another file") from None
    except OSError as error:
        raise UserError(f"--results {file} cannot be read: {error.strerror}") from None
    if header is not None and header != list(_COLUMNS):
        raise UserError(f"--results {file} has other columns than an evaluation: choose another file")


def _append_row(file: Path, values: dict[str, Any]) -> None:
    try:
        with file.open("a", encoding="utf-8", newline="") as rows:
            writer = csv.writer(rows)
            if not rows.tell():
                writer.writerow(_COLUMNS)
            writer.writerow([values[column] for column in _COLUMNS])
    except OSError as error:
        raise UserError(f"--results {file} cannot be written: {error.strerror}") from None


def _print(evaluations: "list[Evaluation]", values: dict[str, Any], other: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = evaluations[0].figures
    if figures.damaged:
        print(f"note: {figures.damaged:,} images did not decode and were not counted", file=sys.stderr)
    real = figures.real_top1 is not None
    table = Table(
        *("checkpoint", "split", "images", "top-1", "top-5", *(["ReaL top-1"] if real else []), "loss", "calibration"),
        box=None,
        header_style="",
    )
    for one in evaluations:
        said = [*(["averaged weights"] if one.averaged else []), *(["mirrored too"] if one.flips else [])]
        table.add_row(
            one.checkpoint + (f" ({', '.join(said)})" if said else ""),
            one.split,
            f"{one.figures.samples + one.figures.damaged:,}",
            f"{one.figures.top1:.2%}",
            f"{one.figures.top5:.2%}",
            *([f"{one.figures.real_top1:.2%}"] if one.figures.real_top1 is not None else []),
            f"{one.figures.loss:.4f}",
            f"{one.figures.calibration_error:.4f}",
        )
    Console(width=140).print(table)
    worst = sorted(values["classes"], key=lambda one: (one["top1"], one["label"]))[:_SHOWN]
    if len(values["classes"]) > 1:
        alike = sum(one["top1"] <= worst[-1]["top1"] for one in values["classes"]) - len(worst)
        more = f", and {alike:,} more as low" if alike else ""
        print("lowest:   " + ", ".join(f"{one['class']} {one['top1']:.0%}" for one in worst) + more)
    if values["confusions"]:
        pairs = values["confusions"][:_SHOWN]
        print(
            "confused: "
            + ", ".join(f"{one['class']} for {one['taken_for_class']} ({one['samples']:,})" for one in pairs)
        )
    if other:
        difference = other["difference"]
        print(
            f"top-1 {100 * (values['top1'] - other['top1']):+.2f} points: "
            f"{counted(difference['only_first'], 'image')} right in the first alone, "
            f"{difference['only_second']:,} in the other; by chance with probability {difference['chance']:.2g}"
        )
