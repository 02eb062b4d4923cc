"""An exponential moving average of the weights (Polyak, Juditsky 1992), which is what is validated and saved.

Composer's own keys its average by the names of the wrapped module, so that nothing matches after a change between one
rank and several: the average then never moves again, in silence. It also updates tensor by tensor, with 1,288 kernels
for a ResNet-50, which takes 15 ms a batch on an H200; the same update of all tensors at once takes 0.1 ms.
"""

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


class EMA(Algorithm):
    """Averages parameters and buffers after each batch, starting with those of the first one.

    The average is in the model during a validation and in a checkpoint's `model`; the state then holds the training
    weights. Name and state are those of Composer's EMA, whose checkpoints are continued.

    Args:
        half_life_batches: batches after which a weight counts half.
    """

    def __init__(self, half_life_batches: int) -> None:
        self.weight = 1 - 2 ** (-1 / half_life_batches)
        self._other: dict[str, Tensor] = {}
        """The average by name, or the training weights while the average is in the model. Empty before the start."""
        self._average_in_model = False

    def match(self, event: Event, state: State) -> bool:
        """Match the events that need the training weights or the average in the model, and the end of a batch."""
        return event in (Event.FIT_START, Event.BATCH_END, Event.EVAL_START, Event.EVAL_END)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Put the training weights or the average into the model, or update the average."""
        if event == Event.EVAL_START:
            self._put(state.model, average=True)
            return
        self._put(state.model, average=False)
        if event == Event.BATCH_END:
            self._update(state.model)

    @torch.no_grad()
    def _update(self, model: nn.Module) -> None:
        current = dict(_tensors(model))
        # A state that was loaded is in CPU memory until it has been in the model once.
        others = {name: tensor.to(current[name].device) for name, tensor in self._other.items()}
        self._other = others or {name: tensor.detach().clone() for name, tensor in current.items()}
        update_average([self._other[name] for name in current], list(current.values()), self.weight)

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
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = False) -> None:
        """Take the values of `state_dict`, or of Composer's EMA, whose names may begin with DDP's `module.`."""
        self._other, self._average_in_model = {}, False
        if state["ema_started"]:
            tensors = state["ema_model"]["named_parameters_dict"] | state["ema_model"]["named_buffers_dict"]
            self._other = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
            self._average_in_model = bool(state["ema_weights_active"])


def average_in_model(state: State) -> AbstractContextManager[None]:
    """Have the average in the model meanwhile, if the recipe has one."""
    average = next((algorithm for algorithm in state.algorithms if isinstance(algorithm, EMA)), None)
    return average.in_model(state.model) if average else nullcontext()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of the unwrapped model by name."""
    inner = unwrapped(model)
    yield from inner.named_parameters()
    yield from inner.named_buffers()
