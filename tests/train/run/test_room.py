"""Before a start: room for checkpoints, GPUs, where a run of this name lies."""

from pathlib import Path

import pytest
from torchvision.models.resnet import ResNet

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.errors import UserError
from imagenet_mds.storage.atomic import finite, json_bytes
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.model.resnet import _BLOCKS, resnet
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.room import _BESIDE_BYTES, checkpoint_bytes, refuse_full_disk
from imagenet_mds_train.run.start import Start
from tests.support.command import run


@pytest.mark.parametrize("depth", _BLOCKS)
@pytest.mark.parametrize("classes", [10, 1000])
def test_the_size_of_a_checkpoint_is_known_without_torch(depth: int, classes: int) -> None:
    network = resnet(depth, classes)
    assert isinstance(network, ResNet)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    for ema, copies in (("null", 2), ("{half_life_batches: 5}", 3)):
        config = load_config("demo", (f"model.depth={depth}", f"algorithms.ema={ema}"))
        assert checkpoint_bytes(config, classes) == 4 * copies * parameters + _BESIDE_BYTES


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_start(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = load_config("demo", ("checkpoint.keep=4",)), RunFolder(tmp_path / "run")
    size_bytes = checkpoint_bytes(config, 10)
    for free, fits in ((5 * size_bytes, True), (5 * size_bytes - 1, False)):
        monkeypatch.setattr(LocalStorage, "free_bytes", lambda self, free=free: free)
        if fits:
            refuse_full_disk(config, 10, folder, 1000)
            continue
        with pytest.raises(
            UserError, match=r"run needs 0\.31 GB for checkpoints of 0\.06 GB, and its disk has 0\.31 GB"
        ):
            refuse_full_disk(config, 10, folder, 1000)
        with pytest.raises(UserError, match="make room, pass another --save, or keep fewer with"):
            Start.prepare(config, Dataset.at(str(dataset)), folder)


def test_a_run_that_keeps_everything_needs_room_for_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("demo", ("checkpoint={keep: 1000, every_batches: 50}", "schedule.epochs=2"))
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: 7 * checkpoint_bytes(config, 10))
    refuse_full_disk(config, 10, RunFolder(tmp_path / "run"), 200)
    with pytest.raises(UserError, match="needs"):
        refuse_full_disk(config, 10, RunFolder(tmp_path / "run"), 250)


@pytest.mark.parametrize("phase", ["2", "3"])
def test_a_phase_for_gpus_is_refused_without_one_and_can_be_planned(dataset: Path, tmp_path: Path, phase: str) -> None:
    arguments = ("train", "--phase", phase, "--data", dataset, "--save", tmp_path, "data.subset=null")
    small = ("global_batch_size=4", "--ranks", 1, "system.device_microbatch_size=null")
    outcome = run(*arguments, *small, CUDA_VISIBLE_DEVICES="")
    assert (outcome.status, outcome.out) == (2, "")
    assert "trains on GPUs (system.device=gpu), and there is none here" in outcome.err
    planned = run(*arguments, *small, "--plan", CUDA_VISIBLE_DEVICES="")
    assert (planned.status, "device:            1 GPU\n" in planned.out) == (0, True)
    assert "and there is none here" in planned.err
    allowed = run(*arguments, *small, "system.device=cpu", "--plan", CUDA_VISIBLE_DEVICES="")
    assert allowed.status == 0, allowed.err
    assert "CPU, as system.device says" in allowed.out


def test_the_plan_shows_the_whole_path_and_a_run_of_the_same_name_elsewhere(dataset: Path, tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / "runs" / "demo").mkdir(parents=True)
    (home / "runs" / "demo" / "run.json").write_text("{}", encoding="ascii")
    here.mkdir()
    outcome = run("train", "--config", "demo", "--data", dataset, "--plan", cwd=here, HOME=str(home))
    assert outcome.out.startswith(f"run:               {here}/runs/demo\n")
    assert f"a run of this name lies in {home}/runs/demo: to continue that one, pass --save {home}/runs" in outcome.err
    said = run("train", "--config", "demo", "--data", dataset, "--save", here, "--plan", cwd=here, HOME=str(home))
    assert "a run of this name" not in said.err


def test_json_has_no_nan_and_no_infinity() -> None:
    value = {"a": float("nan"), "b": [1.5, float("inf")], "c": (None, "NaN")}
    assert finite(value) == {"a": None, "b": [1.5, None], "c": [None, "NaN"]}
    assert b"NaN," not in json_bytes(value)
