"""A run killed in mid-epoch and continued ends with the weights of the run never stopped, bit for bit, on the CPU."""

import csv
import json
import operator
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenet_mds.process.attempt import SHARED_MEMORY
from tests.support.command import HANG_SECONDS, done, run, start, wait_until
from tests.support.states import assert_same, read_log, read_state, tree_of

EPOCHS = 3
BATCHES_PER_EPOCH = 158 // 8

RECIPE = (
    "global_batch_size=8",
    "augment.size_px=32",
    "augment.color_jitter={brightness: 0.2}",
    "evaluation={resize_px: 36, crop_px: 32, device_batch_size: 16, workers_per_rank: 1}",
    "model.depth=10",
    "loss=binary_cross_entropy",
    "optimizer={lr: 0.02, decoupled: true, weight_decay: 0.001}",
    f"schedule={{epochs: {EPOCHS}, warmup_epochs: 0.5}}",
    "algorithms={mixup: {alpha: 0.2}, cutmix: {}, colout: {}, label_smoothing: {smoothing: 0.1}, blurpool: all}",
    "algorithms={stochastic_depth: {drop_rate: 0.2}, sam: {rho: 0.1, every_batches: 3}, ema: {half_life_batches: 10}}",
    "data.workers_per_rank=2",
    "system.deterministic=true",
    "logging.every_batches=1",
)


@dataclass(frozen=True)
class Runs:
    """Runs of one dataset under one folder, all of the same recipe."""

    dataset: Path
    folder: Path
    blocks: dict[str, list[str]] = field(default_factory=dict)

    def command(self, name: str, ranks: int, *overrides: str) -> list[object]:
        """The arguments that start a run and that continue it."""
        known = ["train", "--config", "demo", "--data", self.dataset, "--save", self.folder, "--run-name", name]
        return [*known, "--ranks", ranks, *RECIPE, *overrides]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The run's log so far, but for a line being written."""
        return read_log(self.folder / name / "log.jsonl")

    def interrupt(
        self, name: str, number: int, ranks: int, *overrides: str, after: Callable[[int], bool], to_all: bool = False
    ) -> int:
        """Start or continue a run, send a signal once it has logged a batch that suits, `to_all` of its processes or to
        the command's alone; return the exit status."""
        log = self.folder / f"{name}.out"
        process = start(*self.command(name, ranks, *overrides), log=log)
        try:
            while not any(event["event"] == "batch" and after(event["batch"]) for event in self.events(name)):
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.005)
            self.blocks[name] = blocks_of(process.pid)
            assert self.blocks[name]
            for pid in tree_of(process.pid) if to_all else [process.pid]:
                os.kill(pid, number)
            return process.wait(timeout=HANG_SECONDS)
        finally:
            process.kill()
            process.wait()

    def final(self, name: str) -> dict[str, Any]:
        """The last checkpoint's state."""
        path = self.folder / name / "checkpoints" / f"ep{EPOCHS}-ba{EPOCHS * BATCHES_PER_EPOCH}.pt"
        return read_state(path)

    def losses(self, name: str) -> dict[int, set[float]]:
        """Every loss logged for each batch."""
        losses: dict[int, set[float]] = {}
        for event in self.events(name):
            if event["event"] == "batch":
                losses.setdefault(event["batch"], set()).add(event["loss"])
        return losses


def blocks_of(pid: int) -> list[str]:
    """The shared memory of a command's attempt: its owner file and its blocks."""
    owner = next(
        path for path in SHARED_MEMORY.glob("imagenet-mds-*") if path.read_text(encoding="ascii") == f"{pid}\n"
    )
    number = owner.name.removeprefix("imagenet-mds-")
    return [path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(number)]


@pytest.fixture(scope="module")
def runs(dataset: Path, module_folder: Path) -> Runs:
    """Where the runs of this module lie."""
    return Runs(dataset, module_folder)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Runs:
    """With `whole1` and `whole2`, runs on 1 and 2 ranks that were never stopped."""
    for ranks in (1, 2):
        done(*runs.command(f"whole{ranks}", ranks, "checkpoint.every_batches=7"))
    return runs


