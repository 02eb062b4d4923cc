"""A deterministic run on four ranks ends with the weights of the undisturbed run, and its batches have their losses."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenet_mds.resources import find_config
from tests.support.command import HANG_SECONDS, done, start, wait_until
from tests.support.training import SMALL

RANKS = 4
EPOCHS, BATCHES_PER_EPOCH = 2, 158 // 16
SAVED_EVERY = 3


@pytest.fixture(scope="module")
def folder(dataset: Path, module_folder: Path) -> Path:
    """The folder of two runs: `whole`, which was never stopped, and `killed`, which was, and continued."""
    root = module_folder
    shipped = find_config("demo")
    assert shipped is not None
    config = root / "free.yaml"
    config.write_text(shipped.read_text().replace("deterministic: true", "deterministic: false"))
    done(*command(config, dataset, root, "whole"))
    log = root / "killed" / "log.jsonl"
    process = start(*command(config, dataset, root, "killed"), log=root / "out")
    try:
        wait_until(lambda: has_a_batch_to_lose(log), "a batch to lose", process)
    finally:
        process.kill()
    assert process.wait(timeout=HANG_SECONDS) == -signal.SIGKILL
    done(*command(config, dataset, root, "killed"))
    return root


def command(config: Path, dataset: Path, root: Path, name: str) -> list[object]:
    """The arguments of a run on four ranks of a configuration that is not deterministic by itself."""
    known = ["train", "--config", config, "--data", dataset, "--save", root, "--run-name", name, "--ranks", RANKS]
    more = [f"schedule={{epochs: {EPOCHS}, warmup_epochs: 0}}", "data.subset=null", "algorithms.ema={}"]
    return [*known, "--deterministic", *SMALL, *more, f"checkpoint={{every_batches: {SAVED_EVERY}, keep: 9}}"]


def events(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def losses(log: Path) -> set[tuple[int, float]]:
    """Every logged batch with its loss."""
    return {(event["batch"], event["loss"]) for event in events(log) if event["event"] == "batch"}


def has_a_batch_to_lose(log: Path) -> bool:
    """Whether the first checkpoint is written, which may take longer than a batch, and a batch after it done."""
    saved = [event["batch"] for event in events(log) if event["event"] == "checkpoint"]
    return bool(saved) and any(batch > saved[0] for batch, _ in losses(log))


def test_four_ranks_killed_and_continued_end_as_if_undisturbed(folder: Path) -> None:
    whole, killed = folder / "whole", folder / "killed"
    first, second = (event for event in events(killed / "log.jsonl") if event["event"] == "start")
    assert (first["batch"], first["ranks"], second["ranks"]) == (0, RANKS, RANKS)
    assert 0 < second["batch"] < EPOCHS * BATCHES_PER_EPOCH
    assert json.loads((killed / "run.json").read_bytes())["config"]["system"]["deterministic"] is True
    assert losses(killed / "log.jsonl") == losses(whole / "log.jsonl")
    assert len(losses(whole / "log.jsonl")) == EPOCHS * BATCHES_PER_EPOCH
    name = f"checkpoints/ep{EPOCHS}-ba{EPOCHS * BATCHES_PER_EPOCH}.pt"
    one, other = (torch.load(run / name, weights_only=False)["state"] for run in (whole, killed))
    for state in (one, other):
        state["average"] = dict(state["algorithms"])["EMA"]["ema_model"]["named_parameters_dict"]
    for part in ("model", "average"):
        assert one[part].keys() == other[part].keys()
        assert [name for name in one[part] if not torch.equal(one[part][name], other[part][name])] == []
    torch.testing.assert_close(one["optimizers"]["SGD"]["state"], other["optimizers"]["SGD"]["state"], rtol=0, atol=0)


def test_four_ranks_replay_both_attempts_bit_for_bit(folder: Path) -> None:
    """Over the end of an epoch, whose validation gives all ranks the statistics of the first one."""
    found = json.loads(done("replay", folder / "killed", "--json").out)
    assert (found["batch"], found["ranks"], found["largest_difference"]) == (SAVED_EVERY, RANKS, 0.0)
    assert {one["attempt"] for one in found["losses"]} == {1, 2}
    assert {one["batch"] for one in found["losses"]} == set(range(SAVED_EVERY + 1, EPOCHS * BATCHES_PER_EPOCH + 1))
    assert all(one["judged"] for one in found["losses"])
