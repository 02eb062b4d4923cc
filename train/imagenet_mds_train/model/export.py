"""Writes the network of a checkpoint for other programs, and compares what they will compute with it."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagenet_mds import __version__
from imagenet_mds.errors import UserError
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.build import build_model
from imagenet_mds_train.model.classifier import MEAN, STD, Classifier
from imagenet_mds_train.model.resnet import resnet
from imagenet_mds_train.model.trained import load_trained
from imagenet_mds_train.model.weights import read_pretrained

_COMPARED_IMAGES = 2


@dataclass(frozen=True)
class Export:
    """What was written. `largest_difference` is that of two random images' logits to the checkpoint's own, computed
    with the file."""

    file: str
    checkpoint: str
    averaged: bool
    size_bytes: int
    largest_difference: float
    layout: str


def export(checkpoint: Path, file: Path) -> Export:
    """Write the network of a checkpoint, with the averaged weights where it has them.

    Args:
        checkpoint: a file that `imagenet-mds train` wrote.
        file: the new file; its suffix says the layout.
            `.safetensors`: torchvision's names, with what is needed to use them as metadata.
            `.pt` or `.pth`: a state dict that torchvision's model of the depth loads.
            `.onnx`: the whole computation from uint8 images to logits, for any number of images.

    Raises:
        UserError: no such layout, the file is there already, the network has BlurPool and the layout cannot say so.
        OSError: the file cannot be written.
    """
    writer = _LAYOUTS.get(file.suffix)
    if writer is None:
        raise UserError(f"{file} must end in one of {', '.join(_LAYOUTS)}, which says what is written")
    if file.exists():
        raise UserError(f"{file} is there already: remove it, or choose another name")
    trained = load_trained(checkpoint)
    config, model = trained.config, trained.model
    model.eval()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".export-") as folder:
        written = Path(folder) / file.name
        compute = writer(written, config, trained.class_names, model)
        images = _images(config.evaluation.crop_px)
        with torch.inference_mode():
            difference = (compute(images) - model((images, torch.zeros(0)))).abs().max().item()
        size_bytes = written.stat().st_size
        written.replace(file)
    return Export(str(file), str(checkpoint), trained.averaged, size_bytes, difference, _WORDS[file.suffix])


def _images(size_px: int) -> Tensor:
    """Random images (images, 3, height, width), uint8."""
    shape = (_COMPARED_IMAGES, 3, size_px, size_px)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


Compute = Callable[[Tensor], Tensor]
"""Logits of uint8 images, computed with the file."""


def _safetensors(file: Path, config: TrainConfig, classes: list[str], model: Classifier) -> Compute:
    from safetensors.torch import save_file

    metadata = {
        "format": "pt",
        "architecture": f"resnet{config.model.depth}",
        "blurpool": config.algorithms.blurpool or "none",
        "classes": json.dumps(classes),
        "mean": json.dumps([value / 255 for value in MEAN]),
        "std": json.dumps([value / 255 for value in STD]),
        "resize_px": str(config.evaluation.resize_px),
        "crop_px": str(config.evaluation.crop_px),
        "imagenet_mds": __version__,
    }
    save_file({name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}, file, metadata)
    return _loaded(file, build_model(config, len(classes)))


def _torchvision(file: Path, config: TrainConfig, classes: list[str], model: Classifier) -> Compute:
    if config.algorithms.blurpool:
        raise UserError(
            f"the network has BlurPool, which torchvision's ResNet-{config.model.depth} has not, so it would compute "
            f"other figures with these weights: export to .safetensors or .onnx"
        )
    torch.save({name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}, file)
    return _loaded(file, Classifier(resnet(config.model.depth, len(classes)), len(classes)))


def _loaded(file: Path, model: Classifier) -> Compute:
    model.network.load_state_dict(read_pretrained(file).tensors)
    model.eval()
    return lambda images: model((images, torch.zeros(0)))


class _FromImages(nn.Module):
    """Takes images alone, where the classifier takes a batch with labels."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (images, classes) of images (images, 3, height, width), uint8."""
        logits: Tensor = self.model((images, images))
        return logits


def _onnx(file: Path, config: TrainConfig, classes: list[str], model: Classifier) -> Compute:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 # what the exporter of torch needs, and says only in mid-export
    except ImportError as error:
        raise UserError(
            f"exporting to .onnx needs {error.name}: install it with pip install 'imagenet-mds[onnx]'"
        ) from None
    images = _images(config.evaluation.crop_px)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # as the warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own internals
        program: Any = torch.onnx.export(
            _FromImages(model),
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    program.model.metadata_props.update(
        classes=json.dumps(classes), resize_px=str(config.evaluation.resize_px), imagenet_mds=__version__
    )
    program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    # One image more than it was exported with, so that the number is seen to be free.
    session.run(None, {"images": torch.cat([images, images[:1]]).numpy()})
    return lambda given: torch.from_numpy(session.run(None, {"images": given.numpy()})[0])


_LAYOUTS = {".safetensors": _safetensors, ".pt": _torchvision, ".pth": _torchvision, ".onnx": _onnx}

_WORDS = {
    ".safetensors": "safetensors with torchvision's names",
    ".pt": "torchvision's state dict",
    ".pth": "torchvision's state dict",
    ".onnx": "ONNX, uint8 images to logits",
}
