"""What a model says of image files, seen as its run's validation sees stored samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import UnidentifiedImageError

from imagenet_mds_train.augment.decode import Pixels
from imagenet_mds_train.augment.views import View, validation_view
from imagenet_mds_train.evaluation.predictions import BEST, inference
from imagenet_mds_train.model.trained import Trained

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Guess:
    """A class, by number, and its probability."""

    label: int
    probability: float


@dataclass(frozen=True)
class Predicted:
    """The likeliest classes of an image, the likeliest first; or why it cannot be read, and no classes."""

    image: Path
    guesses: tuple[Guess, ...] = ()
    error: str | None = None


def predict_files(trained: Trained, images: Sequence[Path]) -> Iterator[Predicted]:
    """Run a model over image files, in order, on a GPU where there is one.

    Args:
        trained: the model.
        images: files of any format that training reads.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.model.to(device).eval()
    view = validation_view(trained.config.evaluation)
    for first in range(0, len(images), _BATCH_SIZE):
        seen = [(image, read_pixels(image, view)) for image in images[first : first + _BATCH_SIZE]]
        guesses = iter(_guesses(trained, [pixels for _, pixels in seen if not isinstance(pixels, str)], device))
        for image, pixels in seen:
            yield Predicted(image, error=pixels) if isinstance(pixels, str) else Predicted(image, next(guesses))


def read_pixels(image: Path, view: Callable[[bytes], View]) -> Pixels | str:
    """The pixels that the network sees of a file, (crop, crop, 3), or why it cannot be read."""
    try:
        return view(image.read_bytes()).pixels
    except OSError as error:
        # Pillow's own errors have no number, and its message for an unknown format shows the address of a buffer.
        unknown = "no image that can be read" if isinstance(error, UnidentifiedImageError) else str(error)
        return error.strerror or unknown
    except Exception as error:  # Pillow's plugins raise anything
        return str(error) or type(error).__name__


def _guesses(trained: Trained, pixels: list[Pixels], device: torch.device) -> list[tuple[Guess, ...]]:
    """The likeliest classes of each image."""
    if not pixels:
        return []
    # (images, 3, crop, crop), channels last in memory as the loader's batches are
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)
    with inference(device.type, trained.config):
        logits = trained.model((images, torch.empty(0))).float()
        best = logits.softmax(1).topk(min(BEST, logits.shape[1]), dim=1)
    return [
        tuple(Guess(label, probability) for label, probability in zip(labels, probabilities, strict=True))
        for labels, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
