"""What happens to a run on a machine as one rents it: its GPU cannot be used, its disk fills, its learning rate was too
high; and a run that starts from another one's weights."""

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenet_mds.storage.base import file_xxh64
from tests.support.command import HANG_SECONDS, PROGRAM, Outcome, children, done, environment, run, start, wait_until
from tests.support.training import training

pytestmark = pytest.mark.slow  # starts whole trainings


def weights(folder: Path) -> dict[str, Any]:
    """The weights in the newest checkpoint of a run."""
    (path,) = (folder / "checkpoints").glob("ep1-ba5.pt")
    state: dict[str, Any] = torch.load(path, weights_only=False)["state"]["model"]
    return state


@pytest.fixture(scope="module")
def first(dataset: Path, module_folder: Path) -> Path:
    """The folder of a finished run."""
    root = module_folder
    done(*training(dataset, root, "first"))
    return root / "first"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_gpu_that_torch_cannot_use_ends_the_run_with_torchs_reason(dataset: Path, tmp_path: Path, ranks: int) -> None:
    visible = ",".join(map(str, range(ranks)))
    outcome = run(*training(dataset, tmp_path, "gpu", "--ranks", ranks), CUDA_VISIBLE_DEVICES=visible)
    assert outcome.status == 2, outcome.err
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("imagenet-mds: rank 0 cannot use its GPU"))
    assert ", torch says: " in line
    assert line.endswith("or pass system.device=cpu")
    assert "Traceback" not in outcome.err
    told = run(*training(dataset, tmp_path, "cpu", "system.device=cpu", "--plan"), CUDA_VISIBLE_DEVICES=visible)
    assert "device:            CPU, as system.device says" in told.out


def test_weights_that_are_not_finite_are_never_saved(dataset: Path, first: Path, tmp_path: Path) -> None:
    """The loss of the first batch is fine, because it is of the weights before its step."""
    diverging = training(dataset, tmp_path, "high", "optimizer.lr=1e38", "checkpoint.every_batches=1")
    outcome = run(*diverging)
    assert outcome.status == 78
    (line,) = (line for line in outcome.err.splitlines() if "the weights are not finite" in line)
    assert line.startswith("imagenet-mds: the weights are not finite after batch 1: the learning rate is too high")
    assert "start a new run from it with --from-checkpoint RUN, another --run-name and a smaller optimizer.lr" in line
    assert list((tmp_path / "high" / "checkpoints").glob("*.pt")) == []


def run_with_small_files(size_bytes: int, *arguments: object) -> Outcome:
    """Run a command that can write no file larger than this, as on a disk that is full."""
    process = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes)),
    )
    return Outcome(process.returncode, process.stdout, process.stderr)


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    saving = training(dataset, tmp_path, "full", "checkpoint.every_batches=1")
    outcome = run_with_small_files(1 << 20, *saving)
    assert outcome.status == 78
    (line,) = (line for line in outcome.err.splitlines() if "cannot be written" in line)
    assert line.startswith(
        f"imagenet-mds: the checkpoint of batch 1 cannot be written to {tmp_path}/full/checkpoints: "
    )
    assert line.endswith("The one before it is kept: make room and run the same command again")
    assert "Traceback" not in outcome.err
    assert [path for path in (tmp_path / "full").rglob("*") if path.suffix == ".pt"] == []
    assert done(*saving).out.count("is finished after 5 batches") == 1


def test_a_checkpoint_without_the_optimizers_state_is_not_gone_on_from(
    dataset: Path, first: Path, tmp_path: Path
) -> None:
    """Composer says so in a warning, which the ranks hide, and trains on without momentum."""
    run_folder = Path(shutil.copytree(first, tmp_path / "first"))
    (run_folder / "result.json").unlink()
    path = run_folder / "checkpoints" / "ep1-ba5.pt"
    saved = torch.load(path, weights_only=False)
    saved["state"]["optimizers"] = {"Adam": saved["state"]["optimizers"]["SGD"]}
    torch.save(saved, path)
    record = path.with_suffix(".json")
    changed = {"size_bytes": path.stat().st_size, "xxh64": file_xxh64(path)}
    record.write_text(json.dumps(json.loads(record.read_bytes()) | changed), encoding="utf-8")
    outcome = run(*training(dataset, tmp_path, "first"))
    assert outcome.status == 2, outcome.err
    (line,) = (line for line in outcome.err.splitlines() if "cannot be continued" in line)
    assert "SGD is not in the state_dict" in line
    assert "--from-checkpoint" in line
    assert "Traceback" not in outcome.err


