"""The average of the weights: its formula, its names on any number of ranks, and the states that it continues from."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from imagenet_mds.errors import WorldError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.algorithms.ema import ema as composers
    from composer.core import Event

    from imagenet_mds_train.recipe.average import EMA, SWA, WeightAverage, update_average

pytestmark = pytest.mark.slow  # imports composer


class Network(nn.Module):
    """Parameters, a running mean and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)


class FakeState:
    """What an average sees of Composer's state: the model, and how many batches of how many epochs are finished."""

    def __init__(self, model: nn.Module, batch: int = 1, batches_per_epoch: int = 1) -> None:
        epochs = (batch - 1) // batches_per_epoch
        self.model = model
        self.dataloader_len = SimpleNamespace(value=batches_per_epoch)
        self.timestamp = SimpleNamespace(
            batch=SimpleNamespace(value=batch),
            epoch=SimpleNamespace(value=epochs),
            batch_in_epoch=SimpleNamespace(value=batch - epochs * batches_per_epoch),
        )


def step(model: nn.Module, seed: int) -> None:
    """Change every parameter and buffer, as a batch does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all tensors by name."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    named = (*inner.named_parameters(), *inner.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def apply(average: WeightAverage, event: Event, model: nn.Module, batch: int = 1, batches_per_epoch: int = 1) -> None:
    """Send an event to the average after the given number of batches."""
    state: Any = FakeState(model, batch, batches_per_epoch)
    assert average.match(event, state)
    average.apply(event, state, None)  # type: ignore[arg-type] # it does not log


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, which is what DDP needs."""
    file = tmp_path_factory.mktemp("group") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrapped(model: nn.Module) -> nn.Module:
    """As a rank among several has it."""
    return nn.parallel.DistributedDataParallel(model)


def test_it_is_the_sum_of_weights_that_halve() -> None:
    model, average = Network(), EMA(half_life_batches=3)
    history = []
    for batch in range(7):
        step(model, batch)
        history.append(values(model))
        apply(average, Event.BATCH_END, model)
    expected = dict(history[0])
    for later in history[1:]:
        for name, now in later.items():
            if now.is_floating_point():
                expected[name] = expected[name].double() * 0.5 ** (1 / 3) + now.double() * (1 - 0.5 ** (1 / 3))
            else:
                expected[name] = now
    training = values(model)
    apply(average, Event.EVAL_START, model)
    for name, now in values(model).items():
        torch.testing.assert_close(now.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    apply(average, Event.EVAL_END, model)
    assert same(values(model), training)


def test_it_is_composers_average() -> None:
    ours, theirs = Network(), Network()
    theirs.load_state_dict(ours.state_dict())
    average, parameters = EMA(half_life_batches=5), None
    for batch in range(6):
        step(ours, batch)
        step(theirs, batch)
        apply(average, Event.BATCH_END, ours)
        parameters = parameters or composers.EMAParameters(theirs)
        composers.compute_ema(theirs, parameters, smoothing=2 ** (-1 / 5))
    assert parameters is not None
    with average.in_model(ours):
        for name, expected in parameters.named_parameters_dict.items():
            torch.testing.assert_close(values(ours)[name], expected)


def test_a_checkpoint_has_the_average_in_the_model_and_goes_on_bit_for_bit() -> None:
    whole, average = Network(), EMA(half_life_batches=3)
    for batch in range(4):
        step(whole, batch)
        apply(average, Event.BATCH_END, whole)
    with average.in_model(whole):
        saved = copy.deepcopy((values(whole), average.state_dict()))
    assert saved[1]["ema_weights_active"]
    resumed, again = Network(), EMA(half_life_batches=3)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    apply(again, Event.FIT_START, resumed)
    assert same(values(resumed), values(whole))
    for model, one in ((whole, average), (resumed, again)):
        for batch in range(4, 8):
            step(model, batch)
            apply(one, Event.BATCH_END, model)
        apply(one, Event.EVAL_START, model)
    assert same(values(resumed), values(whole))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)], ids=["from one to several", "from several to one"])
