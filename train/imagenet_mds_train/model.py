"""The network, and what the trainer sees of it."""

from collections.abc import Sequence
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torchmetrics import Metric
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from imagenet_mds_train.feed import Batch
from imagenet_mds_train.metrics import TopK, ValidationLoss

# The mean and standard deviation of ImageNet's training images, in grey levels (0 to 255), as every published ResNet
# has.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    10: (BasicBlock, [1, 1, 1, 1]),
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def resnet(depth: int, classes: int) -> nn.Module:
    """torchvision's ResNet: He initialisation, and zero in the last BatchNorm of each residual branch (Goyal et al.
    2017).

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        classes: outputs.
    """
    block, layers = _BLOCKS[depth]
    network: nn.Module = ResNet(block, layers, num_classes=classes, zero_init_residual=True)
    return network


class Classifier(ComposerModel):
    """A network that takes uint8 batches, normalises them on the device, and is judged by top-1 and top-5."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.network = network
        self.classes = classes
        # Not persistent: a checkpoint holds the weights alone, under the network's own names.
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
        """The logits, computed unless they are given."""
        return self(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Validation's metrics; training has none, for with mixed labels they say nothing."""
        return {} if is_train else validation_metrics(self.classes)

    def update_metric(self, batch: Batch, outputs: Tensor, metric: Metric) -> None:
        """Count one batch."""
        metric.update(outputs, batch[1])


def without_weightless(targets: Tensor, smoothing: float) -> Tensor:
    """Class probabilities in which label smoothing has given nothing to samples that weigh nothing.

    Smoothing makes (1 - s) p + s / C of a row p; of a row of zeros, or of one mixed with such a row, it should have
    made (1 - s) p + m s / C, where m is what p adds up to.

    Args:
        targets: (samples, classes), after mixing and smoothing.
        smoothing: s.
    """
    mass = (targets.sum(dim=1, keepdim=True) - smoothing) / (1 - smoothing)
    # Exactly as they are where nothing is missing but for rounding.
    missing = torch.where(mass < 1 - 1e-4, 1 - mass, 0.0)
    return targets - missing * (smoothing / targets.shape[1])


class OneModel(Callback):
    """Lets every rank validate the first rank's model, which is the one that is saved.

    BatchNorm's running statistics are each rank's own after a step (DDP sends the first rank's out only before the next
    one), and so is their moving average; without this a validation is of as many models as there are ranks.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Send the first rank's buffers to all. EMA has put its weights in by now: algorithms run before callbacks."""
        for buffer in state.model.buffers():
            dist.broadcast(buffer, src=0)


def validation_metrics(classes: int) -> dict[str, Metric]:
    """top1, top5 (of fewer than five classes: all) and the loss."""
    return {"top1": TopK(1), "top5": TopK(min(5, classes)), "loss": ValidationLoss()}


def parameter_groups(network: nn.Module, *, decay_norm_and_bias: bool, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with and without weight decay, chosen by the type of their module, never by name.

    Returns:
        Groups as torch's optimizers take them; every parameter is in exactly one.
    """
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = not decay_norm_and_bias and (isinstance(module, norms) or name == "bias")
            (plain if exempt else decayed).append(parameter)
    groups: Sequence[tuple[list[nn.Parameter], float]] = ((decayed, weight_decay), (plain, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
