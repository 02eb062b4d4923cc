"""A training on damaged images stops and names one, or continues without them and says so."""

import json
import warnings
from pathlib import Path

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds_train.run.find import find_checkpoint
from tests.support.command import run
from tests.support.damage import CUT, FLIPPED, GONE, cut, damage
from tests.support.datasets import keys_at, manifest_at

SMALL = (
    "global_batch_size=79",  # half of all: none is left over
    "augment.size_px=16",
    "augment.color_jitter={brightness: 0.2}",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 64, workers_per_rank: 0}",
    "schedule={epochs: 1}",
    "data.verify_shards=false",
)


def test_a_run_ends_at_it_or_goes_on_and_counts_it(damaged: Path, tmp_path: Path) -> None:
    both = damage(damaged, tmp_path / "both", "val", _3=cut)
    command = ("train", "--config", "demo", "--data", both, "--save", tmp_path, *SMALL)
    ended = run(*command, "--run-name", "ended")
    assert ended.status == 1
    said = next(line for line in ended.err.splitlines() if line.startswith("imagenet-mds: sample"))
    assert any(keys_at(both / "train")[sample] in said for sample in (GONE, CUT, FLIPPED))
    assert "Traceback" not in ended.err
    assert "Its checkpoints are kept" in ended.err
    went_on = run(*command, "--run-name", "went-on", "data.damaged=black")
    assert went_on.status == 0, went_on.err
    lines = (tmp_path / "went-on" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    evals = [event for event in map(json.loads, lines) if event["event"] == "eval"]
    assert manifest_at(both / "train").samples % 79 == 0
    assert [(event["damaged"], event["damaged_val"]) for event in evals] == [(3, 1)]
    assert "3 training images so far did not decode; they were black and had no weight" in went_on.err
    assert "1 validation images so far did not decode" in went_on.err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing Composer and loading its checkpoint deprecate
        from imagenet_mds_train.evaluation.evaluate import evaluate

        # Not the command, which compares the shards' hashes first: an image may be damaged from the start.
        result = evaluate(find_checkpoint(str(tmp_path / "went-on")), Dataset.at(str(both)).split("val"))
    assert result.figures.damaged == 1
    assert result.figures.top1 == pytest.approx(evals[0]["top1"])