def assert_same_end(runs: Runs, one: str, other: str) -> None:
    """The last checkpoints agree in every bit of weights, averaged weights and momentum; so does every loss."""
    first, second = runs.final(one), runs.final(other)
    assert_same(first["model"], second["model"], "model")
    assert_same(first["optimizers"], second["optimizers"], "optimizers")
    assert_same(dict(first["algorithms"])["EMA"]["ema_model"], dict(second["algorithms"])["EMA"]["ema_model"], "EMA")
    assert runs.losses(one) == runs.losses(other)


def elastic(runs: Runs, name: str, batches: int, *overrides: str) -> dict[int, Any]:
    """Train `batches` batches on 2 ranks, then on 1, then on 2 again, with a stop in between. Return every checkpoint's
    state by its batch."""
    saving = ("checkpoint.every_batches=1", "checkpoint.keep=1000", *overrides)
    stopped = [0]
    for ranks in (2, 1):
        until = stopped[-1] + batches // 3
        status = runs.interrupt(name, signal.SIGTERM, ranks, *saving, after=partial(operator.le, until))
        assert status == 75
        stopped.append(runs.events(name)[-1]["batch"])
    done(*runs.command(name, 2, *saving))
    assert [event["ranks"] for event in runs.events(name) if event["event"] == "start"] == [2, 1, 2]
    states: dict[int, Any] = {}
    for path in (runs.folder / name / "checkpoints").glob("ep*-ba*.pt"):
        saved = torch.load(path, weights_only=False)["state"]
        states[saved["timestamp"]["Timestamp"]["batch"]] = saved
    assert 0 < stopped[1] < stopped[2] < max(states) == batches
    return states


def test_ema_moves_on_when_the_number_of_ranks_changes(runs: Runs) -> None:
    """Every batch is saved, so that the average of each follows from the one before and the weights beside it."""
    states = elastic(runs, "elastic-ema", BATCHES_PER_EPOCH, "schedule.epochs=1")
    weight = 1 - 2 ** (-1 / 10)
    for batch in range(2, max(states) + 1):
        training = dict(states[batch]["algorithms"])["EMA"]["ema_model"]["named_parameters_dict"]
        moved = 0
        for key, now in states[batch]["model"].items():
            before, current = states[batch - 1]["model"][key], training[key]
            expected = torch.lerp(before, current, weight) if now.is_floating_point() else current
            torch.testing.assert_close(now, expected, rtol=0, atol=1e-7)
            moved += not torch.equal(now, before)
        assert moved > len(training) / 2, batch
        assert states[batch]["optimizers"]["SAM"]["param_groups"][0]["sam_steps"] == batch


def test_swa_moves_on_when_the_number_of_ranks_changes(runs: Runs) -> None:
    """The end of the run has the mean of the weights at the ends of its epochs, each of which had other ranks."""
    swa = ("algorithms.ema=null", "algorithms.swa={from_epoch: 0}", "data.subset=80")
    states = elastic(runs, "elastic-swa", 10 * EPOCHS, *swa)
    ends = [states[batch] for batch in sorted(states) if batch % 10 == 0]
    trained = [dict(state["algorithms"])["SWA"]["ema_model"]["named_parameters_dict"] for state in ends]
    assert len(trained) == EPOCHS
    for key, average in ends[-1]["model"].items():
        if average.is_floating_point():
            expected = torch.stack([weights[key] for weights in trained]).mean(0)
            torch.testing.assert_close(average, expected, rtol=1e-6, atol=1e-6)
            assert key.endswith(("bias", "blur_filter", "filt2d")) or not torch.equal(average, trained[-1][key]), key


