"""Counts what a step costs beside the network, on any machine: `python benchmarks/counts.py`.

Operations are those that torch dispatches, views left out: on a GPU each is a kernel or several. Kilobytes are those of
new results, not of what is changed in its place. A read-back is where the processor waits for a value.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

IMAGES, CLASSES, SIZE_PX = 32, 1000, 64

_READ_BACK = "aten._local_scalar_dense.default"


class Counts(TorchDispatchMode):
    """Counts the operations within it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.read_backs = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        if str(func) == _READ_BACK:
            self.read_backs += 1
        elif not func.is_view:
            self.operations += 1
            results = result if isinstance(result, list | tuple) else [result]
            self.bytes += sum(one.nbytes for one in results if isinstance(one, torch.Tensor))
        return result


def counted(call: Callable[[], Any]) -> dict[str, int]:
    """The counts of a call, after one that is not counted."""
    call()
    with Counts() as counts:
        call()
    return {"operations": counts.operations, "read-backs": counts.read_backs, "kilobytes": counts.bytes // 1000}


def sides() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is done, as Composer does it and as it is done here."""
    from composer.algorithms.ema.ema import EMAParameters, compute_ema
    from composer.algorithms.label_smoothing import smooth_labels
    from composer.algorithms.mixup import mixup_batch
    from composer.loss import soft_cross_entropy

    from imagenet_mds_train.augment.mixing import Mixing
    from imagenet_mds_train.config.recipe import AlgorithmsConfig, LabelSmoothingConfig, MixUpConfig
    from imagenet_mds_train.model.classifier import MEAN, STD, Classifier, cross_entropy_of
    from imagenet_mds_train.model.resnet import resnet
    from imagenet_mds_train.recipe.average import update_average

    images = torch.randint(256, (IMAGES, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    labels, logits = torch.randint(CLASSES, (IMAGES,)), torch.randn(IMAGES, CLASSES)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    model = Classifier(resnet(50, CLASSES), CLASSES)
    theirs = EMAParameters(model)
    state = [tensor.detach() for tensor in model.state_dict().values()]
    average = [tensor.clone() for tensor in state]
    config = AlgorithmsConfig(mixup=MixUpConfig(), label_smoothing=LabelSmoothingConfig())
    mixing = Mixing(config, CLASSES, seed=0)
    targets = mixing(images, labels, 0)[1]

    def composers_labels() -> Any:
        mixed, permuted, share = mixup_batch(images.float(), labels, alpha=0.2)
        smoothed = [smooth_labels(logits, one, 0.1) for one in (labels, permuted)]
        return mixed, soft_cross_entropy(logits, smoothed[0]) * (1 - share) + soft_cross_entropy(
            logits, smoothed[1]
        ) * share

    return {
        "normalise": (
            lambda: (images.float() - mean) / std,
            lambda: torch.addcmul(model.shift, images, model.scale),
        ),
        "MixUp, smoothing, loss": (
            composers_labels,
            lambda: (mixing(images, labels, 1), cross_entropy_of(logits, targets)),
        ),
        "the average of a ResNet-50": (
            lambda: compute_ema(model, theirs, smoothing=0.99),
            lambda: update_average(average, state, 0.01),
        ),
    }


def main() -> None:
    """Print the table, and JSON on the last line."""
    warnings.simplefilter("ignore")
    rows = {name: [counted(side) for side in both] for name, both in sides().items()}
    print(f"{'':28} {'operations':>20} {'read-backs':>20} {'kilobytes':>20}")
    for name, (before, now) in rows.items():
        print(f"{name:28} " + " ".join(f"{before[kind]:>11,} -> {now[kind]:>5,}" for kind in before))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
