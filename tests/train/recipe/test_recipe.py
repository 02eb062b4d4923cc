"""The network, its parameters, the schedule, the algorithms and the metrics."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from imagenet_mds.errors import UserError
from imagenet_mds_train.config.schema import AlgorithmsConfig, OptimizerConfig
from imagenet_mds_train.recipe.schedule import lr_multiplier

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer import Trainer
    from composer.core import DataSpec
    from torch.utils.data import DataLoader, TensorDataset

    from imagenet_mds_train.data.device import PADDING_LABEL, finish_batch
    from imagenet_mds_train.metrics.validation import TopK, ValidationLoss
    from imagenet_mds_train.model.classifier import MEAN, STD, Classifier, without_weightless
    from imagenet_mds_train.model.resnet import resnet
    from imagenet_mds_train.recipe.algorithms import build_algorithms
    from imagenet_mds_train.recipe.mixing import MixUpOrCutMix
    from imagenet_mds_train.recipe.optimizer import build_optimizer, parameter_groups

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
    (group,) = build_optimizer(config, resnet(10, 10)).param_groups
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


def test_mixing_comes_before_smoothing_and_the_average_last() -> None:
    config = AlgorithmsConfig.model_validate(
        {"mixup": {}, "cutmix": {}, "label_smoothing": {}, "ema": {}, "blurpool": True, "channels_last": True}
    )
    names = [type(algorithm).__name__ for algorithm in build_algorithms(config, deterministic=False)]
    assert names == ["ChannelsLast", "MixUpOrCutMix", "LabelSmoothing", "EMA"]
    alone = AlgorithmsConfig.model_validate({"cutmix": {}})
    assert [type(algorithm).__name__ for algorithm in build_algorithms(alone, deterministic=False)] == ["CutMix"]


@pytest.mark.filterwarnings("ignore:::composer", "ignore:No `CheckpointSaver`", "ignore:Setting both of")
def test_labels_are_mixed_by_one_of_the_two_and_then_smoothed() -> None:
    """What reaches the loss: (1 - lambda) and lambda on two classes, smoothed over all, whichever of the two it was."""
    smoothing, classes = 0.1, 5
    config = AlgorithmsConfig.model_validate(
        {"mixup": {"alpha": 1.0}, "cutmix": {"alpha": 1.0}, "label_smoothing": {"smoothing": smoothing}}
    )
    algorithms = build_algorithms(config, deterministic=False)
    mixing, _ = algorithms
    assert isinstance(mixing, MixUpOrCutMix)
    both: MixUpOrCutMix = mixing
    seen: list[tuple[str, torch.Tensor]] = []

    class Spy(Classifier):
        def loss(self, outputs: torch.Tensor, batch: object, *args: object, **kwargs: object) -> torch.Tensor:
            assert isinstance(batch, (tuple, list))
            seen.append((type(both.chosen).__name__, batch[1].detach().clone()))
            return functional.cross_entropy(outputs, batch[1])

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.linear(images.mean((2, 3)))
            return logits

    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(96) % classes
    model = Spy(Mean(), classes)
    Trainer(
        model=model,
        train_dataloader=DataSpec(DataLoader(TensorDataset(images, labels), batch_size=8)),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        max_duration="1ep",
        algorithms=algorithms,
        progress_bar=False,
        device="cpu",
        seed=0,
    ).fit()
    assert {name for name, _ in seen} == {"MixUp", "CutMix"}
    for number, (_, mixed) in enumerate(seen):
        torch.testing.assert_close(mixed.sum(1), torch.ones(8))
        hard = (mixed - smoothing / classes) / (1 - smoothing)
        assert hard.min() > -1e-5, "smoothed after mixing, and once"
        own = labels[8 * number : 8 * number + 8]
        # Two classes at most, the image's own among them, with one lambda for the batch.
        assert int((hard > 1e-4).sum(1).max()) <= 2
        lambdas = hard[torch.arange(8), own]
        alone = (hard > 1 - 1e-4).any(1)
        assert np.ptp(lambdas[~alone].numpy()) < 1e-4


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


@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")  # Composer's; here they shall
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_a_sample_without_weight_adds_nothing_to_the_loss(smoothing: float, lam: float) -> None:
    classes, logits = 7, torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([3, PADDING_LABEL, 0, 6])
    _, given = finish_batch((images, labels), device=HERE, classes=classes, weightless=True)
    assert given[1].sum() == 0
    # As MixUp does it, with the order turned by one, and LabelSmoothing after it.
    mixed = lam * given + (1 - lam) * given.roll(1, 0)
    smoothed = mixed * (1 - smoothing) + smoothing / classes if smoothing else mixed
    loss = Classifier(nn.Identity(), classes, smoothing).loss(logits, (images, smoothed))
    shares = torch.stack([given, given.roll(1, 0)])  # (2, samples, classes)
    by_hand = torch.tensor(0.0)
    for share, weight in zip(shares, (lam, 1 - lam), strict=True):
        for row, logit in zip(share, logits, strict=True):
            if row.sum():
                target = row * (1 - smoothing) + smoothing / classes
                by_hand += weight * functional.cross_entropy(logit[None], target[None])
    # The mean over what weighs, as Composer takes it.
    torch.testing.assert_close(loss, by_hand / given.sum())


def test_labels_stay_numbers_where_every_sample_weighs() -> None:
    batch = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([1, 0])
    assert finish_batch(batch, device=HERE, classes=5, weightless=True)[1] is batch[1]
    assert finish_batch(batch, device=HERE, classes=5)[1] is batch[1]
    with pytest.raises(UserError, match=r"a sample has class 1 and the model knows 1: pass model\.classes"):
        finish_batch(batch, device=HERE, classes=1)
    targets = torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    assert torch.equal(without_weightless(targets, 0.1), targets)
