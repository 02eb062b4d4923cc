"""A step of the trainer is a step of Composer's, without the waits."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer import Trainer
    from composer.core import Callback, State
    from composer.loggers import Logger
    from composer.utils import dist

    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.loop import TOTAL_LOSS, Loop
    from imagenet_mds_train.model.build import build_model
    from imagenet_mds_train.recipe.optimizer import build_optimizer

pytestmark = pytest.mark.slow  # imports composer

CLASSES, BATCHES = 5, 4


class Losses(Callback):
    """Keeps what the trainer says of each batch."""

    def __init__(self) -> None:
        self.kept: list[float] = []
        self.samples = 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Keep the loss."""
        assert isinstance(state.total_loss_dict, dict)
        self.kept.append(float(state.total_loss_dict[TOTAL_LOSS]))
        self.samples = state.timestamp.sample.value


def batches() -> list[tuple[Tensor, Tensor]]:
    """Random images with class probabilities."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (BATCHES, 6), generator=draw)
    images = torch.randint(0, 256, (BATCHES, 6, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return list(zip(images, torch.eye(CLASSES)[labels], strict=True))


@pytest.mark.parametrize("microbatch_size", [6, 2])
@pytest.mark.parametrize(
    "override", ["optimizer.nesterov=true", "algorithms.sam={rho: 0.5, every_batches: 2}", "optimizer.decoupled=true"]
)
def test_weights_and_losses_are_those_of_composers_loop(override: str, microbatch_size: int) -> None:
    config = load_config("dev", (override, "model.depth=10", "optimizer.lr=0.05"))
    model = build_model(config, CLASSES)
    trained = []
    for kind in (Trainer, Loop):
        own, losses = copy.deepcopy(model), Losses()
        trainer = kind(
            model=own,
            train_dataloader=batches(),
            max_duration=f"{BATCHES}ba",
            optimizers=build_optimizer(config.optimizer, own, config.lr, config.algorithms.sam),
            callbacks=[losses],
            device="cpu",
            device_train_microbatch_size=microbatch_size,
            progress_bar=False,
            auto_log_hparams=False,
        )
        trainer.fit()
        trainer.close()
        trained.append((own.state_dict(), losses))
    (theirs, expected), (ours, found) = trained
    assert found.kept == pytest.approx(expected.kept, rel=1e-7)
    assert found.samples == expected.samples == 6 * BATCHES
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name]), name


def test_a_step_waits_for_the_device_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read from a tensor in a step: on a GPU each is a wait."""
    config = load_config("dev", ("model.depth=10",))
    model = build_model(config, CLASSES)
    read: list[str] = []

    original: Any = Tensor.item

    def counted(tensor: Tensor) -> Any:
        read.append("item")
        return original(tensor)

    class Recorder(Callback):
        def batch_start(self, state: State, logger: Logger) -> None:
            monkeypatch.setattr(Tensor, "item", counted)

        def batch_end(self, state: State, logger: Logger) -> None:
            monkeypatch.setattr(Tensor, "item", original)

    for kind, expected in ((Loop, 0), (Trainer, 6 * BATCHES)):
        read.clear()
        trainer = kind(
            model=copy.deepcopy(model),
            train_dataloader=batches(),
            max_duration=f"{BATCHES}ba",
            optimizers=build_optimizer(config.optimizer, model, config.lr),
            callbacks=[Recorder()],
            device="cpu",
            device_train_microbatch_size=6,
            progress_bar=False,
            auto_log_hparams=False,
        )
        trainer.fit()
        trainer.close()
        assert len(read) == expected
    assert dist.get_world_size() == 1
