"""What a run tells its owner: the plan, the try, the log, other programs' files, the summary, the best checkpoint."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import HANG_SECONDS, done, run, start, wait_until
from tests.support.training import training

pytestmark = pytest.mark.slow  # starts whole trainings

FEW = ("schedule.epochs=1", "augment.progressive={start_px: 16, step_px: 8}")


def command(dataset: Path, folder: Path, name: str, *more: object) -> list[object]:
    """The arguments of a training of fifteen batches with an average of the weights."""
    longer = ("schedule.epochs=3", "algorithms.ema={half_life_batches: 10}", "checkpoint.every_batches=2")
    return training(dataset, folder, name, *longer, *more)


def events(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def test_one_run_at_weights_and_biases_over_a_kill_and_a_summary(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "group" / "run"
    price = "logging.dollars_per_hour=3600"
    arguments = command(dataset, tmp_path, "run", "--experiment-name", "group", "logging.wandb={mode: offline}", price)
    process = start(*arguments, log=tmp_path / "out", PYTHONWARNINGS="ignore")
    wait_until(
        lambda: any(event["event"] == "checkpoint" and event["batch"] == 6 for event in events(folder)), "batch 6"
    )
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=HANG_SECONDS)
    outcome = done(*arguments)
    found = json.loads((folder / "wandb.json").read_bytes())["id"]
    # A folder for each start, both of one run, which `wandb sync` joins.
    parts = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert len(parts) == 2
    assert all(name.endswith(f"-{found}") for name in parts)
    assert all(list((folder / "wandb" / name).glob("*.wandb")) for name in parts)
    # The line of a batch has what was measured.
    line = next(event for event in events(folder) if event["event"] == "batch" and event["batch"] == 3)
    assert {"top1", "recipe/size_px", "recipe/average_distance", "recipe/mixup_share"} <= line.keys()
    assert line["recipe/size_px"] == 24
    # The summary is over both starts.
    result = json.loads((folder / "result.json").read_bytes())
    assert result["starts"] == 2
    times = [event["time"] for event in events(folder)]
    assert 0 < result["hours"] * 3600 <= times[-1] - times[0]
    assert result["dollars"] == pytest.approx(result["hours"] * 3600, abs=0.4)
    best = json.loads((folder / "best.json").read_bytes())
    validated = {event["batch"]: event["top1"] for event in events(folder) if event["event"] == "eval"}
    assert best["top1"] == max(validated.values()) == validated[best["batch"]]
    assert result["best"] == best
    for words in ("took:", "2 starts", "best:", "imagenet-mds eval", "| run | - | 3 | 80 |"):
        assert words in outcome.out, words
    shown = json.loads(done("eval", folder / "best.pt", "--data", dataset, "--json").out)
    assert shown["top1"] == pytest.approx(best["top1"])


def test_a_try_trains_saves_continues_and_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    # The first start ends an epoch of ten batches, the second none.
    settings = ("global_batch_size=8", "evaluation.device_batch_size=8", "logging.dollars_per_hour=2")
    outcome = done(*command(dataset, tmp_path, "run", "--dry-run", "--ranks", 2, *settings))
    validations = [line.partition(":")[0] for line in outcome.err.splitlines() if "validation" in line]
    assert validations == ["epoch 1/3 validation", "validation of 1 of 4 batches"]
    assert "trained, validated, saved and continued" in outcome.out
    assert "on 2 ranks" in outcome.out
    assert "the whole run takes about" in outcome.out
    assert "at 2 an hour" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_four_ranks_train_the_recipe_of_phase_3(dataset: Path, tmp_path: Path) -> None:
    outcome = done(*command(dataset, tmp_path, "run", "--ranks", 4, "recipe=medium", *FEW))
    assert "4 ranks x 4" in outcome.out
    assert [event["ranks"] for event in events(tmp_path / "run") if event["event"] == "start"] == [4]
    (validated,) = (event for event in events(tmp_path / "run") if event["event"] == "eval")
    shown = json.loads(done("eval", tmp_path / "run", "--data", dataset, "--json").out)
    # Each sample counts once on four ranks, as in one process.
    assert (shown["top1"], shown["samples"]) == (pytest.approx(validated["top1"]), 50)


@pytest.mark.parametrize("phase", [1, 2])
def test_each_phase_is_planned(dataset: Path, tmp_path: Path, phase: int) -> None:
    known = ("train", "--phase", phase, "--data", dataset, "--save", tmp_path, "--plan")
    rows = {line.partition(":")[0] for line in done(*known, "global_batch_size=8", "data.subset=null").out.splitlines()}
    assert {"steps", "learning rate", "algorithms", "checkpoints"} <= rows
    assert ("dollars" in rows) == (phase == 2)


def test_a_phase_is_planned_on_a_machine_without_its_gpus(dataset: Path, tmp_path: Path) -> None:
    outcome = done(
        "train", "--phase", 3, "--data", dataset, "--save", tmp_path, "--plan", "global_batch_size=8", "ranks=2"
    )
    assert "and there is none here" in outcome.err
    rows = {line.partition(":")[0]: line for line in outcome.out.splitlines()}
    assert rows["time"].endswith("on 2 T4, reckoned")
    assert "on demand at 3.912 an hour" in rows["dollars"]
    assert "GiB a GPU, reckoned" in rows["memory"]
    assert "ResNet-50 at 88 to 176 px" in rows["model"]
    refused = run("train", "--phase", 3, "--data", dataset, "--save", tmp_path, "global_batch_size=8", "ranks=2")
    assert refused.status == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "a/b"])
def test_a_group_is_a_folder_name(dataset: Path, tmp_path: Path, name: str) -> None:
    outcome = run(*command(dataset, tmp_path, "run", "--experiment-name", name))
    assert (outcome.status, "--experiment-name" in outcome.err) == (2, True)
