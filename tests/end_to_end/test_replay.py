"""`replay`: batches of a run are trained again with the losses of its log, and the run is only read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds_train.run.folder import RunFolder
from tests.support.command import done, run
from tests.support.s3_server import BUCKET, Proxy, direct
from tests.support.training import training

SAVED_EVERY, EPOCHS, BATCHES_PER_EPOCH = 2, 2, 5


@pytest.fixture(scope="module")
def trained(dataset: Path, module_folder: Path) -> Path:
    """The folder of a finished deterministic run of two epochs, with an average of the weights and checkpoints kept."""
    root = module_folder
    more = ("algorithms.ema={}", f"schedule={{epochs: {EPOCHS}, warmup_epochs: 0}}")
    checkpoints = f"checkpoint={{every_batches: {SAVED_EVERY}, keep: 9}}"
    done(*training(dataset, root, "run", *more, checkpoints))
    return root / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Times and content of everything in a folder, itself included."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


def test_a_deterministic_run_agrees_bit_for_bit_and_is_only_read(trained: Path, tmp_path: Path) -> None:
    """Over the end of an epoch, whose validation is left out, while another process holds the run."""
    before = state_of(trained)
    with RunFolder(trained).lock():
        outcome = done("replay", trained, "--json", cwd=tmp_path)
    assert state_of(trained) == before
    assert list(tmp_path.iterdir()) == []
    found = json.loads(outcome.out)
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    logged = [(event["batch"], event["loss"]) for event in log if event["event"] == "batch"]
    assert [(one["batch"], one["logged"]) for one in found["losses"]] == logged[SAVED_EVERY:]
    assert [one["now"] for one in found["losses"]] == [loss for _, loss in logged[SAVED_EVERY:]]
    assert len({loss for _, loss in logged}) == EPOCHS * BATCHES_PER_EPOCH
    expected = {"checkpoint": "ep0-ba2.pt", "batch": 2, "ranks": 1, "deterministic": True, "bound": 0.0}
    expected |= {"agrees": True, "first_difference": None, "largest_difference": 0.0, "attempts_differ": []}
    assert {key: found[key] for key in expected} == expected
    assert found["machine"]["log"] == found["machine"]["now"]
    assert found["machine"]["now"]["threads"] == 1


def test_a_run_in_s3_is_replayed_and_listed_on_any_machine(
    proxy: Proxy, server: int, trained: Path, tmp_path: Path
) -> None:
    for path in trained.rglob("*"):
        if path.is_file():
            direct(server).upload_file(str(path), BUCKET, f"runs/run/{path.relative_to(trained)}")
    cache = str(tmp_path / "cache")
    address = f"s3://{BUCKET}/runs/run"
    # The job of its last start names the dataset.
    found = json.loads(done("replay", address, "--batches", 2, "--json", XDG_CACHE_HOME=cache).out)
    assert (found["run"], found["agrees"], len(found["losses"])) == (address, True, 2)
    (listed,) = json.loads(done("runs", "ls", f"s3://{BUCKET}/runs", "--json", XDG_CACHE_HOME=cache).out)
    assert (listed["name"], listed["run"], listed["state"]) == ("run", address, "finished")
    done("runs", "report", address, cwd=tmp_path, XDG_CACHE_HOME=cache)
    assert "10 batches" in (tmp_path / "run.html").read_text(encoding="utf-8")
    compared = json.loads(done("runs", "compare", address, trained, "--json", XDG_CACHE_HOME=cache).out)
    assert (compared["settings"], compared["origins"]) == ([], [])


def test_a_loss_of_the_log_that_is_not_that_of_now_is_named(copy: Path) -> None:
    log = copy / "log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (changed,) = (event for event in events if (event["event"], event["batch"]) == ("batch", 9))
    was = changed["loss"]
    changed["loss"] = was * (1 + 1e-7)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    outcome = run("replay", copy, "--checkpoint", "ep1-ba6.pt", "--batches", 3)
    assert outcome.status == 1, outcome.err
    *_, first, second, third, last = outcome.out.splitlines()
    assert [line.split()[:2] + line.split()[-1:] for line in (first, second)] == [["7", "1", "0"], ["8", "1", "0"]]
    assert third.split()[:2] == ["9", "1"]
    assert last.startswith("does not agree: 1 of 3 losses from ep1-ba6.pt on 1 rank differ, first that of batch 9, ")
    assert f"{was:.9g} now (" in last
    assert "; none is expected). The largest difference is 1.0e-07. Ranks and machine are as the log has them (" in last
    assert "Traceback" not in outcome.err


def test_other_ranks_are_said_to_be_why_losses_differ(trained: Path) -> None:
    outcome = run("replay", trained, "--ranks", 2, "--batches", 2)
    assert outcome.status == 1, outcome.err
    last = outcome.out.splitlines()[-1]
    assert last.startswith("does not agree: ")
    assert " from ep0-ba2.pt on 2 ranks differ, first that of batch 3, " in last
    assert last.endswith("Changed since: ranks (1 in the log, 2 now)")


def test_a_run_that_is_not_deterministic_agrees_within_the_bound(dataset: Path, tmp_path: Path) -> None:
    """On another number of threads, which adds up in another order."""
    free = ("system.deterministic=false", "checkpoint.every_batches=1", "model.depth=18")
    done(*training(dataset, tmp_path, "free", *free))
    outcome = done("replay", tmp_path / "free", "--batches", 1, OMP_NUM_THREADS="2")
    last = outcome.out.splitlines()[-1]
    assert last.startswith("agrees: 1 loss from ep0-ba4.pt on 1 rank differ")
    assert last.endswith(", within 0.02")


def no_record(folder: Path) -> None:
    """Leave a record that says nothing."""
    (folder / "run.json").write_text("{}")


def no_run(folder: Path) -> None:
    """Remove what makes a folder that of a run."""
    (folder / "run.json").unlink()


def flipped(folder: Path) -> None:
    """Flip a bit of the oldest checkpoint."""
    path = folder / "checkpoints" / "ep0-ba2.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def missing(folder: Path) -> None:
    """Remove the oldest checkpoint, not its record."""
    (folder / "checkpoints" / "ep0-ba2.pt").unlink()


def without_log(folder: Path) -> None:
    """Remove the log."""
    (folder / "log.jsonl").unlink()


def without_job(folder: Path) -> None:
    """Remove what names the dataset."""
    (folder / "job.json").unlink()


def moved_dataset(folder: Path) -> None:
    """Name a dataset that is not there."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_bytes())
    job["train"]["folder"] = "/none/mds/train"
    (folder / "job.json").write_text(json.dumps(job))


