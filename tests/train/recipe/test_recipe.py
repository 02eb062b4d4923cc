"""The network, its parameters, the schedule, the algorithms and the metrics."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from imagenet_mds.errors import UserError
from imagenet_mds_train.config.recipe import AlgorithmsConfig, Loss, OptimizerConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.augment.mixing import mix_up, soft_labels
    from imagenet_mds_train.data.device import PADDING_LABEL, finish_batch
    from imagenet_mds_train.metrics.validation import TopK, ValidationLoss
    from imagenet_mds_train.model.classifier import MEAN, STD, Classifier
    from imagenet_mds_train.model.resnet import resnet
    from imagenet_mds_train.recipe.algorithms import build_algorithms
    from imagenet_mds_train.recipe.optimizer import build_optimizer, parameter_groups
    from imagenet_mds_train.recipe.schedule import lr_multiplier

pytestmark = pytest.mark.slow  # imports composer


HERE = torch.device("cpu")


def test_resnet50_has_torchvisions_parameters() -> None:
    assert sum(parameter.numel() for parameter in resnet(50, 1000).parameters()) == 25_557_032


def test_the_last_batchnorm_of_each_branch_starts_at_zero() -> None:
    network = resnet(50, 10)
    zero = [name for name, parameter in network.named_parameters() if "bn" in name and not parameter.any()]
    assert sum(name.endswith("bn3.weight") for name in zero) == 16


def test_weight_decay_is_chosen_by_type() -> None:
    network = resnet(50, 1000)
    decayed, plain = parameter_groups(network, decay_norm_and_bias=False, weight_decay=1e-4)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-4, 0.0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    # 106 parameters of 53 BatchNorms (those of the downsampling branches have no `bn` in their names), and one bias.
    assert len(plain["params"]) == 2 * len(norms) + 1 == 107
    assert {id(p) for group in (decayed, plain) for p in group["params"]} == {id(p) for p in network.parameters()}
    (everything,) = parameter_groups(network, decay_norm_and_bias=True, weight_decay=1e-4)
    assert len(everything["params"]) == len(list(network.parameters()))


def test_the_optimizer_is_as_configured() -> None:
    config = OptimizerConfig(lr=0.4, momentum=0.9, nesterov=True, weight_decay=1e-4)
    (group,) = build_optimizer(config, resnet(10, 10), 0.4).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.4, 0.9, True, 1e-4)


def test_uint8_batches_are_normalised_in_the_model() -> None:
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.mean((2, 3))

    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    Classifier(Spy(), 3)((images, torch.tensor([0, 1])))
    expected = (images.double() - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_schedule_warms_up_and_falls_as_a_cosine() -> None:
    values = [lr_multiplier(batch, warmup_batches=10, total_batches=110, final_fraction=0.0) for batch in range(111)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1.0
    assert values[60] == pytest.approx(0.5)
    assert values[110] == pytest.approx(0.0)
    assert all(before >= after for before, after in pairwise(values[10:]))
    assert lr_multiplier(0, warmup_batches=0, total_batches=5, final_fraction=0.1) == 1.0
    assert lr_multiplier(5, warmup_batches=0, total_batches=5, final_fraction=0.1) == pytest.approx(0.1)


def test_the_average_takes_statistics_that_did_not_overflow() -> None:
    config = AlgorithmsConfig.model_validate({"mixup": {}, "label_smoothing": {}, "ema": {}, "blurpool": "all"})
    algorithms = build_algorithms(config, epochs=3, fp16=True, deterministic=True, log_every_batches=20)
    assert [type(algorithm).__name__ for algorithm in algorithms] == ["OverflowGuard", "EMA", "StaticBuckets"]


def test_top_k_counts_real_samples_and_never_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(0, 10, (50,), generator=generator)
    padded = torch.cat([logits, torch.zeros(3, 10)]), torch.cat([labels, torch.full((3,), -1)])
    for k in (1, 5):
        metric = TopK(k)
        metric.update(*padded)
        expected = (logits.topk(k).indices == labels[:, None]).any(1).double().mean()
        assert float(metric.compute()) == pytest.approx(float(expected), abs=0)
    loss = ValidationLoss()
    loss.update(*padded)
    assert float(loss.compute()) == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-6)


def test_a_metric_of_nothing_is_zero() -> None:
    metric = TopK(1)
    metric.update(torch.zeros(2, 4), torch.tensor([-1, -1]))
    assert float(metric.compute()) == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_sample_without_weight_adds_nothing_to_the_loss(smoothing: float, share: float, loss: Loss) -> None:
    classes, logits = 7, torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([3, PADDING_LABEL, 0, 6])
    _, targets = mix_up(images, soft_labels(labels, classes, smoothing), share)
    found = Classifier(nn.Identity(), classes, loss).loss(logits, (images, targets))
    total, weight = torch.tensor(0.0), 0.0
    for own, part in ((labels, share), (labels.roll(1), 1 - share)):
        for label, logit in zip(own, logits, strict=True):
            if label >= 0:
                target = functional.one_hot(label, classes) * (1 - smoothing) + smoothing / classes
                if loss == "cross_entropy":
                    total += part * functional.cross_entropy(logit, target)
                else:
                    total += part * functional.binary_cross_entropy_with_logits(logit, target, reduction="sum")
                weight += part
    torch.testing.assert_close(found, total / weight)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_batch_without_weight_has_no_loss(loss: Loss) -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    found = Classifier(nn.Identity(), 5, loss).loss(logits, (logits, torch.zeros(2, 5)))
    found.backward()  # type: ignore[no-untyped-call] # torch's
    assert float(found) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_labels_are_numbers_in_validation_and_must_be_known() -> None:
    batch = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([1, 0])
    assert finish_batch(batch, 0, device=HERE, classes=5, mixing=None)[1] is batch[1]
    with pytest.raises(UserError, match=r"a sample has class 1 and the model knows 1: pass model\.classes"):
        finish_batch(batch, 0, device=HERE, classes=1, mixing=None)
