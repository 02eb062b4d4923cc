"""`imagenet-mds export`: a trained network for other programs."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from imagenet_mds.cli.options import AsJson, CheckpointArgument
from imagenet_mds.cli.tables import print_note
from imagenet_mds.errors import UserError


def export(
    checkpoint: CheckpointArgument,
    file: Annotated[
        Path,
        typer.Argument(
            help="New file: .safetensors, .pt or .pth (a state dict for torchvision), or .onnx (uint8 to logits)."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Write a trained network for other programs.

    What the file computes is compared with the checkpoint.
    """
    from imagenet_mds_train.run.find import find_checkpoint

    path = find_checkpoint(checkpoint, print_note)
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent}: make it, or choose another file")
    warnings.simplefilter("ignore")  # what torch and Composer deprecate, as in a rank
    from imagenet_mds_train.model.export import export  # torch and composer, after cheap refusals

    try:
        written = export(path, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from None
    if as_json:
        print(json.dumps(asdict(written), indent=2))
        return
    weights = "averaged weights" if written.averaged else "weights"
    print(
        f"{written.file}: {weights} of {written.checkpoint}, {written.layout}, {written.size_bytes / 1e6:.1f} MB; its "
        f"logits differ by at most {written.largest_difference:.1e}"
    )