def untouched(folder: Path) -> None:
    """Leave everything as it is."""


@pytest.mark.parametrize(
    ("change", "options", "status", "words"),
    [
        (no_run, (), 2, "there is no run at {run}: pass the folder of a run"),
        (no_record, (), 1, "{run}/run.json is no record of a run: restore it"),
        (untouched, ("--checkpoint", "ep0-ba3.pt"), 2, "{run} has no checkpoint ep0-ba3.pt: pass one of ep0-ba2.pt, "),
        (untouched, ("--checkpoint", "ep2-ba10.pt"), 2, "after ep2-ba10.pt; the last logged batch is 10: train it for"),
        (without_log, (), 2, "ep2-ba10.pt; no batch is logged: train it for longer"),
        (without_job, (), 2, "{run}/job.json does not say which dataset the run was trained on: pass --data DATASET"),
        (moved_dataset, (), 2, "the dataset of {run} cannot be read (there is no dataset at /none/mds"),
        (untouched, ("--data", "{few}"), 2, " is not the dataset of {run}: its train has the fingerprint "),
        (untouched, ("--ranks", "3"), 2, "global_batch_size 16 does not divide over 3 ranks"),
        (flipped, (), 1, "{run}/checkpoints/ep0-ba2.pt is damaged, its content is not what its record has: choose"),
        (missing, (), 1, "{run}/checkpoints/ep0-ba2.pt is missing: choose another one with --checkpoint"),
    ],
)
def test_what_cannot_work_is_one_line(
    copy: Path, few_classes: Path, change: Callable[[Path], None], options: tuple[str, ...], status: int, words: str
) -> None:
    change(copy)
    outcome = run("replay", copy, *(option.format(few=few_classes) for option in options))
    assert (outcome.status, outcome.err.count("\n")) == (status, 1), outcome.err
    assert words.format(run=copy) in outcome.err


def test_batches_between_two_lines_of_the_log_are_too_few(copy: Path) -> None:
    log = copy / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [event for event in lines if event["event"] != "batch" or event["batch"] == 10]
    log.write_text("".join(json.dumps(event) + "\n" for event in kept))
    outcome = run("replay", copy, "--checkpoint", "ep0-ba4.pt", "--batches", 5)
    assert outcome.status == 2
    assert "has no loss of the 5 batches after ep0-ba4.pt" in outcome.err
    assert outcome.err.endswith("pass --batches 6\n")
