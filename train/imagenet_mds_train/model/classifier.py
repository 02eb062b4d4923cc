"""The model as Composer sees it: normalisation, network, loss, metrics."""

from typing import Any

import torch
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric

from imagenet_mds_train.data.device import Batch
from imagenet_mds_train.metrics.validation import validation_metrics

# The mean and standard deviation of ImageNet's training images, in gray levels (0 to 255), as published ResNets use
# them.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Classifier(ComposerModel):
    """A network for uint8 batches, which it normalises on the device."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.network = network
        self.classes = classes
        # Not persistent: a checkpoint holds only the weights, under the network's own names.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (samples, classes) of images (samples, 3, height, width): uint8, or float after mixing."""
        images = (batch[0].float() - self.mean) / self.std
        logits: Tensor = self.network(images)
        return logits

    def loss(self, outputs: Tensor, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Cross entropy, of class numbers or of class probabilities."""
        targets = batch[1]
        if targets.is_floating_point():
            targets = without_weightless(targets, self.label_smoothing)
        loss: Tensor = soft_cross_entropy(outputs, targets)
        return loss

    def eval_forward(self, batch: Batch, outputs: Tensor | None = None) -> Tensor:
        """The logits, computed unless `outputs` holds them."""
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The validation metrics. Training has none, because with mixed labels they say nothing."""
        return {} if is_train else validation_metrics(self.classes)

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Count one batch."""
        metric.update(outputs, batch[1])


def without_weightless(targets: Tensor, smoothing: float) -> Tensor:
    """Take back what label smoothing gave to samples without weight.

    Smoothing turns a row p into (1 - s) p + s / C. A row of zeros, or one mixed with such a row, should have become
    (1 - s) p + m s / C, where m is the sum of p.

    Args:
        targets: (samples, classes), after mixing and smoothing.
        smoothing: s.
    """
    mass = (targets.sum(dim=1, keepdim=True) - smoothing) / (1 - smoothing)
    # Rows whose sum differs from 1 only by rounding stay exactly as they are.
    missing = torch.where(mass < 1 - 1e-4, 1 - mass, 0.0)
    return targets - missing * (smoothing / targets.shape[1])
