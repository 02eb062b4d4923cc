"""`imagenet-mds runs`: one's own runs, listed, compared, and as pages."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.command import Command
from imagenet_mds.cli.options import AsJson
from imagenet_mds.cli.tables import print_columns, print_line, print_note

if TYPE_CHECKING:
    from imagenet_mds_train.history.comparison import Difference
    from imagenet_mds_train.history.runs import Run

runs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List runs, compare two, write pages.")

RunPlace = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder of a run, its name in runs/, or its s3:// address.")
]

_PAGE_BASENAME = "report.html"


@runs_app.command("ls", cls=Command)
def runs_ls(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of runs, or s3:// address.")] = "runs",
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder, and of the folders in it.

    Each has its state, how far it is, accuracies, speed, hours, starts and newest checkpoint.
    """
    from imagenet_mds_train.history.runs import list_runs, list_runs_in_s3

    in_s3 = folder.startswith("s3://")
    runs, notes = list_runs_in_s3(folder) if in_s3 else list_runs(Path(folder))
    for note in notes:
        print_note(note)
    named = [(run, _name_in(folder, run)) for run in runs]
    if as_json:
        print(json.dumps([{"name": name, "run": run.location} | run.figures() for run, name in named], indent=2))
        return
    if not runs:
        place = folder if in_s3 else Path(folder).absolute()
        print_line(
            f"note: no run was found: there is no run.json that can be read in {place}, in its folders, or "
            f"in theirs. Pass the folder that `imagenet-mds train --save` was given",
            to_stderr=True,
        )
        return
    rows = [_row(name, run) for run, name in named]
    print_columns(
        ("run", "state", "epoch", "batch", "top-1", "best", "images/s", "hours", "starts", "checkpoint"),
        rows,
        right=range(2, 9),
    )


@runs_app.command("compare", cls=Command)
def runs_compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of a run, its name in runs/, or its s3:// address.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other run.")],
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Page with curves to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where two runs differ: settings, dataset, figures."""
    from imagenet_mds.storage.atomic import finite
    from imagenet_mds_train.history.comparison import Comparison
    from imagenet_mds_train.history.figures import FIGURES, refuse_page, shown
    from imagenet_mds_train.history.runs import find_run

    if report:
        refuse_page(report, "--report")
    comparison = Comparison.of(find_run(a), find_run(b))
    if report:
        from imagenet_mds_train.history.page import write_comparison_page  # matplotlib

        write_comparison_page(comparison, (a, b), report)
    if as_json:
        print(json.dumps(finite(comparison.as_values()), indent=2, allow_nan=False))
        return
    print_line(f"A: {a}")
    print_line(f"B: {b}")
    first, second = (shown(run.figures()) for run in (comparison.a, comparison.b))
    _print_differences("settings", comparison.settings)
    _print_differences("dataset and start", comparison.origins)
    print()
    rows = [(words, first[key], second[key]) for key, (words, _) in FIGURES.items()]
    print_columns(("figures", "A", "B"), rows, right=(1, 2))
    if report:
        print_line(f"report: {report}")


@runs_app.command("report", cls=Command)
def runs_report(
    run: RunPlace,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.html",
            help="Page to write; by default RUN/report.html, and of an s3:// address NAME.html.",
        ),
    ] = None,
) -> None:
    """Write a page about one run.

    It has the run's curves, starts and interruptions, figures and settings.
    """
    from imagenet_mds_train.history.figures import refuse_page
    from imagenet_mds_train.history.runs import find_run

    if file:
        refuse_page(file, "FILE")
    found = find_run(run)
    from imagenet_mds_train.history.page import write_run_page  # matplotlib, after cheap refusals

    page = file or (Path(f"{found.name}.html") if run.startswith("s3://") else found.path / _PAGE_BASENAME)
    write_run_page(found, page)
    print_line(f"report: {page}")


def _name_in(folder: str, run: "Run") -> str:
    """The name of a run within the folder that it was found in."""
    if folder.startswith("s3://"):
        return run.location.removeprefix(f"{folder.rstrip('/')}/") if run.location != folder.rstrip("/") else run.name
    return str(run.path.relative_to(folder)) if run.path != Path(folder) else run.name


def _row(name: str, run: "Run") -> tuple[str, ...]:
    from imagenet_mds_train.history.figures import shown

    words = shown(run.figures())
    epochs = f"{words['epoch']}/{words['epochs']}"
    columns = ("batch", "top1", "best_top1", "images_per_second", "hours", "starts", "checkpoint")
    return name, words["state"], epochs, *(words[column] for column in columns)


def _print_differences(what: str, differences: "Iterable[Difference]") -> None:
    rows = [(one.key, _value(one.a), _value(one.b)) for one in differences]
    print()
    if rows:
        print_columns((what, "A", "B"), rows)
    else:
        print(f"{what}: the same")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
