"""What a model says of each sample of a split."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from imagenet_mds.dataset.access import Split
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.device import finish_batch
from imagenet_mds_train.data.loaders import validation_loader
from imagenet_mds_train.data.stream import own_resources
from imagenet_mds_train.model.build import precision_on
from imagenet_mds_train.model.classifier import Classifier

BEST = 5
"""Classes that are kept of each sample, or all where there are fewer."""


@dataclass(frozen=True)
class Predictions:
    """The predictions for the samples that decode, in stored order.

    samples: (n), their numbers in the split.
    labels: (n).
    best: (n, 5), the classes with the largest logits, the largest first.
    confidence: (n), the probability of the first of them.
    losses: (n), cross entropy.
    damaged: samples that did not decode.
    """

    samples: NDArray[np.int64]
    labels: NDArray[np.int64]
    best: NDArray[np.int64]
    confidence: NDArray[np.float64]
    losses: NDArray[np.float64]
    damaged: int

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n), whether the first class is the label."""
        equal: NDArray[np.bool_] = self.best[:, 0] == self.labels
        return equal


def predict(
    model: Classifier,
    config: TrainConfig,
    split: Split,
    samples: int,
    *,
    flips: bool = False,
    on_samples: Callable[[int], None] = lambda samples: None,
) -> Predictions:
    """Run a model over the first `samples` of a split, each exactly once, in one process. Damaged images are treated as
    in training, by the configuration's `data.damaged`.

    Args:
        model: the model, on the device to compute on.
        config: of its run; `evaluation` says how images are resized.
        split: what to run on, ready to be read.
        samples: how many.
        flips: whether to average the probabilities of each image and its mirror image.
        on_samples: called after each batch with the number of its samples.

    Raises:
        WorldError: an image does not decode, and `data.damaged` says stop; or the storage fails.
    """
    device = next(model.parameters()).device
    model.eval()
    collected: list[tuple[torch.Tensor, ...]] = []
    with own_resources():
        loader = validation_loader(
            config.evaluation,
            split.shard_cache,
            samples,
            rank=0,
            ranks=1,
            replace_damaged=config.data.damaged == "black",
            finish=partial(finish_batch, device=device, classes=model.classes, mixing=None),
            device=device,
        )
        with inference(device.type, config):
            for images, labels in loader:
                logits = model((images, labels)).float()
                if flips:
                    mirrored = model((images.flip(3), labels)).float()
                    logits = (logits.softmax(1) + mirrored.softmax(1)).div(2).log()
                # A batch's memory is used again.
                collected.append((labels.clone(), *_of_batch(logits, labels)))
                on_samples(len(labels))
        del loader
    labels, best, confidence, losses = (torch.cat(parts).cpu().numpy() for parts in zip(*collected, strict=True))
    known = labels >= 0
    return Predictions(
        samples=np.flatnonzero(known),
        labels=labels[known].astype(np.int64),
        best=best[known],
        confidence=confidence[known].astype(np.float64),
        losses=losses[known].astype(np.float64),
        damaged=int((~known).sum()),
    )


@contextlib.contextmanager
def inference(device_type: str, config: TrainConfig) -> Iterator[None]:
    """Compute within the context without gradients, in the precision of a run.

    Args:
        device_type: as torch names it, `cuda` or `cpu`.
        config: the run's.
    """
    precision = precision_on(device_type, config)
    dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float16
    mixed = device_type == "cuda" and precision != "fp32"
    with torch.inference_mode(), torch.autocast(device_type, dtype, enabled=mixed):
        yield


def _of_batch(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best classes, the probability of the first, and the losses of logits (samples, classes). Negative labels are
    of damaged images."""
    best = logits.topk(min(BEST, logits.shape[1]), dim=1).indices
    confidence = logits.softmax(1).amax(1)
    return best, confidence, cross_entropy(logits, labels.clamp(min=0), reduction="none")