@pytest.mark.parametrize("saver", ["ours", "Composer's"])
def test_it_goes_on_between_one_rank_and_several(ranks: tuple[int, int], saver: str) -> None:
    models = [wrapped(Network()) if count > 1 else Network() for count in ranks]
    first, second = models
    if saver == "ours":
        average = EMA(half_life_batches=3)
        for batch in range(4):
            step(first, batch)
            apply(average, Event.BATCH_END, first)
        with average.in_model(first):
            weights, state = values(first), copy.deepcopy(average.state_dict())
        training = values(first)
    else:
        theirs: Any = composers.EMA(half_life="3ba", update_interval="1ba")
        for batch in range(4):
            step(first, batch)
            theirs.ema_model = theirs.ema_model or composers.EMAParameters(first)
            composers.compute_ema(first, theirs.ema_model, smoothing=theirs.smoothing)
        theirs.ema_started, training = True, values(first)
        theirs.ema_model.swap_params(first)
        theirs.ema_weights_active = True
        weights, state = values(first), copy.deepcopy(theirs.state_dict())
    inner = second.module if isinstance(second, nn.parallel.DistributedDataParallel) else second
    inner.load_state_dict(weights)
    again = EMA(half_life_batches=3)
    again.load_state_dict(state)
    apply(again, Event.FIT_START, second)
    assert same(values(second), training)
    step(second, 4)
    expected = [weights[name] for name in values(second)]
    update_average(expected, list(values(second).values()), again.weight)
    apply(again, Event.BATCH_END, second)
    apply(again, Event.EVAL_START, second)
    assert all(torch.equal(now, then) for now, then in zip(values(second).values(), expected, strict=True))


def test_an_average_of_another_network_is_refused() -> None:
    model, average = Network(), EMA(half_life_batches=3)
    step(model, 0)
    apply(average, Event.BATCH_END, model)
    with average.in_model(model):
        state = average.state_dict()
    other = EMA(half_life_batches=3)
    other.load_state_dict(state)
    with pytest.raises(WorldError, match="is of another network: continue the run with the version"):
        apply(other, Event.FIT_START, nn.Linear(3, 4))


def test_nothing_is_averaged_before_the_first_batch(tmp_path: Path) -> None:
    model, average = Network(), EMA(half_life_batches=3)
    before = values(model)
    for event in (Event.FIT_START, Event.EVAL_START, Event.EVAL_END):
        apply(average, event, model)
    assert same(values(model), before)
    again = EMA(half_life_batches=3)
    again.load_state_dict(average.state_dict())
    with again.in_model(model):
        assert same(values(model), before)


def test_an_average_of_every_fourth_batch_moves_as_far_as_one_of_each() -> None:
    model, average = Network(), EMA(half_life_batches=12, every_batches=4)
    saved = []
    for batch in range(1, 13):
        step(model, batch)
        apply(average, Event.BATCH_END, model, batch)
        if batch % 4 == 0:
            saved.append(values(model))
    expected = saved[0]
    for later in saved[1:]:
        for name, now in later.items():
            expected[name] = torch.lerp(expected[name], now, 1 - 0.5 ** (4 / 12)) if now.is_floating_point() else now
    with average.in_model(model):
        for name, now in values(model).items():
            torch.testing.assert_close(now, expected[name])


def test_swa_is_the_mean_of_the_ends_of_the_last_epochs_over_a_save() -> None:
    model, average, batches_per_epoch = Network(), SWA(from_epoch=2), 3
    ends = []
    for batch in range(1, 16):
        step(model, batch)
        apply(average, Event.BATCH_END, model, batch, batches_per_epoch)
        if batch in (9, 12, 15):  # the third, fourth and fifth epoch
            ends.append(values(model))
        if batch == 6:
            before = values(model)
            with average.in_model(model):
                assert same(values(model), before), "no average yet"
        if batch == 13:  # a run that is continued in mid-epoch
            with average.in_model(model):
                weights, state = values(model), copy.deepcopy(average.state_dict())
            model, average = Network(), SWA(from_epoch=2)
            model.load_state_dict(weights)
            average.load_state_dict(state)
            apply(average, Event.FIT_START, model, batch)
    assert average.updates == 3
    with average.in_model(model):
        for name, now in values(model).items():
            if now.is_floating_point():
                torch.testing.assert_close(now, torch.stack([end[name] for end in ends]).mean(0))
            else:
                assert torch.equal(now, ends[-1][name])
