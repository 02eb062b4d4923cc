"""Pages about runs: self-contained HTML without scripts and external parts. Imports no torch."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import flatten
from imagenet_mds.storage.atomic import write_atomic
from imagenet_mds.words import one_line
from imagenet_mds_train.history.comparison import Comparison
from imagenet_mds_train.history.figures import FIGURES, shown
from imagenet_mds_train.history.plots import comparison_svg, run_svg
from imagenet_mds_train.history.runs import Run


def write_run_page(run: Run, file: Path) -> None:
    """Write the page of one run: its curves, starts, figures and settings.

    Raises:
        UserError: the file cannot be written.
    """
    settings = {key: _value(value) for key, value in flatten(run.config.model_dump(mode="json")).items()}
    starts = list(zip(run.history.starts, run.ends(), strict=True))
    page = _render(
        "run.html",
        run=run,
        name=printable(run.name),
        dataset=run.dataset and printable(run.dataset),
        experiment=run.experiment and printable(run.experiment),
        figures=shown(run.figures()),
        names=_names(),
        starts=starts,
        notices=[asdict(one) | {"text": printable(one.text), "when": _when(one.time)} for one in run.history.notices],
        settings=settings,
        origin=_plain(run),
        plots=run_svg(run),
    )
    _write(file, page)


def write_comparison_page(comparison: Comparison, names: tuple[str, str], file: Path) -> None:
    """Write the page of two runs: their losses and validations, their figures, and where they differ.

    Args:
        comparison: the runs.
        names: what the user calls them.
        file: to write.

    Raises:
        UserError: the file cannot be written.
    """
    runs = comparison.a, comparison.b
    first, second = (printable(name) for name in names)
    page = _render(
        "comparison.html",
        names=_names(),
        runs=(first, second),
        figures=[shown(run.figures()) for run in runs],
        differences=[(one.key, _value(one.a), _value(one.b)) for one in (*comparison.settings, *comparison.origins)],
        plots=comparison_svg(*runs, (first, second)),
    )
    _write(file, page)


def printable(text: str) -> str:
    """A name as one line that every page and font can hold, whatever bytes it has."""
    return one_line(text).encode("utf-8", "backslashreplace").decode()


def _when(time_seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_seconds))
    except (OverflowError, OSError, ValueError):  # a log that was damaged
        return "-"


def _names() -> dict[str, str]:
    return {key: words for key, (words, _) in FIGURES.items()}


def _plain(run: Run) -> dict[str, str]:
    """What the run was made from, by dotted key."""
    identity = {name: value for name, value in run.identity.items() if name != "recipe"}
    origin = identity | ({"forked_from": run.forked_from} if run.forked_from else {})
    return {key: _value(value) for key, value in flatten(origin).items()}


def _value(value: Any) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("imagenet_mds_train.history", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _write(file: Path, page: str) -> None:
    try:
        write_atomic(file, page.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
