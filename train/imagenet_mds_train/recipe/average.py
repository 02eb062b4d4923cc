"""Averages of the weights (Polyak, Juditsky 1992), which are what is validated and saved.

Composer's own EMA keys its average by the names of the wrapped module, so that nothing matches after a change between
one rank and several: the average then never moves again, in silence. It also updates tensor by tensor, with 1,288
kernels for a ResNet-50, which takes 15 ms a batch on an H200; the same update of all tensors at once takes 0.1 ms. Its
SWA breaks on several ranks.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from imagenet_mds.errors import WorldError


def update_average(average: list[Tensor], current: list[Tensor], weight: float) -> None:
    """Move an average towards the current values by a weight, in place; integers are copied.

    Args:
        average: the average.
        current: the values, in the same order.
        weight: of the current values, 0 to 1.
    """
    moved = [(old, new) for old, new in zip(average, current, strict=True) if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in moved], [new for _, new in moved], weight)
    for old, new in zip(average, current, strict=True):
        if not old.is_floating_point():
            old.copy_(new)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DistributedDataParallel around it, so that its names do not depend on the ranks."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    return inner


class WeightAverage(Algorithm):
    """An average of the parameters and buffers after some batches, starting with those of the first one.

    The average is in the model during a validation and in a checkpoint's `model`; the state then holds the training
    weights. A subclass says when the average is updated, and by how much.
    """

    log_every_batches = 20
    """Batches between logged values of `recipe/average_distance`, which are read back from the device."""

    def __init__(self) -> None:
        self._other: dict[str, Tensor] = {}
        """The average by name, or the training weights while the average is in the model. Empty before the start."""
        self._average_in_model = False
        self.updates = 0
        """How often the average was updated."""

    @abstractmethod
    def weight_of(self, state: State) -> float | None:
        """The weight of the current values, 0 to 1; None if this batch does not update it."""

    def match(self, event: Event, state: State) -> bool:
        """Match the events that need the training weights or the average in the model, and the end of a batch."""
        return event in (Event.FIT_START, Event.BATCH_END, Event.EVAL_START, Event.EVAL_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Put the training weights or the average into the model, or update the average."""
        if event == Event.EVAL_START:
            self._put(state.model, average=True)
            return
        self._put(state.model, average=False)
        if event != Event.BATCH_END:
            return
        if (weight := self.weight_of(state)) is not None:
            self._update(state.model, weight)
        if self._other and state.timestamp.batch.value % self.log_every_batches == 0:
            logger.log_metrics({"recipe/average_distance": self._distance(state.model)})

    @torch.no_grad()
    def _update(self, model: nn.Module, weight: float) -> None:
        current = dict(_tensors(model))
        # A state that was loaded is in CPU memory until it has been in the model once.
        others = {name: tensor.to(current[name].device) for name, tensor in self._other.items()}
        self._other = others or {name: tensor.detach().clone() for name, tensor in current.items()}
        update_average([self._other[name] for name in current], list(current.values()), weight)
        self.updates += 1

    @torch.no_grad()
    def _distance(self, model: nn.Module) -> float:
        """The norm of the training weights minus the average, by that of the weights."""
        current = {name: tensor for name, tensor in _tensors(model) if tensor.is_floating_point()}
        apart = torch._foreach_sub(list(current.values()), [self._other[name] for name in current])
        norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (apart, list(current.values()))]
        return float(norms[0] / norms[1])

    @torch.no_grad()
    def _put(self, model: nn.Module, *, average: bool) -> None:
        """Exchange the values of the model with the others, if the wanted ones are not in it."""
        if not self._other or average == self._average_in_model:
            return
        current = dict(_tensors(model))
        if current.keys() != self._other.keys():
            raise WorldError(
                "the average of the weights in the checkpoint is of another network: continue the run with the version "
                "and the configuration that it was started with, or start a new one with --run-name"
            )
        kept = {name: tensor.detach().clone() for name, tensor in current.items()}
        for name, tensor in current.items():
            tensor.copy_(self._other[name])
        self._other, self._average_in_model = kept, average

    @contextmanager
    def in_model(self, model: nn.Module) -> Iterator[None]:
        """Have the average in the model, as a checkpoint does."""
        before = self._average_in_model
        self._put(model, average=True)
        try:
            yield
        finally:
            self._put(model, average=before)

    def state_dict(self) -> dict[str, Any]:
        """The values that are not in the model, in the layout of Composer's EMA."""
        return {
            "repr": type(self).__name__,
            "ema_model": {"named_parameters_dict": dict(self._other), "named_buffers_dict": {}},
            "ema_weights_active": self._average_in_model,
            "ema_started": bool(self._other),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = False) -> None:
        """Take the values of `state_dict`, or of Composer's EMA, whose names may begin with DDP's `module.`."""
        self._other, self._average_in_model = {}, False
        if state["ema_started"]:
            tensors = state["ema_model"]["named_parameters_dict"] | state["ema_model"]["named_buffers_dict"]
            names = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
            self._other = {name: tensor for name, tensor in names.items() if name not in _FORMER_CONSTANTS}
            self._average_in_model = bool(state["ema_weights_active"])
            self.updates = state.get("updates", 0)


class EMA(WeightAverage):
    """An exponential moving average. Name and state are those of Composer's, whose checkpoints are continued.

    Args:
        half_life_batches: batches after which a weight counts half.
        every_batches: batches between updates.
    """

    def __init__(self, half_life_batches: int, every_batches: int = 1) -> None:
        super().__init__()
        self.weight = 1 - 2 ** (-every_batches / half_life_batches)
        self.every_batches = every_batches

    def weight_of(self, state: State) -> float | None:
        """The same weight every `every_batches` batches."""
        return None if state.timestamp.batch.value % self.every_batches else self.weight


class SWA(WeightAverage):
    """An even average of the weights at the ends of epochs (Izmailov et al. 2018).

    The paper computes BatchNorm's statistics again, with another pass over the data. Here those at the ends of the
    epochs are averaged like weights, so that each validation and checkpoint has a whole model at no cost.

    Args:
        from_epoch: the first epoch that counts, from 0.
    """

    def __init__(self, from_epoch: int) -> None:
        super().__init__()
        self.from_epoch = from_epoch

    def weight_of(self, state: State) -> float | None:
        """The reciprocal of the number of epochs, at an epoch's last batch. The epoch is not counted yet."""
        assert state.dataloader_len is not None
        ends = state.timestamp.batch_in_epoch.value == state.dataloader_len.value
        return 1 / (self.updates + 1) if ends and state.timestamp.epoch.value >= self.from_epoch else None


def average_in_model(state: State) -> AbstractContextManager[None]:
    """Have the average in the model meanwhile, if the recipe has one."""
    average = next((algorithm for algorithm in state.algorithms if isinstance(algorithm, WeightAverage)), None)
    return average.in_model(state.model) if average else nullcontext()


_FORMER_CONSTANTS = ("mean", "std")
"""What earlier versions normalised images by and averaged with the rest."""


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers of the unwrapped model by name."""
    yield from unwrapped(model).state_dict(keep_vars=True).items()
