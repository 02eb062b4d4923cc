"""What is known before a rank starts: mistakes show at once, and nothing is half accepted."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.dataset.split_info import SplitInfo
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.description import describe
from imagenet_mds_train.run.find import find_checkpoint
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.start import Start
from tests.support.command import run
from tests.support.datasets import info_at, manifest_at


def demo(*overrides: str) -> TrainConfig:
    """The demo's configuration with changes."""
    return load_config("demo", overrides)


def prepare(config: TrainConfig, dataset: Path, run_folder: RunFolder) -> Start:
    """A start on a dataset on the disk."""
    return Start.prepare(config, Dataset.at(str(dataset)), run_folder)


def begun(dataset: Path, folder: Path, *overrides: str) -> RunFolder:
    """A run that was started with the demo's configuration."""
    run_folder = RunFolder(folder)
    prepare(demo(*overrides), dataset, run_folder).record()
    return run_folder


def save(folder: RunFolder, batch: int, content: bytes = b"weights", keep: int = 9) -> Path:
    """A checkpoint of the run, published as the trainer does."""
    folder.staging.mkdir(parents=True, exist_ok=True)
    staged = folder.staging / f"ep0-ba{batch}.pt"
    staged.write_bytes(content)
    identity = folder.read_identity()
    assert identity is not None
    folder.checkpoints.publish(staged, epoch=0, batch=batch, identity=identity, keep_last=keep)
    return folder.path / "checkpoints" / staged.name


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    """The dataset, to be broken."""
    return Path(shutil.copytree(dataset, tmp_path / "mds"))


