"""Decoupled SGD and SAM against references of some lines, and over a save."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagenet_mds_train.config.recipe import OptimizerConfig, SAMConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.optim import DecoupledSGDW

    from imagenet_mds_train.recipe.optimizer import SAM, DecoupledSGD, build_optimizer

pytestmark = pytest.mark.slow  # imports composer

INPUTS = torch.randn(16, 5, generator=torch.Generator().manual_seed(1))
OUTPUTS = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


def network() -> nn.Linear:
    """A small network, always the same."""
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def loss_of(net: nn.Module) -> Tensor:
    """A loss that is not linear in the weights."""
    loss: Tensor = (torch.tanh(net(INPUTS)) - OUTPUTS).square().mean()
    return loss


def closure_of(net: nn.Module, calls: list[dict[str, Any]] | None = None) -> Callable[..., float]:
    """What the trainer gives to `step`."""

    def closure(**options: Any) -> float:
        if calls is not None:
            calls.append(options)
        net.zero_grad()
        loss = loss_of(net)
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        return float(loss)

    return closure


def weights_of(net: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [parameter.detach().clone() for parameter in net.parameters()]


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    """Equal but for the order of additions."""
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_decoupled_sgd_is_its_formula_and_composers() -> None:
    ours, theirs, lr, momentum, decay = network(), network(), 0.2, 0.9, 0.01
    optimizer = DecoupledSGD([{"params": list(ours.parameters()), "weight_decay": decay}], lr, momentum=momentum)
    composers = DecoupledSGDW(theirs.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    by_hand = weights_of(ours)
    velocity = [torch.zeros_like(weight) for weight in by_hand]
    reference = network()
    for step in range(5):
        now = lr * (1 - step / 10)
        for group in (*optimizer.param_groups, *composers.param_groups):
            group["lr"] = now
        optimizer.step(closure_of(ours))
        composers.step(closure_of(theirs))
        for parameter, weight in zip(reference.parameters(), by_hand, strict=True):
            parameter.data.copy_(weight)
        gradients = torch.autograd.grad(loss_of(reference), list(reference.parameters()))
        velocity = [momentum * v + gradient for v, gradient in zip(velocity, gradients, strict=True)]
        by_hand = [w * (1 - now / lr * decay) - now * v for w, v in zip(by_hand, velocity, strict=True)]
    assert_close(weights_of(ours), by_hand)
    assert_close(weights_of(ours), weights_of(theirs))


def test_sam_steps_with_the_gradient_uphill() -> None:
    net, rho, lr = network(), 0.5, 0.1
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=lr), rho, every=1)
    by_hand = weights_of(net)
    for _ in range(3):
        optimizer.step(closure_of(net))
        reference = network()
        for parameter, weight in zip(reference.parameters(), by_hand, strict=True):
            parameter.data.copy_(weight)
        first = torch.autograd.grad(loss_of(reference), list(reference.parameters()))
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in first))  # type: ignore[arg-type] # of tensors
        for parameter, gradient in zip(reference.parameters(), first, strict=True):
            parameter.data.add_(rho * gradient / norm)
        uphill = torch.autograd.grad(loss_of(reference), list(reference.parameters()))
        by_hand = [weight - lr * gradient for weight, gradient in zip(by_hand, uphill, strict=True)]
    assert_close(weights_of(net), by_hand)


def test_sam_acts_every_so_many_steps_and_its_first_pass_is_each_ranks_own() -> None:
    net, calls = network(), []  # type: ignore[var-annotated] # of options
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), 0.5, every=3)
    for _ in range(6):
        optimizer.step(closure_of(net, calls))
    uphill: list[dict[str, Any]] = [{}, {}, {"ddp_sync": False}, {"loss_dict": {}}]
    assert calls == uphill * 2


@pytest.mark.parametrize("skipped", [1, 2], ids=["the first pass", "the second pass"])
def test_a_pass_that_overflowed_leaves_the_weights_bit_for_bit(skipped: int) -> None:
    net = network()
    optimizer, before = SAM(torch.optim.SGD(net.parameters(), lr=0.1), 0.5, every=1), weights_of(net)
    passes = []

    def overflowing(**options: Any) -> float | None:
        passes.append(options)
        loss = closure_of(net)()
        return None if len(passes) == skipped else loss

    optimizer.step(overflowing)
    assert len(passes) == skipped
    assert all(torch.equal(one, other) for one, other in zip(weights_of(net), before, strict=True))


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_saved_optimizer_goes_on_bit_for_bit(decoupled: bool) -> None:
    config = OptimizerConfig(lr=0.1, momentum=0.9, nesterov=True, decoupled=decoupled, weight_decay=0.01)
    whole, sam = network(), SAMConfig(rho=0.1, every_batches=3)
    optimizer = build_optimizer(config, whole, 0.1, sam)
    for _ in range(4):
        optimizer.step(closure_of(whole))
    resumed = network()
    resumed.load_state_dict(whole.state_dict())
    again = build_optimizer(config, resumed, 0.1, sam)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(4):
        optimizer.step(closure_of(whole))
        again.step(closure_of(resumed))
    assert all(torch.equal(one, other) for one, other in zip(weights_of(whole), weights_of(resumed), strict=True))
    assert again.param_groups[0]["sam_steps"] == 8
