"""A run killed twice, at each pair of neighbouring moments around an epoch's end, against the run never stopped: every
loss, every weight, every draw."""

import shutil
import warnings
from itertools import product
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.core import Event

    from tests.support.forked import End, Moment, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what torch and Composer deprecate, as in a rank; of the fork
]

BATCHES_PER_EPOCH = 3
RECIPE = (
    "global_batch_size=16",
    f"data={{subset: {16 * BATCHES_PER_EPOCH}, workers_per_rank: 0, verify_shards: false}}",
    "augment={size_px: 16}",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 32, workers_per_rank: 0}",
    "schedule={epochs: 2, warmup_epochs: 0}",
    "optimizer.lr=0.05",
    # Stochastic depth draws from torch's generator, which a checkpoint holds; mixing from the batch's number.
    "algorithms={mixup: {alpha: 0.2}, cutmix: {alpha: 1.0}, ema: {half_life_batches: 3}, stochastic_depth: {}}",
    "logging.every_batches=1",
)
MOMENTS = {
    "before the last batch is saved": Moment(Event.BATCH_CHECKPOINT, BATCHES_PER_EPOCH, "first"),
    "before its record is written": Moment("record", BATCHES_PER_EPOCH),
    "after the last batch is saved": Moment(Event.BATCH_CHECKPOINT, BATCHES_PER_EPOCH),
    "within the validation": Moment(Event.EVAL_BATCH_END, BATCHES_PER_EPOCH),
    "after the validation": Moment(Event.EVAL_END, BATCHES_PER_EPOCH),
    "before the epoch is saved": Moment(Event.EPOCH_CHECKPOINT, BATCHES_PER_EPOCH, "first"),
    "after the epoch is saved": Moment(Event.EPOCH_CHECKPOINT, BATCHES_PER_EPOCH),
    "before the first batch of the next epoch": Moment(Event.AFTER_DATALOADER, BATCHES_PER_EPOCH, "first"),
    "after it": Moment(Event.BATCH_END, BATCHES_PER_EPOCH + 1),
}


@pytest.fixture(scope="module")
def whole(dataset: Path, module_folder: Path) -> End:
    """The run never stopped."""
    folder = module_folder / "whole" / "run"
    assert start(dataset, folder, RECIPE)
    return End.of(folder)


@pytest.fixture(scope="module")
def killed_once(dataset: Path, whole: End, module_folder: Path) -> dict[str, Path]:
    """The run killed at each moment."""
    folders = {name: module_folder / "once" / name / "run" for name in MOMENTS}
    assert not any(start(dataset, folder, RECIPE, MOMENTS[name]) for name, folder in folders.items())
    return folders


def neighbours() -> list[tuple[str, str]]:
    """Pairs of moments that follow each other, in both orders, and each moment with itself."""
    names = list(MOMENTS)
    return [(one, other) for one, other in product(names, names) if abs(names.index(one) - names.index(other)) <= 1]


@pytest.mark.parametrize(("one", "other"), neighbours())
def test_a_run_killed_twice_is_the_run_never_stopped(
    dataset: Path, whole: End, killed_once: dict[str, Path], tmp_path: Path, one: str, other: str
) -> None:
    folder = Path(shutil.copytree(killed_once[one], tmp_path / "run"))
    # A moment that the first start has passed, and saved, does not come again.
    assert start(dataset, folder, RECIPE, MOMENTS[other]) or start(dataset, folder, RECIPE)
    End.of(folder).assert_same(whole)
