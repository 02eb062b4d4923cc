"""What a newcomer types, and is answered."""

import shutil
from pathlib import Path

import pytest

from imagenet_mds.dataset.split_info import read_split_info
from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.subset import refuse_subset
from imagenet_mds_train.run.find import find_checkpoint
from imagenet_mds_train.run.folder import RunFolder
from tests.support.command import run
from tests.support.datasets import manifest_at


def test_a_run_is_meant_by_its_name_and_by_the_folders_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.create({}, {})
    folder.staging.mkdir(parents=True)
    staged = folder.staging / "ep0-ba3.pt"
    staged.write_bytes(b"weights")
    folder.checkpoints.publish(staged, epoch=0, batch=3, identity={}, keep_last=2)
    monkeypatch.chdir(tmp_path)
    for meant in ("first", "runs/first", "runs/first/", "runs/first/checkpoints", "runs/first/checkpoints/ep0-ba3.pt"):
        assert find_checkpoint(meant).resolve() == folder.path / "checkpoints" / "ep0-ba3.pt", meant
    with pytest.raises(UserError, match=r"there is no checkpoint at second: give the file, or the folder of a run"):
        find_checkpoint("second")


def test_a_plan_names_a_lost_shard(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "mds"))
    shard = manifest_at(copy / "train").shards[3].basename
    (copy / "train" / shard).unlink()
    outcome = run("train", "--config", "demo", "--data", copy, "--save", tmp_path, "--plan")
    assert outcome.status == 1
    assert shard in outcome.err


def test_a_dataset_without_val_says_how_to_get_one(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train", tmp_path / "mds" / "train")
    outcome = run("train", "--config", "demo", "--data", tmp_path / "mds", "--save", tmp_path, "--plan")
    assert outcome.status == 2
    assert "has no val/ (it holds train)" in outcome.err
    assert "from a source without val, `--val-fraction 0.1` holds a tenth of train out" in outcome.err


def test_a_batch_of_a_subset_that_training_refuses_is_not_shown(dataset: Path) -> None:
    shown = run("inspect", dataset, "--config", "demo", "--batch", 0, "--epoch", 0)
    assert shown.status == 0, shown.err
    for name in ("phase1", "dev"):
        refused = run("inspect", dataset, "--config", name)
        assert refused.status == 2
        assert "pass data.subset=null to train on all of them" in refused.err
    config = load_config("phase1")
    with pytest.raises(UserError, match=r"data\.subset asks for 1,000 training images"):
        refuse_subset(config, str(dataset), read_split_info(LocalStorage(dataset / "train")))


def test_a_dataset_that_lost_its_manifest_is_said_to_by_every_command(
    dataset: Path, tree: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "mds"))
    (copy / "train" / "manifest.json").unlink()
    commands = (
        ("convert", tree, copy, "--shard-size", "64KiB"),
        ("verify", copy),
        ("train", "--phase", 1, "--data", copy),
    )
    for arguments in commands:
        outcome = run(*arguments)
        assert outcome.status == 2
        assert "train has lost its manifest.json: restore it, or convert again with" in outcome.err, arguments[0]


def test_shards_right_in_the_folder_are_told_where_to_go(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train", tmp_path / "flat")
    (tmp_path / "flat" / "manifest.json").unlink()
    for command in (("inspect",), ("train", "--config", "demo", "--plan", "--data"), ("verify",)):
        outcome = run(*command, tmp_path / "flat")
        assert outcome.status == 2
        assert f"holds the shards of one split itself: move them into {tmp_path}/flat/train/" in outcome.err


def test_checkpoints_without_their_run_are_not_started_over(dataset: Path, tmp_path: Path) -> None:
    for place in ("run/checkpoints/ep1-ba9.pt", "flat/ep1-ba9.pt"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(b"weights")
        name = place.partition("/")[0]
        outcome = run("train", "--config", "demo", "--data", dataset, "--save", tmp_path, "--run-name", name, "--plan")
        assert outcome.status == 2
        assert f"{tmp_path}/{name} has ep1-ba9.pt without the records of its run: bring the whole folder" in outcome.err
        assert f"--from-checkpoint {tmp_path}/{place}" in outcome.err


def test_a_run_of_another_user_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    # As root, which tests may run as, every file can be locked.
    monkeypatch.setattr("imagenet_mds_train.run.folder.locked_folder", refuse)
    with pytest.raises(UserError, match="run belongs to another user"), RunFolder(tmp_path / "run").lock():
        pass
