"""`find-lr`: the sweep is of the training that it stands for, says what to pass, and leaves nothing behind."""

import json
import math
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import HANG_SECONDS, done, run, start, wait_until

pytestmark = pytest.mark.slow  # starts whole trainings

SMALL = (
    "global_batch_size=16",
    "augment={size_px: 24}",
    "evaluation={resize_px: 28, crop_px: 24, workers_per_rank: 0}",
    "data={workers_per_rank: 0}",
    "logging.print_every_batches=1",
)
"""Nine batches an epoch."""

BATCHES = 40

EASY = (
    "global_batch_size=158",
    "augment.scale=[0.95, 1.0]",
    "optimizer={momentum: 0.0, lr_batch_size: 79}",
    "algorithms={mixup: null, label_smoothing: null}",
)
"""Every image in each batch, so that the loss falls with little noise and its curve has a minimum."""


def command(dataset: Path, *more: object) -> list[object]:
    """The arguments of a sweep over several epochs."""
    return ["find-lr", "--config", "demo", "--data", dataset, "--batches", BATCHES, *SMALL, *more]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder for commands, of a path that is short enough for their sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def test_a_sweep_is_of_the_training_and_says_what_to_pass(dataset: Path, tmp_path: Path, temporary: Path) -> None:
    out = tmp_path / "new" / "lr"
    sweep = command(dataset, "--out", out, "--from", 1e-3, "--to", 100, *EASY)
    outcome = run(*sweep, cwd=tmp_path, TMPDIR=str(temporary))
    assert outcome.status == 0, outcome.err
    found = json.loads((out / "lr.json").read_bytes())
    lrs, losses, suggested = found["lrs"], found["losses"], found["suggestions"]
    assert BATCHES // 2 < len(lrs) == len(losses) == len(found["smoothed"]) <= BATCHES
    assert (lrs[0], found["settings"]["from"], found["settings"]["to"]) == (1e-3, 1e-3, 100)
    assert lrs[0] < suggested["steepest"]["lr"] <= found["minimum_lr"] < lrs[-1]
    for name, words in (("steepest", "steepest descent:"), ("tenth_of_minimum", "a tenth of that:")):
        assert suggested[name]["optimizer.lr"] == pytest.approx(suggested[name]["lr"] * 79 / 158)
        (line,) = (line for line in outcome.out.splitlines() if line.startswith(words))
        assert f"optimizer.lr={suggested[name]['optimizer.lr']:.2g}, for optimizer.lr_batch_size=79: " in line
        assert line.endswith(f"the rate is {suggested[name]['lr']:.2g} at 158 images a step")
    with Image.open(out / "lr.png") as image:
        assert image.size > (600, 400)
    assert sorted(path.name for path in out.iterdir()) == ["lr.json", "lr.png"]
    # Nothing but that: neither where a run would be, nor where the sweep's own run was.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert list(temporary.iterdir()) == []
    # The loss of the first batch is of the weights before its step, so that a training begins with the same.
    short = ("schedule={epochs: 1, warmup_epochs: 0}", "evaluation.every_epochs=null")
    done("train", "--config", "demo", "--data", dataset, "--save", tmp_path, "--run-name", "r", *SMALL, *EASY, *short)
    events = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert next(event for event in events if event["event"] == "batch")["loss"] == losses[0]


def test_two_ranks_agree_and_a_loss_that_diverges_ends_the_sweep(dataset: Path, temporary: Path) -> None:
    more = ("--ranks", 2, "--from", 1e-2, "--to", 1e30, "--json", "algorithms.sam={every_batches: 2}")
    outcome = run(*command(dataset, *more), cwd=temporary, TMPDIR=str(temporary))
    assert outcome.status in (0, 2), outcome.err
    assert "Traceback" not in outcome.err
    batches = sum(line.startswith("batch ") for line in outcome.err.splitlines())
    assert 2 <= batches < BATCHES
    if outcome.status == 0:
        found = json.loads(outcome.out)
        assert len(found["losses"]) == batches
        assert found["smoothed"][-1] is None or found["smoothed"][-1] > 4 * min(found["smoothed"])
    else:
        assert "pass a smaller --from" in outcome.err
    assert list(temporary.iterdir()) == []


def test_a_curve_without_a_minimum_is_written_and_refused_in_one_line(dataset: Path, temporary: Path) -> None:
    growing = "augment={size_px: 32, progressive: {start_px: 24, until_epoch: 1, step_px: 8}}"
    outcome = run(
        *command(dataset, "--from", 1e-9, "--to", 1e-8, "--batches", 20, "--out", temporary / "out", growing),
        TMPDIR=str(temporary),
    )
    assert outcome.status == 2, outcome.out
    last = outcome.err.splitlines()[-1]
    assert last.startswith("imagenet-mds: the loss never falls between learning rates 1e-09 and 1e-08: pass a ")
    assert last.endswith(f"The curve is in {temporary}/out/lr.png")
    assert "note: the run's images grow from 24 to 32 px; the sweep is at 24 px, as the first epoch" in outcome.err
    found = json.loads((temporary / "out" / "lr.json").read_bytes())
    assert (len(found["losses"]), found["suggestions"], found["minimum_lr"]) == (20, {}, None)
    assert all(map(math.isfinite, found["losses"]))
    assert [path.name for path in temporary.iterdir()] == ["out"]


def test_ctrl_c_leaves_nothing(dataset: Path, tmp_path: Path, temporary: Path) -> None:
    log = tmp_path / "log"
    sweep = command(dataset, "--batches", 100_000, "--out", temporary / "out")
    process = start(*sweep, log=log, TMPDIR=str(temporary))
    wait_until(lambda: "batch 2/" in log.read_text(), "a batch", process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANG_SECONDS) == 75
    said = log.read_text()
    assert "Exiting after this batch. Another Ctrl-C kills at once." in said
    assert said.endswith("imagenet-mds: the sweep was stopped; nothing of it is kept\n")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "pass either --phase 1, 2 or 3 or --config FILE"),
        (("--config", "demo"), "pass --data DATASET: the folder that `imagenet-mds convert` wrote"),
        (("--config", "demo", "--data", "none"), "there is no dataset at none"),
        (("--config", "demo", "--data", "none", "--from", "1", "--to", "0.1"), "--from 1 and --to 0.1: pass two learn"),
        (("--config", "demo", "--data", "none", "--from", "0"), "--from 0 and --to 10: pass two learning rates above"),
        (("--config", "demo", "--data", "none", "--to", "nan"), "--from 1e-05 and --to nan: pass two learning rates"),
        (
            ("--config", "demo", "--data", "none", "--batches", "5"),
            "Invalid value for '--batches': Input should be greater",
        ),
        (("--config", "demo", "--data", "none", "--out", "/dev/null/lr"), "/dev/null is a file: choose a folder"),
        (("--config", "demo", "--data", "none", "optimizer.rl=1"), "unknown key optimizer.rl"),
    ],
)
def test_what_cannot_work_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    outcome = run("find-lr", *arguments)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome.err
    assert words in outcome.err


def test_a_dataset_that_fills_no_batch_is_refused_before_a_rank_starts(dataset: Path, temporary: Path) -> None:
    outcome = run(*command(dataset, "global_batch_size=512"), TMPDIR=str(temporary))
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "training images do not fill one batch of global_batch_size=512" in outcome.err
    assert list(temporary.iterdir()) == []
