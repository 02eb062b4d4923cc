"""A run in S3 goes on from S3 alone, on any machine, and ends as the run never stopped; of two machines one writes."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import HANG_SECONDS, done, run, start, wait_until
from tests.support.s3_server import BUCKET, Proxy, Request, direct
from tests.support.states import assert_same, read_log, read_state, tree_of

SAVE = f"s3://{BUCKET}/runs"
RECIPE = (
    "global_batch_size=8",
    "augment.size_px=24",
    "evaluation={resize_px: 28, crop_px: 24, device_batch_size: 16, workers_per_rank: 0}",
    "model.depth=10",
    "schedule={epochs: 2, warmup_epochs: 0}",
    "algorithms={mixup: {alpha: 0.2}, cutmix: {}, label_smoothing: {smoothing: 0.1}, ema: {half_life_batches: 10}}",
    "data={subset: 152, workers_per_rank: 1}",
    "system.deterministic=true",
    "checkpoint.every_batches=3",
    "logging.every_batches=1",
)
BATCHES = 2 * (152 // 8)


class Machine:
    """A machine of its own: its cache, and nothing else that lasts."""

    def __init__(self, root: Path, name: str, dataset: Path) -> None:
        self.folder, self.dataset = root / name, dataset
        self.folder.mkdir()

    @property
    def variables(self) -> dict[str, Any]:
        """Its environment."""
        return {"XDG_CACHE_HOME": str(self.folder / "cache"), "HOME": str(self.folder)}

    def command(self, save: str = SAVE, *more: str) -> list[object]:
        """The command that starts the run and continues it anywhere."""
        known = ["train", "--config", "demo", "--data", self.dataset, "--save", save, "--run-name", "one"]
        return [*known, *RECIPE, *more]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start or continue the run in the background."""
        return start(*self.command(SAVE, *more), log=self.folder / "out", **self.variables)

    def said(self) -> str:
        """The output of what was started."""
        return (self.folder / "out").read_text(encoding="utf-8")

    def log(self) -> list[dict[str, Any]]:
        """The log of the working copy."""
        found = list(self.folder.glob("cache/imagenet-mds/runs/*/one/log.jsonl"))
        return read_log(found[0]) if found else []

    def reached(self, batch: int) -> bool:
        """Whether the batch is trained."""
        return any(event["event"] == "batch" and event["batch"] >= batch for event in self.log())


@pytest.fixture(scope="module")
def whole(dataset: Path, module_folder: Path) -> dict[str, Any]:
    """The state of the run never stopped, on a disk."""
    machine = Machine(module_folder, "here", dataset)
    done(*machine.command(str(machine.folder / "runs")), **machine.variables)
    return read_state(machine.folder / "runs" / "one" / "checkpoints" / f"ep2-ba{BATCHES}.pt")


def fetched(server: int, name: str, folder: Path) -> Path:
    """A file of the run, past the proxy."""
    path = folder / Path(name).name
    direct(server).download_file(BUCKET, f"runs/one/{name}", str(path))
    return path


def checkpoints(server: int) -> list[str]:
    """The checkpoints that have a record."""
    found = direct(server).list_objects_v2(Bucket=BUCKET, Prefix="runs/one/checkpoints/").get("Contents", [])
    return [Path(item["Key"]).stem for item in found if item["Key"].endswith(".json")]


def assert_ends_as(whole: dict[str, Any], server: int, folder: Path) -> None:
    """The last checkpoint in S3 is that of the run never stopped, in every bit."""
    state = read_state(fetched(server, f"checkpoints/ep2-ba{BATCHES}.pt", folder))
    assert_same(whole["model"], state["model"], "model")
    assert_same(whole["optimizers"], state["optimizers"], "optimizers")
    average, other = (dict(one["algorithms"])["EMA"]["ema_model"] for one in (whole, state))
    assert_same(average, other, "EMA")