def test_a_run_starts_from_the_weights_of_another_with_another_recipe(
    dataset: Path, first: Path, tmp_path: Path
) -> None:
    still = ("optimizer={lr: 1e-30}", "augment.flip_probability=0")
    fork = training(dataset, tmp_path, "fork", "--from-checkpoint", first, *still)
    planned = done(*fork, "--plan").out
    assert f"weights:           those of {first}/checkpoints/ep1-ba5.pt" in planned
    done(*fork)
    before, after = weights(first), weights(tmp_path / "fork")
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in learned)
    record = json.loads((tmp_path / "fork" / "run.json").read_bytes())
    assert record["forked_from"] == f"{first}/checkpoints/ep1-ba5.pt"
    assert record["identity"]["start"].keys() == {"weights_xxh64"}
    # A finished run is finished with and without saying again where it began.
    for again in (fork, training(dataset, tmp_path, "fork", *still)):
        assert "is finished: top-1" in done(*again).out


def test_a_fork_is_continued_as_what_it_is(dataset: Path, first: Path, tmp_path: Path) -> None:
    origin = Path(shutil.copytree(first, tmp_path / "origin"))
    longer = ("schedule={epochs: 3, warmup_epochs: 0}", "checkpoint.every_batches=1")
    fork = training(dataset, tmp_path, "fork", "--from-checkpoint", origin, *longer)
    done(*fork)
    (tmp_path / "fork" / "result.json").unlink()
    # The same command continues, even if the run that it began from has gone on or is gone, and so does it without.
    shutil.rmtree(origin)
    for again in (fork, training(dataset, tmp_path, "fork", *longer)):
        assert "starts at:         batch 15 of 15" in done(*again, "--plan").out
    # Without a checkpoint of its own it needs its start again, and it is known by its content.
    shutil.rmtree(tmp_path / "fork" / "checkpoints")
    (tmp_path / "fork" / "log.jsonl").unlink()
    asked = run(*training(dataset, tmp_path, "fork", *longer, "--plan"))
    assert asked.status == 2
    assert "starts from the weights of a file: pass its --from-checkpoint" in asked.err
    other = tmp_path / "other.pt"
    other.write_bytes((first / "checkpoints" / "ep1-ba5.pt").read_bytes() + b"\0")
    refused = run(*training(dataset, tmp_path, "fork", "--from-checkpoint", other, *longer, "--plan"))
    assert refused.status == 2
    assert "start.weights_xxh64: " in refused.err


