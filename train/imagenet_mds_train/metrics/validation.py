"""Validation metrics that count each real sample once and padding never. They are sums, exact on any number of
ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class TopK(Metric):
    """The share of samples whose class is among the k largest logits, 0 to 1. Negative labels are padding."""

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k
        self.add_state("correct", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (samples, classes), labels (samples)."""
        real = labels >= 0
        best = logits[real].topk(self.k, dim=1).indices
        self.correct += (best == labels[real].unsqueeze(1)).any(dim=1).sum()
        self.total += real.sum()

    def compute(self) -> Tensor:
        """The share; 0 if there are no samples."""
        return self.correct.double() / self.total.clamp(min=1)


class ValidationLoss(Metric):
    """The mean cross entropy over samples. Negative labels are padding."""

    full_state_update = False
    summed: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("summed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (samples, classes), labels (samples)."""
        real = labels >= 0
        self.summed += nn.functional.cross_entropy(logits[real].float(), labels[real], reduction="sum").double()
        self.total += real.sum()

    def compute(self) -> Tensor:
        """The mean; 0 if there are no samples."""
        return self.summed / self.total.clamp(min=1)


def validation_metrics(classes: int) -> dict[str, Metric]:
    """The metrics by name: top1, top5 (all classes where there are fewer than five) and loss."""
    return {"top1": TopK(1), "top5": TopK(min(5, classes)), "loss": ValidationLoss()}