def test_a_stopped_run_goes_on_from_s3_alone_on_a_bare_machine(
    proxy: Proxy, server: int, dataset: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    first = Machine(tmp_path, "first", dataset)
    process = first.start()
    wait_until(lambda: first.reached(8), "8 batches", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG_SECONDS) == 75, first.said()
    (stopped,) = [event["batch"] for event in first.log() if event["event"] == "stopped"]
    # Durable on return, where it belongs: nothing of the first machine is needed any more.
    assert f"ep{stopped // 19}-ba{stopped}" in checkpoints(server)

    second = Machine(tmp_path, "second", dataset)
    outcome = run(*second.command(), **second.variables)
    assert outcome.status == 0, outcome.err
    assert f"batch {stopped} of {BATCHES}" in outcome.out
    assert_ends_as(whole, server, tmp_path)
    log = [json.loads(line) for line in fetched(server, "log.jsonl", tmp_path).read_text().splitlines()]
    trained = [event["batch"] for event in log if event["event"] == "batch"]
    assert trained == list(range(1, BATCHES + 1))
    assert [event["batch"] for event in log if event["event"] == "start"] == [0, stopped]
    assert json.loads(fetched(server, "result.json", tmp_path).read_text())["batches"] == BATCHES
    assert len(checkpoints(server)) <= 4  # the last three, and that of the best validation

    third = Machine(tmp_path, "third", dataset)
    again = done(*third.command(), **third.variables)
    assert f"{SAVE}/one is finished: top-1" in again.out
    measured = done("eval", f"{SAVE}/one", "--data", dataset, "--json", **third.variables)
    result = json.loads(fetched(server, "result.json", tmp_path).read_text())
    assert json.loads(measured.out)["top1"] == pytest.approx(result["top1"])


def test_a_start_elsewhere_takes_the_run_over_and_the_earlier_one_stops(
    proxy: Proxy, server: int, dataset: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    first, second = Machine(tmp_path, "first", dataset), Machine(tmp_path, "second", dataset)
    old = first.start()
    wait_until(lambda: len(checkpoints(server)) > 1, "checkpoints in S3", old)
    stopped = tree_of(old.pid)  # the ranks too, so that they are still far from the end when it is taken over
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    new = second.start()
    wait_until(lambda: second.reached(1), "a batch on the second machine", new)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert old.wait(timeout=HANG_SECONDS) == 2, first.said()
    assert "was taken over by" in first.said()
    assert new.wait(timeout=HANG_SECONDS) == 0, second.said()
    assert_ends_as(whole, server, tmp_path)


def test_training_goes_on_while_s3_refuses_checkpoints(
    proxy: Proxy, server: int, dataset: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    machine = Machine(tmp_path, "one", dataset)
    refused: list[Request] = []

    def choose(request: Request) -> str | None:
        if request.method in ("PUT", "POST") and "/checkpoints/" in request.path and not machine.reached(20):
            refused.append(request)
            return "denied"
        return None

    proxy.choose = choose
    process = machine.start()
    assert process.wait(timeout=HANG_SECONDS) == 0, machine.said()
    assert refused
    assert "the upload is tried again" in machine.said()
    assert_ends_as(whole, server, tmp_path)


def test_mistakes_are_one_line(proxy: Proxy, dataset: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "one", dataset)
    missing = run(*machine.command("s3://no-such-bucket/runs"), **machine.variables)
    assert missing.status == 2
    assert "no-such-bucket" in missing.err
    assert "Traceback" not in missing.err
    proxy.choose = lambda request: "denied" if request.method == "PUT" else None
    denied = run(*machine.command(), **machine.variables)
    assert denied.status == 2
    assert "allow s3:PutObject there, or pass another --save" in denied.err
    # The proxy still refuses to write, which a plan does not do.
    planned = run(*machine.command(SAVE, "--plan"), **machine.variables)
    assert planned.status == 0, planned.err
