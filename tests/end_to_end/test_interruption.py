"""A machine that is taken away, or breaks, in the middle of a run. The trainer is the real one."""

import itertools
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.command import HANG_SECONDS, children, run, start, wait_until
from tests.support.metadata import ACTION, REBALANCE, TERMINATE, metadata_service
from tests.support.training import training

ENDLESS = ("schedule.epochs=1000", "evaluation.every_epochs=1000", "checkpoint.every_batches=null")
"""Epochs of five batches, each of which is saved."""


def command(dataset: Path, folder: Path, name: str, *more: object) -> list[object]:
    """The arguments of a training on two ranks, with loader workers, that does not end by itself."""
    return training(dataset, folder, name, "--ranks", 2, *ENDLESS, "data.workers_per_rank=1", *more)


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The events of a run so far that have one of the names, but for a line being written."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] in names]


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a command, waited for."""
    try:
        return process.wait(timeout=HANG_SECONDS)
    finally:
        process.kill()
        process.wait()


def test_a_recommendation_saves_in_mid_epoch_and_a_notice_stops_without_losing_a_batch(
    dataset: Path, tmp_path: Path
) -> None:
    folder, said = tmp_path / "notice", tmp_path / "said"
    # Epochs of ten batches, whose ends are saved in any case.
    arguments = command(dataset, tmp_path, "notice", "global_batch_size=8")

    def in_mid_epoch() -> str | None:
        """The recommendation, where the save after it is none at the end of an epoch."""
        last = events(folder, "batch")[-1]["batch"]
        return json.dumps({"noticeTime": "2030-01-01T00:00:00Z"}) if 1 <= last % 10 <= 6 else None

    with metadata_service() as metadata:
        process = start(*arguments, log=said, **metadata.variables)
        try:
            wait_until(lambda: events(folder, "batch"), "a batch", process)
            metadata.bodies[REBALANCE] = in_mid_epoch
            wait_until(
                lambda: any(event["batch"] % 10 for event in events(folder, "checkpoint")),
                "a checkpoint in mid-epoch",
                process,
            )
            (saved,) = (event["batch"] for event in events(folder, "checkpoint") if event["batch"] % 10)
            wait_until(lambda: events(folder, "batch")[-1]["batch"] > saved, "the batch after it", process)
            metadata.bodies[ACTION] = TERMINATE
        finally:
            status = ended(process)
    assert status == 75, said.read_text(encoding="utf-8")
    last = events(folder, "batch")[-1]["batch"]
    assert [event["batch"] for event in events(folder, "checkpoint", "stopped")[-2:]] == [last, last]
    notices = events(folder, "notice")
    assert [one["kind"] for one in notices] == ["save", "stop"]
    assert notices[0]["batch"] < notices[1]["batch"] <= last
    words = said.read_text(encoding="utf-8")
    assert words.count("an interruption of this spot instance has become likely. Saving, then going on.") == 1
    assert words.count("Spot notice: this instance will be terminated at 2030-01-02T03:04:05Z. Saving, then exit") == 1


def test_a_loader_that_hangs_is_named_and_a_rank_that_hangs_does_not_delay_a_stop(
    dataset: Path, tmp_path: Path
) -> None:
    """One run: its first start is ended by the watchdog, its second one by the deadline."""
    folder, said = tmp_path / "hang", tmp_path / "said"
    process = start(*command(dataset, tmp_path, "hang", "system.hang_seconds=15"), log=said)
    try:
        wait_until(lambda: events(folder, "checkpoint"), "a checkpoint", process)
        worker = children(children(process.pid)[0])[-1]
        os.kill(worker, signal.SIGSTOP)
    finally:
        status = ended(process)
    assert status == 1, said.read_text(encoding="utf-8")
    (line,) = (line for line in said.read_text(encoding="utf-8").splitlines() if "made no progress for" in line)
    assert line.startswith("imagenet-mds: rank 0 made no progress for 1")
    assert f": its process {worker} is stopped, by SIGSTOP or a debugger; stacks in {folder}/rank0.log" in line
    for rank in range(2):
        assert "in _train_loop" in (folder / f"rank{rank}.log").read_text(encoding="utf-8")

    process = start(*command(dataset, tmp_path, "hang", "system.stop_seconds=3"), log=said)
    try:
        wait_until(lambda: [event["attempt"] for event in events(folder, "batch")][-1] == 2, "a batch", process)
        os.kill(children(process.pid)[1], signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
    finally:
        status = ended(process)
    assert status == 75, said.read_text(encoding="utf-8")
    assert "ranks 0, 1 had not stopped 3 s after the request and had to be killed" in said.read_text(encoding="utf-8")


def test_a_killed_rank_and_a_stopped_one_are_restarted_in_place_under_the_lock_and_a_stop_is_not(
    dataset: Path, tmp_path: Path
) -> None:
    folder, said = tmp_path / "again", tmp_path / "said"
    arguments = command(dataset, tmp_path, "again", "system.hang_seconds=15")

    def wait_for(name: str, attempt: int) -> None:
        """Wait for an event of a start. One that has saved fails in another batch than the one before it."""
        wait_until(
            lambda: any(event["attempt"] == attempt for event in events(folder, name)), f"{name} {attempt}", process
        )

    process = start(*arguments, "--until-done", log=said)
    try:
        for attempt, number in ((1, signal.SIGKILL), (2, signal.SIGSTOP)):
            wait_for("checkpoint", attempt)
            os.kill(children(process.pid)[1], number)
            wait_for("restart", attempt)
            refused = run(*arguments)
            assert refused.status == 2
            assert "is running already" in refused.err
        wait_for("checkpoint", 3)
        process.send_signal(signal.SIGTERM)
    finally:
        status = ended(process)
    assert status == 75, said.read_text(encoding="utf-8")
    killed, stopped = events(folder, "restart")
    assert "rank 1 was killed, most likely by the kernel because memory ran out" in killed["reason"]
    assert "rank 1 made no progress for 1" in stopped["reason"]
    assert stopped["reason"].endswith("it is stopped, by SIGSTOP or a debugger")
    assert [event["pause_seconds"] for event in (killed, stopped)] == [5.0, 5.0]
    assert [(event["attempt"], event["status"]) for event in events(folder, "failed")] == [(1, 1), (2, 1)]
    assert (
        said.read_text(encoding="utf-8").count("restarting in 5 s (1 of at most 5 without a new checkpoint): rank 1 ")
        == 2
    )
    # Each start went on from the newest checkpoint that the one before it had saved.
    starts = events(folder, "start", "checkpoint")
    for before, after in itertools.pairwise(starts):
        assert after["event"] != "start" or after["batch"] == before["batch"]