def test_a_run_of_another_recipe_is_refused_with_both_values(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    with pytest.raises(UserError, match=r"recipe\.optimizer\.lr: 0\.1 before, 0\.2 now"):
        prepare(demo("optimizer.lr=0.2"), dataset, folder)


@pytest.mark.parametrize(
    "override",
    [
        "global_batch_size=64",
        "seed=1",
        "data.subset=100",
        "data.order.shuffle_seed=1",
        "data.order.num_canonical_nodes=2",
        "augment.size_px=48",
        "schedule.epochs=3",
        "algorithms.ema=null",
        "model.depth=18",
        "system.device_microbatch_size=8",
    ],
)
def test_all_that_decides_the_weights_is_in_the_identity(dataset: Path, tmp_path: Path, override: str) -> None:
    folder = begun(dataset, tmp_path / "run")
    with pytest.raises(UserError, match=override.split("=")[0].replace(".", r"\.")):
        prepare(demo(override), dataset, folder)


@pytest.mark.parametrize(
    "override",
    [
        "ranks=2",
        "data.workers_per_rank=0",
        "data.prefetch_batches=1",
        "checkpoint.every_batches=3",
        "logging.every_batches=1",
        "evaluation.device_batch_size=8",
    ],
)
def test_where_and_how_fast_it_runs_may_change(dataset: Path, tmp_path: Path, override: str) -> None:
    folder = begun(dataset, tmp_path / "run")
    assert prepare(demo(override), dataset, folder).checkpoint is None


def test_a_run_on_another_dataset_is_refused_with_both_fingerprints(
    dataset: Path, few_classes: Path, tmp_path: Path
) -> None:
    folder = begun(dataset, tmp_path / "run")
    before, now = (manifest_at(root / "train").fingerprint for root in (dataset, few_classes))
    with pytest.raises(UserError, match=rf"dataset\.train: '{before}' before, '{now}' now"):
        prepare(demo(), few_classes, folder)


def test_a_checkpoint_of_another_run_is_refused(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    record = save(folder, 10).with_suffix(".json")
    raw: dict[str, Any] = json.loads(record.read_bytes())
    raw["identity"]["recipe"]["seed"] = 5
    record.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.seed: 5 before, 17 now"):
        prepare(demo(), dataset, folder)


def test_the_newest_checkpoint_is_taken(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    for batch in (5, 20, 10):
        save(folder, batch)
    checkpoint = prepare(demo(), dataset, folder).checkpoint
    assert checkpoint is not None
    assert checkpoint.batch == 20


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_broken_checkpoint_is_left_out_and_said(dataset: Path, tmp_path: Path, damage: str) -> None:
    folder = begun(dataset, tmp_path / "run")
    save(folder, 10)
    newest = save(folder, 20)
    if damage == "flipped":
        newest.write_bytes(b"weightt")
    elif damage == "short":
        newest.write_bytes(b"weight")
    else:
        newest.unlink()
    start = prepare(demo(), dataset, folder)
    assert start.checkpoint is not None
    assert start.checkpoint.batch == 10
    assert len(start.warnings) == 1
    assert "ep0-ba20.pt is skipped" in start.warnings[0]


@pytest.mark.parametrize("records_too", [False, True])
def test_a_run_that_reached_a_batch_never_starts_at_0(dataset: Path, tmp_path: Path, records_too: bool) -> None:
    folder = begun(dataset, tmp_path / "run")
    path = save(folder, 20)
    folder.log.write_text('{"event": "start", "batch": 0}\n{"event": "checkpoint", "batch": 20}\n', encoding="utf-8")
    path.unlink()
    if records_too:
        path.with_suffix(".json").unlink()
    with pytest.raises(WorldError, match="saved checkpoints up to batch 20 and none can be used"):
        prepare(demo(), dataset, folder)


def test_a_run_is_held_against_a_second_start(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "runs" / "demo")
    with folder.lock():
        outcome = run("train", "--config", "demo", "--data", dataset, "--save", tmp_path / "runs")
    assert outcome.status == 2
    assert "is running already" in outcome.err


def test_a_flipped_byte_is_found_and_named_with_its_repair(copy: Path, tmp_path: Path) -> None:
    shard = copy / "train" / "shard.00001.mds"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    outcome = run("train", "--config", "demo", "--data", copy, "--save", tmp_path / "runs")
    assert outcome.status == 1
    assert "shard.00001.mds is broken: its content's xxh64 is" in outcome.err
    assert f"imagenet-mds verify {copy} --repair SOURCE" in outcome.err
    assert "Traceback" not in outcome.err


def test_shards_are_read_once_for_their_hash(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    start = prepare(demo(), dataset, folder)
    first: list[str] = []
    again: list[str] = []
    start.verify_shards(lambda shard: first.append(shard.basename))
    start.verify_shards(lambda shard: again.append(shard.basename))
    assert start.val is not None
    assert len(first) == len(start.train.info.shards) + len(start.val.info.shards)
    assert again == []


def test_only_the_subsets_shards_are_read(dataset: Path, tmp_path: Path) -> None:
    start = prepare(demo("data.subset=40"), dataset, RunFolder(tmp_path / "run"))
    (_, kept), _ = start.shards()
    assert sum(shard.samples for shard in kept) >= 40 > sum(shard.samples for shard in kept[:-1])
    assert kept == list(start.train.info.shards[: len(kept)])


def test_a_dataset_of_a_subset_is_that_subset_whatever_was_left_out(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    def converted_with(subset: int) -> SplitInfo:
        return replace(info_at(dataset / "train"), planned_subset=subset)

    opened = replace(Dataset.at(str(dataset)).split("train"), info=converted_with(160))
    val = Dataset.at(str(dataset)).split("val")
    monkeypatch.setattr(Dataset, "split", lambda self, name: opened if name == "train" else val)
    assert prepare(demo("data.subset=160"), dataset, RunFolder(tmp_path / "run")).train_samples == 158
    with pytest.raises(UserError, match=r"data\.subset asks for 159"):
        prepare(demo("data.subset=159"), dataset, RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.subset=1000",), r"data\.subset asks for 1,000 training images .* has 158: pass data\.subset=null"),
        (("global_batch_size=256",), "158 training images do not fill one batch of global_batch_size=256"),
    ],
)
def test_too_few_images_are_said(dataset: Path, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(demo(*overrides), dataset, RunFolder(tmp_path / "run"))


def test_splits_of_other_classes_are_refused(copy: Path, few_classes: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "val")
    shutil.copytree(few_classes / "val", copy / "val")
    with pytest.raises(UserError, match=r"train has 10 classes .* and val 3"):
        prepare(demo(), copy, RunFolder(tmp_path / "run"))


def test_plan_prints_and_starts_nothing(dataset: Path, tmp_path: Path) -> None:
    outcome = run("train", "--config", "demo", "--data", dataset, "--save", tmp_path / "runs", "--ranks", 2, "--plan")
    assert outcome.status == 0
    assert "32 = 2 ranks x 16" in outcome.out
    assert "40 = 10 epochs x 4" in outcome.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "mds"), "pass either --phase 1, 2 or 3 or --config FILE"),
        (("--phase", "1", "--config", "demo", "--data", "mds"), "pass either --phase 1, 2 or 3 or --config FILE"),
        (("--phase", "1"), "pass --data DATASET"),
        (("--phase", "1", "--data", "nowhere"), "there is no dataset at nowhere"),
        (("--config", "phase9", "--data", "mds"), "there is no configuration phase9"),
        (("--phase", "3", "--ranks", "3", "--data", "mds"), "global_batch_size 2048 does not divide over 3 ranks"),
        (("--phase", "1", "--data", "mds", "optimizer.Lr=1"), "unknown key optimizer.Lr (did you mean optimizer.lr?)"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("train", *arguments, cwd=tmp_path)
    assert outcome.status == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.out == ""


def test_broken_newer_checkpoints_take_no_place_from_whole_ones(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    save(folder, 10)
    save(folder, 20).write_bytes(b"broken!")
    start = prepare(demo(), dataset, folder)
    start.record()
    save(folder, 12, keep=1)
    assert sorted(path.name for path in (folder.path / "checkpoints").glob("[!.]*")) == ["ep0-ba12.json", "ep0-ba12.pt"]


def test_a_damaged_run_file_is_said(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    (folder.path / "run.json").write_bytes(b"{")
    with pytest.raises(WorldError, match=r"run\.json is damaged"):
        prepare(demo(), dataset, folder)


def test_a_copy_of_the_dataset_is_verified_anew(dataset: Path, copy: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    prepare(demo(), dataset, folder).verify_shards()
    (folder.path / "verified.json").write_bytes((folder.path / "verified.json").read_bytes())
    shard = copy / "train" / "shard.00001.mds"
    status = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-30] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(WorldError, match=r"shard\.00001\.mds is broken"):
        prepare(demo(), copy, folder).verify_shards()
    (folder.path / "verified.json").write_bytes(b"nonsense")
    prepare(demo(), dataset, folder).verify_shards()


def test_a_done_run_without_checkpoints_is_done(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "runs" / "demo")
    folder.log.write_text('{"event": "checkpoint", "batch": 20}\n', encoding="utf-8")
    folder.result.write_text('{"top1": 0.5, "top5": 0.9}', encoding="utf-8")
    outcome = run("train", "--config", "demo", "--data", dataset, "--save", tmp_path / "runs")
    assert outcome.status == 0
    assert "is finished: top-1 50.00%" in outcome.out


@pytest.mark.parametrize("name", ["..", "a/b", "/abs"])
def test_a_run_has_a_folders_name(dataset: Path, name: str) -> None:
    outcome = run("train", "--config", "demo", "--data", dataset, "--run-name", name, "--plan")
    assert outcome.status == 2
    assert "pass the name of a folder" in outcome.err


def test_runs_are_not_saved_into_a_file(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("train", "--config", "demo", "--data", dataset, "--save", tmp_path / "file")
    assert outcome.status == 2
    assert "cannot be created: Not a directory; pass another --save" in outcome.err


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match="4 ranks need a GPU each and there are 2: pass --ranks 2"):
        prepare(demo("ranks=4"), dataset, RunFolder(tmp_path / "run"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    start = prepare(demo("ranks=4"), dataset, RunFolder(tmp_path / "run"))
    assert dict(describe(start))["device"] == "CPU: there is no GPU here; deterministic"


def test_checkpoints_may_lie_on_another_disk(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to("/dev/shm/" + tmp_path.name, target_is_directory=True)
    elsewhere = Path("/dev/shm") / tmp_path.name
    elsewhere.mkdir()
    try:
        folder = begun(dataset, tmp_path / "run")
        save(folder, 10)
        assert prepare(demo(), dataset, folder).checkpoint is not None
    finally:
        shutil.rmtree(elsewhere)


def test_runs_are_not_saved_to_an_address_of_another_kind(dataset: Path, tmp_path: Path) -> None:
    outcome = run("train", "--config", "demo", "--data", dataset, "--save", "gs://bucket/runs", cwd=tmp_path)
    assert outcome.status == 2
    assert "--save gs://bucket/runs: pass a folder or an s3:// address" in outcome.err
    assert list(tmp_path.glob("gs*")) == []


def test_a_broken_newer_checkpoint_is_named_where_an_older_one_is_taken(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    save(folder, 10)
    save(folder, 20).write_bytes(b"broken!")
    warnings: list[str] = []
    assert find_checkpoint(str(tmp_path / "run"), warnings.append).name == "ep0-ba10.pt"
    assert [("ep0-ba20.pt is skipped" in warning) for warning in warnings] == [True]


@pytest.mark.parametrize(
    "override", ["global_batch_size=2", "system.device_microbatch_size=1"], ids=["one a rank", "one a microbatch"]
)
def test_one_small_image_at_a_time_is_refused(dataset: Path, tmp_path: Path, override: str) -> None:
    config = demo("ranks=2", "augment={size_px: 32}", override)
    with pytest.raises(UserError, match="one image of 32 px at a time leaves BatchNorm a single value"):
        prepare(config, dataset, RunFolder(tmp_path / "run"))
    larger = demo("ranks=2", "augment={size_px: 40}", override)
    assert prepare(larger, dataset, RunFolder(tmp_path / "run")).batches_per_epoch


def test_a_deterministic_run_keeps_its_number_of_threads(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums on the processor depend on how they are split over threads."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    folder = begun(dataset, tmp_path / "run", "system.deterministic=true")
    begun(dataset, tmp_path / "free", "system.deterministic=false")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert prepare(demo("system.deterministic=true"), dataset, folder).identity["threads_per_rank"] == 8
    free = demo("system.deterministic=false")
    assert "threads_per_rank" not in prepare(free, dataset, RunFolder(tmp_path / "free")).identity
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with pytest.raises(UserError, match="threads_per_rank: 8 before, 4 now"):
        prepare(demo("system.deterministic=true"), dataset, folder)
    save(folder, 10)
    record, _ = folder.newest_checkpoint()
    with pytest.raises(UserError, match=r"8 before, 4 now\. Pass the dataset, and the OMP_NUM_THREADS if any"):
        Start.prepare(demo("system.deterministic=true"), Dataset.at(str(dataset)), folder, replayed=record)


def test_a_run_without_validation_opens_no_val(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train", tmp_path / "mds" / "train")
    start = prepare(demo("evaluation.every_epochs=null"), tmp_path / "mds", RunFolder(tmp_path / "run"))
    assert start.val is None
    assert start.identity["dataset"]["val"] is None
    assert ("validation images", "none, as evaluation.every_epochs says") in describe(start)
    assert [split.info.split for split, _ in start.shards()] == ["train"]


def test_a_continued_run_says_where_it_starts_and_what_it_has_lost(dataset: Path, tmp_path: Path) -> None:
    folder = begun(dataset, tmp_path / "run")
    save(folder, 3)

    def said(*events: tuple[str, int, int, float]) -> str:
        names = ("event", "attempt", "batch", "time")
        lines = [json.dumps(dict(zip(names, event, strict=True))) + "\n" for event in events]
        folder.log.write_text("".join(lines))
        return dict(describe(prepare(demo(), dataset, folder)))["starts at"]

    place = f"batch 3 of 40, epoch 1, {3 * demo().global_batch_size} images seen; "
    begun_at_0 = [("start", 1, 0, 100.0), *(("batch", 1, batch, 100.0 + 60 * batch) for batch in range(1, 6))]
    assert said() == place + "no batch lost"
    assert said(*begun_at_0[:4]) == place + "no batch lost"
    assert said(*begun_at_0) == place + "2 batches lost, 2 min of training"
    # What the start before lost was lost then.
    assert said(*begun_at_0, ("start", 2, 3, 900.0)) == place + "no batch lost"
    assert said(*begun_at_0, ("start", 2, 3, 900.0), ("batch", 2, 4, 930.0)) == place + "1 batch lost, 30 s of training"
