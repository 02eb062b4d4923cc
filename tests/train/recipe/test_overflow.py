"""An overflow in fp16 leaves no trace in BatchNorm's running statistics."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.core import Event

    from imagenet_mds_train.recipe.overflow import OverflowGuard

pytestmark = pytest.mark.slow  # imports composer


def test_statistics_of_a_batch_that_overflowed_are_those_of_the_batch_before() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    state: Any = SimpleNamespace(model=model)
    guard = OverflowGuard()

    def passes(inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        model(inputs)
        assert guard.match(Event.AFTER_TRAIN_BATCH, state)
        guard.apply(Event.AFTER_TRAIN_BATCH, state, None)  # type: ignore[arg-type] # it does not log
        return {name: buffer.clone() for name, buffer in model.named_buffers()}

    guard.apply(Event.FIT_START, state, None)  # type: ignore[arg-type] # it does not log
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    good = passes(inputs)
    assert float(good["0.running_mean"].abs().max()) > 0
    for poison in (float("inf"), float("nan")):
        spoilt = inputs.clone()
        spoilt[0, 0] = poison
        after = passes(spoilt)
        for name in after:
            if "tracked" not in name:
                assert torch.equal(after[name], good[name]), name
    later = passes(inputs * 2)
    assert all(torch.isfinite(statistic).all() for statistic in later.values())
    assert not torch.equal(later["0.running_var"], good["0.running_var"])
