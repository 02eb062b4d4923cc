"""`imagenet-mds demo`: the whole pipeline on a small set of drawn images."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    folder: Annotated[
        Path, typer.Argument(help="Folder to work in. The files of an earlier demo in it are replaced.")
    ] = Path("demo"),
) -> None:
    """Run the whole pipeline on a small set of drawn images.

    It draws images, converts them, trains, kills the training, resumes it, evaluates, and writes a report.
    """
    from imagenet_mds.demo.run import run_demo

    raise typer.Exit(run_demo(folder))