def test_an_exported_network_starts_a_run_of_other_classes(first: Path, few_classes: Path, tmp_path: Path) -> None:
    file = tmp_path / "first.safetensors"
    assert "its logits differ by at most 0.0e+00" in done("export", first, file).out
    still = ("optimizer={lr: 1e-30}", "augment.flip_probability=0", "data.subset=32")
    trained = done(*training(few_classes, tmp_path, "fine", *still, "--pretrained", file))
    assert f"note: {file} has 10 outputs, of other classes than the dataset: the last layer starts" in trained.err
    (path,) = (tmp_path / "fine" / "checkpoints").glob("ep1-ba2.pt")
    before, after = weights(first), torch.load(path, weights_only=False)["state"]["model"]
    learned = [name for name in before if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert [name for name in learned if not torch.equal(before[name], after[name])] == [
        "network.fc.weight",
        "network.fc.bias",
    ]
    both = run(*training(few_classes, tmp_path, "both", "--pretrained", file, "--from-checkpoint", first))
    assert (both.status, "pass --from-checkpoint or --pretrained" in both.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["model.depth=18"], "is of another network (ResNet-10): pass model.depth and algorithms.blurpool as it has"),
        (["algorithms.blurpool=true"], "is of another network (ResNet-10)"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(
    dataset: Path, first: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    for plan in (["--plan"], []):
        outcome = run(*training(dataset, tmp_path, "fork", "--from-checkpoint", first, *more, *plan))
        assert (outcome.status, outcome.err.count("\n")) == (2, 1)
        assert words in outcome.err
    missing = run(*training(dataset, tmp_path, "fork", "--from-checkpoint", tmp_path / "none"))
    assert (missing.status, missing.err.count("\n")) == (2, 1)
    assert f"there is no checkpoint at {tmp_path}/none" in missing.err


def test_a_file_alone_of_another_network_is_refused_by_the_ranks_and_takes_no_name(
    dataset: Path, first: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    shutil.copy(first / "checkpoints" / "ep1-ba5.pt", file)
    outcome = run(*training(dataset, tmp_path, "fork", "--from-checkpoint", file, "algorithms.blurpool=true"))
    assert outcome.status == 2
    (line,) = (line for line in outcome.err.splitlines() if "is of another network (ResNet-10)" in line)
    assert line.startswith("imagenet-mds: ")
    assert "Traceback" not in outcome.err
    # Nothing was trained, so the name is free for what the message asks for.
    assert not (tmp_path / "fork").exists()
    assert "starts at:         0" in done(*training(dataset, tmp_path, "fork", "--from-checkpoint", file, "--plan")).out


def test_a_loader_worker_that_the_kernel_killed_is_one_line(dataset: Path, tmp_path: Path) -> None:
    """On two ranks: the second one loses a worker, and the first one then loses the second."""
    more = ("--ranks", 2, "data={workers_per_rank: 1}", "schedule={epochs: 200, warmup_epochs: 0}")
    process = start(*training(dataset, tmp_path, "killed", *more), log=tmp_path / "log")
    log = tmp_path / "killed" / "log.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count('"batch"') > 2, "a batch", process)
    launched = children(process.pid)
    ranks = [pid for pid in launched if children(pid)]
    assert len(ranks) == 2
    os.kill(children(ranks[1])[-1], signal.SIGKILL)
    assert process.wait(timeout=HANG_SECONDS) == 1
    said = (tmp_path / "log").read_text(encoding="utf-8")
    (line,) = (line for line in said.splitlines() if "a loader worker of rank 1 was killed, most likely" in line)
    assert line.endswith(f"(rank 1; more in {tmp_path}/killed/rank1.log)")
    assert "Traceback" not in said


def test_a_run_without_validation_is_trained_stopped_and_continued(dataset: Path, tmp_path: Path) -> None:
    mds = tmp_path / "mds"
    shutil.copytree(dataset / "train", mds / "train")
    command = training(
        mds, tmp_path, "unseen", "evaluation={every_epochs: null}", "checkpoint.every_batches=1", "data.damaged=black"
    )
    log = tmp_path / "unseen" / "log.jsonl"
    process = start(*command, log=tmp_path / "out")
    wait_until(lambda: log.exists() and '"checkpoint"' in log.read_text(), "a checkpoint", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG_SECONDS) == 75
    outcome = done(*command)
    assert "is finished after 5 batches: not validated" in outcome.out
    assert "is finished: not validated. Pass --run-name" in done(*command).out
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (epoch,) = (event for event in events if event["event"] == "epoch")
    assert (epoch["batch"], epoch["damaged"]) == (5, 0)
    result = json.loads((tmp_path / "unseen" / "result.json").read_bytes())
    assert (result["batches"], result["epochs"], result["best"]) == (5, 1, None)
    assert "top1" not in result
    # What it learned can be measured on what there is.
    assert "top-1" in done("eval", tmp_path / "unseen", "--data", mds, "--split", "train").out
