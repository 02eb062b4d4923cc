"""Every shipped recipe and every algorithm alone: some batches through the launcher's start and the rank, killed in
mid-epoch and continued, against the run never stopped."""

import json
import warnings
from pathlib import Path

import pytest

from imagenet_mds.resources import recipe_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.core import Event

    from tests.support.forked import End, Moment, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what torch and Composer deprecate, as in a rank; of the fork
]

BATCHES_PER_EPOCH = 3
SMALL = (
    "global_batch_size=8",
    f"data={{subset: {8 * BATCHES_PER_EPOCH}, workers_per_rank: 0, verify_shards: false}}",
    "augment.size_px=32",
    "evaluation={resize_px: 36, crop_px: 32, device_batch_size: 32, workers_per_rank: 0, subset: 20}",
    "schedule={epochs: 3, warmup_epochs: 0.5}",
    "checkpoint.every_batches=2",
    "logging.every_batches=1",
)
KILLED = Moment(Event.BATCH_END, 2 * BATCHES_PER_EPOCH - 1)
"""After the last batch but one of the second epoch, which is not saved; the one before it is."""

ALONE = {
    "nothing": "algorithms={mixup: null, label_smoothing: null, ema: null}",
    "mixup": "algorithms={mixup: {alpha: 0.4}}",
    "cutmix": "algorithms={cutmix: {}}",
    "colout": "algorithms={colout: {}}",
    "label smoothing": "algorithms={label_smoothing: {}}",
    "stochastic depth": "algorithms={stochastic_depth: {drop_rate: 0.5}}",
    "ema": "algorithms={ema: {half_life_batches: 3, every_batches: 2}}",
    "swa": "algorithms={swa: {from_epoch: 40%}}",
    "sam": "algorithms={sam: {rho: 0.1, every_batches: 2}}",
    "blurpool": "algorithms={blurpool: all}",
    "decoupled": "optimizer={decoupled: true, weight_decay: 0.01}",
    "binary cross entropy": "loss=binary_cross_entropy",
    "microbatches": "system.device_microbatch_size=4",
    "progressive": "augment.progressive={start_px: 16, until_epoch: 67%, step_px: 8}",
}


def assert_exact(dataset: Path, folder: Path, recipe: tuple[str, ...]) -> End:
    """Train twice, the second time killed and continued; both end alike. Return the end."""
    assert start(dataset, folder / "whole", recipe)
    assert not start(dataset, folder / "killed", recipe, KILLED)
    assert start(dataset, folder / "killed", recipe)
    whole = End.of(folder / "whole")
    End.of(folder / "killed").assert_same(whole)
    return whole


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_exact_over_a_kill(dataset: Path, tmp_path: Path, name: str) -> None:
    progressive = () if name == "classic" else ("augment.progressive={start_px: 16, step_px: 8}",)
    often = ("algorithms.sam.every_batches=2",) if name != "mild" else ()
    # The demo's own settings would win over the recipe.
    own = ("optimizer={lr: 0.02, lr_batch_size: 8}", "algorithms.ema={half_life_batches: 3, every_batches: 2}")
    end = assert_exact(dataset, tmp_path, (f"recipe={name}", *SMALL, *own, *progressive, *often))
    assert len(end.losses) == 3 * BATCHES_PER_EPOCH


@pytest.mark.parametrize("name", list(ALONE))
def test_an_algorithm_alone_is_exact_over_a_kill(dataset: Path, tmp_path: Path, name: str) -> None:
    off = "algorithms={mixup: null, label_smoothing: null, ema: null}"
    assert_exact(dataset, tmp_path, (*SMALL, "optimizer.lr=0.05", off, ALONE[name]))


def test_the_learning_rate_is_that_of_its_own_batch(dataset: Path, tmp_path: Path) -> None:
    """Composer's schedulers give each batch the rate of the one before."""
    assert start(dataset, tmp_path / "run", (*SMALL, "optimizer.lr=0.05"))
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    rates = [event["next_lr"] for event in map(json.loads, log.splitlines()) if event["event"] == "batch"]
    # One batch and a half of warm-up are two; then a cosine over the other seven, which ends at nothing.
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