def processes_of(folder: Path) -> list[str]:
    """Command lines of live processes that name a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended in the meantime
            continue
        if str(folder) in line and int(process.name) != os.getpid():
            found.append(line)
    return found


def wait_for_nothing_left(folder: Path) -> None:
    """Ranks and loader workers end with the launcher."""
    wait_until(lambda: not processes_of(folder), "the end of ranks and workers")


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_in_mid_epoch_and_continued(whole: Runs, ranks: int) -> None:
    name, every = f"killed{ranks}", "checkpoint.every_batches=7"

    def is_saved_in_mid_epoch(batch: int) -> bool:
        saved = [event["batch"] for event in whole.events(name) if event["event"] == "checkpoint"]
        return batch > BATCHES_PER_EPOCH and max(saved, default=0) % BATCHES_PER_EPOCH > 0

    status = whole.interrupt(name, signal.SIGKILL, ranks, every, after=is_saved_in_mid_epoch)
    assert status == -signal.SIGKILL
    wait_for_nothing_left(whole.folder / name)
    outcome = done(*whole.command(name, ranks, every))
    starts = [event["batch"] for event in whole.events(name) if event["event"] == "start"]
    assert starts[0] == 0
    assert starts[1] % BATCHES_PER_EPOCH, "it should have gone on in mid-epoch"
    assert f"batch {starts[1]} of {EPOCHS * BATCHES_PER_EPOCH}" in outcome.out
    assert_same_end(whole, f"whole{ranks}", name)


def test_killed_and_continued_from_an_epochs_end(whole: Runs) -> None:
    """Composer with a StreamingDataset repeats the epoch that ended (its default interval is the epoch)."""
    every = "checkpoint.every_batches=null"
    whole.interrupt("epoch", signal.SIGKILL, 1, every, after=lambda batch: batch >= BATCHES_PER_EPOCH + 4)
    done(*whole.command("epoch", 1, every))
    assert [event["batch"] for event in whole.events("epoch") if event["event"] == "start"] == [0, BATCHES_PER_EPOCH]
    assert_same_end(whole, "whole1", "epoch")


@pytest.mark.parametrize("to_all", [False, True])
def test_stopped_in_good_order_loses_no_batch(whole: Runs, to_all: bool) -> None:
    """By a signal to the command, or to every process of the run, loader workers too, as systemd sends it."""
    every, name = "checkpoint.every_batches=null", f"stopped{to_all}"
    status = whole.interrupt(name, signal.SIGTERM, 2, every, after=lambda batch: batch >= 5, to_all=to_all)
    assert status == 75, (whole.folder / f"{name}.out").read_text(encoding="utf-8")
    wait_for_nothing_left(whole.folder / name)
    events = whole.events(name)
    last = max(event["batch"] for event in events if event["event"] == "batch")
    assert events[-1] | {"time": 0} == {"event": "stopped", "attempt": 1, "time": 0, "batch": last}
    assert not any((SHARED_MEMORY / block).exists() for block in whole.blocks[name])
    done(*whole.command(name, 2, every))
    assert [event["batch"] for event in whole.events(name) if event["event"] == "start"] == [0, last]
    assert_same_end(whole, "whole2", name)


def test_the_same_command_after_the_end_says_so(whole: Runs) -> None:
    outcome = done(*whole.command("whole1", 1))
    assert "is finished: top-1" in outcome.out
    assert len([event for event in whole.events("whole1") if event["event"] == "start"]) == 1


def test_killed_between_the_last_checkpoint_and_the_result(whole: Runs) -> None:
    result = whole.folder / "whole1" / "result.json"
    before = json.loads(result.read_bytes())
    result.unlink()
    done(*whole.command("whole1", 1))
    after = json.loads(result.read_bytes())
    assert after["starts"] == before["starts"] + 1
    # The second start evaluates alone, which takes no time of training.
    took = ("starts", "hours")
    assert {name: after[name] for name in after if name not in took} == {
        name: before[name] for name in before if name not in took
    }


def test_a_loss_that_is_no_number_ends_the_run(whole: Runs) -> None:
    plain = ("loss=cross_entropy", "optimizer.decoupled=false", "algorithms.sam=null")
    arguments = whole.command("nan", 1, *plain, "optimizer.lr=1e15", "checkpoint.every_batches=1")
    outcome = run(*arguments)
    assert outcome.status == 78
    assert "the loss is nan since batch" in outcome.err
    assert "Traceback" not in outcome.err
    # What can be read was written, with null for what is no number, and no checkpoint is from after it.
    events = whole.events("nan")
    lost = [event["batch"] for event in events if event["event"] == "batch" and event["loss"] is None]
    saved = [event["batch"] for event in events if event["event"] == "checkpoint"]
    assert not lost or max(saved) < min(lost)
    assert saved


def test_interrupted_while_it_starts_it_is_stopped(whole: Runs) -> None:
    log = whole.folder / "early.out"
    process = start(*whole.command("early", 2), log=log)
    try:
        while "learning rate" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.01)
        time.sleep(0.5)  # into the imports of the ranks, which say nothing
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=HANG_SECONDS) == 75, log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.wait()


def test_eval_refuses_a_broken_shard(whole: Runs, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole.dataset, tmp_path / "mds"))
    shard = copy / "val" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    outcome = run("eval", whole.folder / "whole1", "--data", copy)
    assert outcome.status == 1
    assert "shard.00000.mds is broken" in outcome.err


def test_eval_gives_what_the_run_ended_with(whole: Runs) -> None:
    """In one process what two ranks found together: each sample counts once."""
    outcome = done("eval", whole.folder / "whole2", "--data", whole.dataset, "--json")
    found = json.loads(outcome.out)
    result = json.loads((whole.folder / "whole2" / "result.json").read_bytes())
    assert found["samples"] == 50
    assert found["averaged"] is True
    assert (found["top1"], found["top5"]) == (result["top1"], result["top5"])
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_eval_reports_classes_pairs_and_calibration_and_compares(whole: Runs, tmp_path: Path) -> None:
    known = ("eval", whole.folder / "whole2", "--data", whole.dataset, "--against", whole.folder / "whole1")
    page, rows = tmp_path / "report", tmp_path / "rows.csv"
    outcome = done(*known, "--report", page, "--results", rows, "--subset", 40, "--flips")
    figures = json.loads((page / "eval.json").read_bytes())
    assert figures["samples"] == sum(one["samples"] for one in figures["classes"]) == 40
    assert figures["top1"] == pytest.approx(
        sum(one["samples"] * one["top1"] for one in figures["classes"]) / figures["samples"]
    )
    assert sum(one["samples"] for one in figures["reliability"]) == 40
    html = (page / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in html
    assert "<script" not in html
    assert html.count("<svg") == 2
    assert 'src="http' not in html
    assert {"lowest:", "confused:", "report:"} <= {line.split()[0] for line in outcome.out.splitlines() if line}
    with rows.open(encoding="utf-8") as file:
        header, first, second = csv.reader(file)
    assert dict(zip(header, first, strict=True))["top1"] == str(figures["top1"])
    assert dict(zip(header, second, strict=True))["checkpoint"].startswith(f"{whole.folder}/whole1/")
    # The other options, on all images, to a file that has a header.
    sized = ("--resize-px", 40, "--crop-px", 36, "--raw-weights", "--results", rows, "--json")
    raw = json.loads(done(*known, *sized).out)
    assert (raw["averaged"], raw["resize_px"], raw["crop_px"]) == (False, 40, 36)
    assert raw["against"]["difference"]["samples"] == 50
    assert len(rows.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--crop-px", 64), "--crop-px 64 is larger than --resize-px 36"),
        (("--subset", 51), "val has 50 images"),
        (("--results", "{tmp}/notes"), "has other columns than an evaluation"),
        (("--results", "{tmp}/none/rows.csv"), "there is no folder"),
        (("--real-labels", "{tmp}/notes"), "cannot be read as ReaL labels"),
        (("--report", "{tmp}/notes"), "is a file: pass a folder"),
    ],
)
def test_eval_refuses_what_does_not_fit(whole: Runs, tmp_path: Path, options: tuple[object, ...], words: str) -> None:
    (tmp_path / "notes").write_text("a,b\n", encoding="utf-8")
    given = [str(one).replace("{tmp}", str(tmp_path)) for one in options]
    outcome = run("eval", whole.folder / "whole1", "--data", whole.dataset, *given)
    assert outcome.status == 2, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err


def test_eval_refuses_a_dataset_of_other_classes(whole: Runs, few_classes: Path) -> None:
    outcome = run("eval", whole.folder / "whole1", "--data", few_classes)
    assert outcome.status == 2
    assert "knows 10 classes" in outcome.err
    assert "has 3" in outcome.err


def test_eval_refuses_what_is_no_checkpoint(whole: Runs, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a checkpoint", encoding="utf-8")
    outcome = run("eval", tmp_path / "notes.pt", "--data", whole.dataset)
    assert outcome.status == 2
    assert "notes.pt cannot be read as tensors" in outcome.err


def test_the_log_says_how_long_data_were_waited_for(whole: Runs) -> None:
    waiting = [event["waiting_for_data"] for event in whole.events("whole1") if event["event"] == "batch"]
    assert len(waiting) == EPOCHS * BATCHES_PER_EPOCH
    assert all(0 <= share <= 1 for share in waiting)
    assert any(waiting)
