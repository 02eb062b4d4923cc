"""Weights from a file: a checkpoint of this program, or a ResNet of torchvision or timm.

Files are read as tensors alone, never as pickles that may run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from imagenet_mds.errors import UserError
from imagenet_mds_train.checkpoints.payload import load_payload, load_tensors
from imagenet_mds_train.model.classifier import Classifier

_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""The keys under which training programs put a model into their checkpoints."""

_PREFIXES = ("module.", "_orig_mod.", "network.")
"""What DistributedDataParallel, torch.compile and this program put in front of names."""

_MAY_LACK = ("num_batches_tracked", "blur_filter", "filt2d")
"""Constants, and counts that old files lack."""


class Pretrained(NamedTuple):
    """The tensors of a file by torchvision's names, and its classes where it says them."""

    tensors: dict[str, Tensor]
    classes: list[str] | None


def take_weights(model: Classifier, checkpoint: Path, classes: list[str]) -> None:
    """Take the weights of a checkpoint, the averaged ones where it has an average.

    Args:
        model: what takes them.
        checkpoint: a file that `imagenet-mds train` wrote.
        classes: the model's, in the order of their numbers.

    Raises:
        UserError: it is not such a file, or of another network or other classes.
    """
    payload, weights = load_payload(checkpoint)
    if payload["classes"] != classes:
        raise UserError(
            f"{checkpoint} knows {len(payload['classes'])} classes, and the dataset has {len(classes)}, or others: "
            f"give a checkpoint with the dataset's classes, or --pretrained, which starts the last layer from scratch"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        depth = payload["config"]["model"]["depth"]
        raise UserError(
            f"{checkpoint} is of another network (ResNet-{depth}): pass model.depth and algorithms.blurpool as it has "
            f"them"
        ) from None


def take_pretrained(model: Classifier, file: Path, classes: list[str]) -> list[str]:
    """Take the weights of a ResNet of any origin. Its last layer stays as it was initialised where the classes differ.

    Args:
        model: what takes them.
        file: torchvision's or timm's layout, `.pth` or `.safetensors`, or a checkpoint of this program.
        classes: the model's, in the order of their numbers.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """
    pretrained = read_pretrained(file)
    wanted = model.network.state_dict()
    tensors = _as_in(wanted, pretrained.tensors)
    notes = [f"started from {file}"]
    outputs = len(tensors["fc.bias"]) if "fc.bias" in tensors else None
    if outputs != len(classes) or (pretrained.classes or classes) != classes:
        theirs = "no last layer" if outputs is None else f"{outputs:,} outputs, of other classes than the dataset"
        notes.append(f"{file} has {theirs}: the last layer starts from scratch, with {len(classes):,} outputs")
        tensors |= {name: wanted[name] for name in ("fc.weight", "fc.bias")}
    faults = [
        *(f"{name} is missing" for name in wanted if name not in tensors and not name.endswith(_MAY_LACK)),
        *(f"{name} is not part of the network" for name in tensors if name not in wanted),
        *(
            f"{name} has the shape {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ),
    ]
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(
            f"{file} is of another network ({faults[0]}{more}): pass a ResNet as torchvision has it, with its "
            f"model.depth and algorithms.blurpool"
        )
    model.network.load_state_dict(wanted | tensors)
    return notes


def read_pretrained(file: Path) -> Pretrained:
    """Read the weights of a ResNet.

    Raises:
        UserError: the file cannot be read.
    """
    classes: list[str] | None = None
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            values: Mapping[str, Any] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    else:
        values = load_tensors(file)
        if "imagenet_mds" in values:
            payload, values = load_payload(file)
            classes = payload["classes"]
        for wrapper in _WRAPPERS:
            if isinstance(values.get(wrapper), Mapping):
                values = values[wrapper]
    tensors = {_without_prefix(str(name)): tensor for name, tensor in values.items() if isinstance(tensor, Tensor)}
    if "conv1.weight" not in tensors and "conv1.conv.weight" not in tensors:
        raise UserError(f"{file} has no ResNet: there is no conv1.weight in it")
    return Pretrained(tensors, classes)


def _as_in(wanted: Mapping[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the wanted names, in which a plain convolution may be inside a BlurPool."""
    blurred = {name.replace(".conv.weight", ".weight"): name for name in wanted if name.endswith(".conv.weight")}
    return {blurred.get(name, name): tensor for name, tensor in tensors.items()}


def _without_prefix(name: str) -> str:
    for prefix in _PREFIXES * 2:  # DDP around this program's model has two of them
        name = name.removeprefix(prefix)
    return name
