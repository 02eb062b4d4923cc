"""The model as Composer sees it: normalisation, network, loss, metrics."""

from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import Metric

from imagenet_mds_train.config.recipe import Loss
from imagenet_mds_train.data.device import Batch
from imagenet_mds_train.metrics.validation import validation_metrics

# The mean and standard deviation of ImageNet's training images, in gray levels (0 to 255), as published ResNets use
# them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Classifier(ComposerModel):
    """A network for uint8 batches, which it normalises on the device."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, classes: int, loss: Loss = "cross_entropy") -> None:
        super().__init__()
        self.loss_name = loss
        self.network = network
        self.classes = classes
        # Not persistent: a checkpoint holds only the weights, under the network's own names.
        mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (samples, classes) of images (samples, 3, height, width): uint8, or float after mixing."""
        # One kernel, which reads uint8 and writes the normalised images.
        images = torch.addcmul(self.shift, batch[0], self.scale)
        logits: Tensor = self.network(images)
        return logits

    def loss(self, outputs: Tensor, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """The mean loss of a batch over what weighs in it; its targets are class probabilities (samples, classes)."""
        return (cross_entropy_of if self.loss_name == "cross_entropy" else binary_cross_entropy_of)(outputs, batch[1])

    def eval_forward(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """The logits, computed unless `outputs` holds them."""
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The validation metrics. Training has none, because with mixed labels they say nothing."""
        return {} if is_train else validation_metrics(self.classes)

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Count one batch."""
        metric.update(outputs, batch[1])


_LEAST_WEIGHT = 1e-6
"""A batch of damaged images alone has no weight, and its loss is 0."""


def cross_entropy_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over the weight of the samples.

    Args:
        logits: (samples, classes).
        targets: (samples, classes), probabilities. A row that sums to less than 1 has less weight.
    """
    return cross_entropy(logits, targets, reduction="sum") / targets.sum().clamp(min=_LEAST_WEIGHT)


def binary_cross_entropy_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy, summed over the classes, the mean over the weight of the samples; the arguments are those
    of `cross_entropy_of`."""
    weights = targets.sum(dim=1, keepdim=True)
    # A sample's targets are those of its part that weighs.
    summed = binary_cross_entropy_with_logits(
        logits, targets / weights.clamp(min=_LEAST_WEIGHT), weight=weights, reduction="sum"
    )
    return summed / weights.sum().clamp(min=_LEAST_WEIGHT)
