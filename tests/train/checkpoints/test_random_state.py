"""The random state that is saved is the one that the next batch draws from, also before it was restored."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing Composer deprecates
    from composer.utils import reproducibility

    from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume

pytestmark = pytest.mark.slow  # imports composer


def drawn_after(state: list[dict[str, Any]]) -> float:
    """What NumPy draws first from a saved state."""
    reproducibility.load_rng_state(state)
    return float(np.random.rand())


@pytest.mark.filterwarnings("ignore:::composer")
def test_a_state_that_is_not_restored_yet_is_saved_again() -> None:
    """A run that resumes at an epoch's last batch saves the epoch's end before it draws anything."""
    np.random.seed(7)
    loaded = reproducibility.get_rng_state()
    expected = drawn_after(loaded)
    np.random.seed(8)  # what the process drew before the first resumed batch
    random_state, nothing = RandomStateOnResume(), SimpleNamespace()
    random_state.trainer = SimpleNamespace(_rng_state=loaded)  # type: ignore[assignment] # all that is used of it
    assert drawn_after(random_state.to_save()) == expected
    random_state.after_dataloader(nothing, nothing)  # type: ignore[arg-type] # not used
    assert drawn_after(random_state.to_save()) == expected
    reproducibility.load_rng_state(loaded)
    np.random.rand()
    second = float(np.random.rand())
    reproducibility.load_rng_state(loaded)
    np.random.rand()
    assert drawn_after(random_state.to_save()) == second


@pytest.mark.filterwarnings("ignore:::composer")
def test_a_fresh_run_saves_its_own_state() -> None:
    np.random.seed(3)
    state = RandomStateOnResume().to_save()
    expected = float(np.random.rand())
    assert drawn_after(state) == expected
