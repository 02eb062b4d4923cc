"""What earlier versions wrote is continued and evaluated.

`run_of_format_0` is a run that was killed after batch 10 of 19, with the checkpoint as it was written before formats
were numbered, in which each large tensor is filled with its mean, so that the file is small when compressed.
"""

import json
import lzma
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.errors import UserError
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.identity import refuse_other, run_identity
from tests.support import DATA
from tests.support.command import HANG_SECONDS, PROGRAM, done, environment, run

RECIPE = (
    "global_batch_size=8",
    "augment.size_px=32",
    "augment.color_jitter={brightness: 0.2}",
    "evaluation={resize_px: 36, crop_px: 32, device_batch_size: 16, workers_per_rank: 1}",
    "optimizer.lr=0.02",
    "schedule={epochs: 1, warmup_epochs: 0.5}",
    "algorithms={mixup: {alpha: 0.2}, label_smoothing: {smoothing: 0.1}, ema: {half_life_batches: 10}}",
    "data.workers_per_rank=0",
    "logging.every_batches=1",
)


ODD_NAME = "runs #1 of {rank}? 100%"
"""Any folder will do: Composer takes paths for URIs and format strings."""


def identity_on(dataset: Path, *overrides: str) -> dict[str, Any]:
    """The identity of the recipe on a dataset."""
    opened = Dataset.at(str(dataset))
    return run_identity(load_config("demo", (*RECIPE, *overrides)), opened.split("train"), opened.split("val"))


@pytest.fixture
def old(dataset: Path, tmp_path: Path) -> RunFolder:
    """The run of format 0, on the dataset of these tests."""
    folder = tmp_path / ODD_NAME / "old"
    shutil.copytree(DATA / "run_of_format_0", folder)
    packed = folder / "checkpoints" / "ep0-ba10.pt.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    for path in (folder / "run.json", folder / "checkpoints" / "ep0-ba10.json"):
        value = json.loads(path.read_bytes())
        value["identity"]["dataset"] = identity_on(dataset)["dataset"]
        path.write_text(json.dumps(value), encoding="utf-8")
    return RunFolder(folder)


def test_a_run_of_the_first_format_is_continued_and_evaluated(old: RunFolder, dataset: Path) -> None:
    evaluated = json.loads(done("eval", old.path, "--data", dataset, "--json").out)
    assert (evaluated["samples"], evaluated["averaged"]) == (50, True)
    command = ["train", "--config", "demo", "--data", dataset, "--save", old.path.parent, "--run-name", "old", *RECIPE]
    done(*command)
    events = old.events()
    starts = [event["batch"] for event in events if event["event"] == "start"]
    assert starts == [0, 10]
    assert [event["batch"] for event in events if event["event"] == "batch" and event["attempt"] == 2] == [
        *range(11, 20)
    ]
    assert events[-1]["event"] == "done"


def test_a_run_goes_on_when_its_output_goes_away(old: RunFolder, dataset: Path) -> None:
    command = ["train", "--config", "demo", "--data", dataset, "--save", old.path.parent, "--run-name", "old", *RECIPE]
    process = subprocess.Popen(
        [*PROGRAM, *map(str, command)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline().startswith("run:")
    assert process.wait(timeout=HANG_SECONDS) == 0
    assert old.events()[-1]["event"] == "done"


def test_a_run_of_a_later_format_is_refused(old: RunFolder, dataset: Path) -> None:
    path = old.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": 2}), encoding="utf-8")
    outcome = run(
        "train", "--config", "demo", "--data", dataset, "--save", old.path.parent, "--run-name", "old", *RECIPE
    )
    assert outcome.status == 2
    assert "was written by a later version of imagenet-mds" in outcome.err


@pytest.mark.parametrize("change", [{"format": 2}, {"format": 2, "host": "x"}])
def test_a_checkpoint_of_a_later_format_is_refused(old: RunFolder, change: dict[str, Any]) -> None:
    path = old.path / "checkpoints" / "ep0-ba10.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change), encoding="utf-8")
    with pytest.raises(UserError, match="was written by a later version of imagenet-mds"):
        old.newest_checkpoint()


def _without(identity: dict[str, Any], *path: str) -> dict[str, Any]:
    """The identity as a version wrote it that did not know a key yet."""
    copied: dict[str, Any] = json.loads(json.dumps(identity))
    group = copied["recipe"]
    for key in path[:-1]:
        group = group[key]
    del group[path[-1]]
    return copied


@pytest.mark.parametrize(
    "path",
    [
        ("augment", "resize"),
        ("augment", "ratio"),
        ("augment", "progressive"),
        ("augment", "color_jitter", "hue"),
        ("algorithms", "cutmix"),
        ("algorithms", "ema", "half_life_batches"),
        ("optimizer", "nesterov"),
        ("data", "order", "sampling_granularity"),
        ("data", "order"),
        ("system",),
        ("seed",),
    ],
)
def test_a_key_that_a_later_version_added_counts_as_its_default(dataset: Path, path: tuple[str, ...]) -> None:
    now = identity_on(dataset, "algorithms.ema.half_life_batches=50")
    refuse_other("a run", _without(now, *path), now)


@pytest.mark.parametrize(
    ("path", "override", "words"),
    [
        (("augment", "resize"), "augment.resize=linear", "recipe.augment.resize: 'antialias' before, 'linear' now"),
        (("algorithms", "cutmix"), "algorithms.cutmix={}", "recipe.algorithms.cutmix"),
        (("augment", "color_jitter", "hue"), "augment.color_jitter={hue: 0.1}", "recipe.augment.color_jitter.hue: 0.0"),
        (("data", "order"), "data.order.shuffle_seed=1", "recipe.data.order.shuffle_seed: 9176 before, 1 now"),
        (("seed",), "seed=3", "recipe.seed: 17 before, 3 now"),
    ],
)
def test_another_value_than_the_default_of_an_added_key_is_refused(
    dataset: Path, path: tuple[str, ...], override: str, words: str
) -> None:
    now = identity_on(dataset, override)
    with pytest.raises(UserError) as caught:
        refuse_other("a run", _without(now, *path), now)
    assert words in str(caught.value)


def test_a_key_without_a_default_is_not_invented(dataset: Path) -> None:
    now = identity_on(dataset)
    with pytest.raises(UserError, match=r"recipe\.optimizer\.lr: '\(not there\)' before"):
        refuse_other("a run", _without(now, "optimizer", "lr"), now)
