"""The optimizer over parameter groups chosen by module type: SGD, its decoupled form, and SAM around either."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from imagenet_mds_train.config.recipe import OptimizerConfig, SAMConfig

Closure = Callable[..., Any]
"""Computes the gradients of a batch and returns its loss, or None where a gradient overflowed and the step is skipped.
Composer's takes `ddp_sync=False`, which leaves each rank its own gradients, and `loss_dict`, where losses go."""


def parameter_groups(network: nn.Module, *, decay_norm_and_bias: bool, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those with and without weight decay, by the type of their module, never by name.

    Returns:
        Groups as torch's optimizers take them; every parameter is in exactly one.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = not decay_norm_and_bias and (isinstance(module, norms) or name == "bias")
            (plain if exempt else decayed).append(parameter)
    groups: Sequence[tuple[list[nn.Parameter], float]] = ((decayed, weight_decay), (plain, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


class DecoupledSGD(SGD):
    """SGD whose weight decay is taken off the weights, in proportion to the schedule and not to the learning rate
    (Loshchilov, Hutter 2019). Composer's does the same, tensor by tensor.

    Args:
        groups: parameter groups with `weight_decay`.
        lr: the learning rate at which the whole weight decay applies.
        options: passed to `SGD`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, **options: Any) -> None:
        decoupled = [{**group, "decay": group["weight_decay"], "weight_decay": 0.0, "full_lr": lr} for group in groups]
        super().__init__(decoupled, lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take a step."""
        loss = _with_gradients(closure)() if closure else None
        for group in self.param_groups:
            if group["decay"]:
                weights = [parameter for parameter in group["params"] if parameter.grad is not None]
                torch._foreach_mul_(weights, 1 - group["lr"] / group["full_lr"] * group["decay"])
        super().step()
        return loss


class SAM(Optimizer):
    """Sharpness-aware minimization (Foret et al. 2021) around another optimizer, every `every` steps.

    Each rank climbs by the gradient of its own part of the batch, as in the paper's section 4.1. Composer's SAM does
    not save the momentum or its place in the interval, and its checkpoints do not load. Here the parameter groups and
    the state are those of the inner optimizer, and the place is in the first group.

    Args:
        inner: takes the step, with the gradients found uphill.
        rho: how far uphill, as a norm over all weights.
        every: a step with SAM, of this many.
    """

    _step_supports_amp_closure = True
    """Composer asks for this, and then gives `step` a closure in fp16 too."""

    def __init__(self, inner: Optimizer, rho: float, every: int) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.rho, self.every = inner, rho, every
        self.param_groups[0].setdefault("sam_steps", 0)
        self._share()

    def _share(self) -> None:
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state, for the inner optimizer too."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take a step; every `every` steps with the gradients found uphill. Without a closure, which torch's loading of
        a checkpoint leaves out to have the state created, it is a step of the inner optimizer and does not count."""
        if closure is None:
            return self.inner.step()
        closure = _with_gradients(closure)
        first = self.param_groups[0]
        first["sam_steps"] += 1
        if first["sam_steps"] % self.every:
            loss = closure()
            if loss is not None:
                self.inner.step()
            return loss
        if (loss := closure(ddp_sync=False)) is None:
            return None
        weights = [parameter for group in self.param_groups for parameter in group["params"]]
        climbing = [parameter for parameter in weights if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in climbing]
        climb(climbing, self.rho)
        uphill = closure(loss_dict={})
        torch._foreach_copy_(climbing, before)
        if uphill is not None:
            self.inner.step()
        return loss


def _with_gradients(closure: Closure) -> Closure:
    """A closure that computes gradients where they are switched off."""

    def closed(**options: Any) -> Any:
        with torch.enable_grad():  # type: ignore[no-untyped-call] # torch's
            return closure(**options)

    return closed


def climb(weights: list[Tensor], rho: float) -> None:
    """Move weights by `rho` in the direction of their gradients, as one vector (Foret et al. 2021, equation 2)."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_add_(weights, torch._foreach_mul(gradients, rho / (norm + 1e-12)))


def build_optimizer(config: OptimizerConfig, network: nn.Module, lr: float, sam: SAMConfig | None = None) -> Optimizer:
    """Build the optimizer over the network's parameter groups.

    Args:
        config: the optimizer's.
        network: whose parameters it steps.
        lr: the learning rate after the warm-up.
        sam: SAM's settings, None to go without.
    """
    groups = parameter_groups(network, decay_norm_and_bias=config.decay_norm_and_bias, weight_decay=config.weight_decay)
    kind = DecoupledSGD if config.decoupled else SGD
    inner = kind(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    return SAM(inner, sam.rho, sam.every_batches) if sam else inner
