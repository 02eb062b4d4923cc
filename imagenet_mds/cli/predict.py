"""`imagenet-mds predict`: what a trained network says of image files."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.options import AsJson, CheckpointArgument
from imagenet_mds.cli.tables import print_line, print_note
from imagenet_mds.errors import EXIT_FAILED, UserError
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds.dataset.manifest import Manifest
    from imagenet_mds_train.evaluation.files import Predicted


def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="Dataset of the run, for names of classes not in ImageNet.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the five likeliest classes of image files.

    The network sees them as the run's validation shows them.

    Images that cannot be read get a line each, and the exit status is 1.
    """
    from imagenet_mds.dataset.access import splits_of
    from imagenet_mds.dataset.manifest import read_manifest
    from imagenet_mds_train.run.find import find_checkpoint

    path = find_checkpoint(checkpoint, print_note)
    manifest = read_manifest(splits_of(data)[0]) if data is not None else None
    warnings.simplefilter("ignore")  # what torch and Composer deprecate, as in a rank
    # torch and composer, after cheap refusals
    from imagenet_mds_train.evaluation.files import predict_files
    from imagenet_mds_train.model.trained import load_trained

    trained = load_trained(path)
    names = names_for_people(path, trained.class_names, manifest, data)
    found = []
    for one in predict_files(trained, images):
        found.append(one)
        if one.error is not None:
            print_line(f"imagenet-mds: {one.image} cannot be read: {one.error}", to_stderr=True)
        elif not as_json:
            _print(one, trained.class_names, names)
    if as_json:
        print(json.dumps([_as_values(one, trained.class_names, names) for one in found], indent=2))
    if any(one.error is not None for one in found):
        raise typer.Exit(EXIT_FAILED)


def names_for_people(
    checkpoint: Path, classes: list[str], manifest: "Manifest | None" = None, data: str | None = None
) -> list[str]:
    """The name of each class for people: the dataset's, else WordNet's, else that of its folder.

    Args:
        checkpoint: named in the error message.
        classes: of the network.
        manifest: of a dataset with the same classes, None for none.
        data: location of that dataset, named in the error message.

    Raises:
        UserError: the dataset has other classes.
    """
    from imagenet_mds_convert.sources.classes import name_classes

    if manifest is None:
        return list(name_classes(classes, {}))
    known = [entry.wnid for entry in manifest.classes]
    # A network that was trained on a dataset without a manifest knows numbers alone.
    numbered = classes == [str(number) for number in range(len(known))]
    if classes != known and not numbered:
        raise UserError(
            f"{checkpoint} knows {counted(len(classes), 'class', 'classes')} and {data} has {len(known):,}, not the "
            f"same: pass the dataset it was trained on"
        )
    return [entry.name for entry in manifest.classes]


def _print(one: "Predicted", classes: list[str], names: list[str]) -> None:
    print_line(str(one.image))
    for guess in one.guesses:
        wnid, name = classes[guess.label], names[guess.label]
        print_line(f"  {guess.probability:6.1%}  {name if name == wnid else f'{name} ({wnid})'}")


def _as_values(one: "Predicted", classes: list[str], names: list[str]) -> dict[str, Any]:
    if one.error is not None:
        return {"image": str(one.image), "error": one.error}
    return {
        "image": str(one.image),
        "predictions": [
            {
                "label": guess.label,
                "class": classes[guess.label],
                "name": names[guess.label],
                "probability": guess.probability,
            }
            for guess in one.guesses
        ],
    }
