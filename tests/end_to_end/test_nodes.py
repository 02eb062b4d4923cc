"""A run on several machines, each with a launcher of its own: here two on one host."""

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command import HANG_SECONDS, done, run, start, wait_until
from tests.support.training import training

RANKS = 4
EPOCHS, BATCHES = 2, 2 * (158 // 16)
SAVED_EVERY = 3
MORE = (
    "--deterministic",
    f"schedule={{epochs: {EPOCHS}, warmup_epochs: 0}}",
    "data={subset: null, workers_per_rank: 1}",
    "algorithms={ema: {}, mixup: {}}",
    f"checkpoint={{every_batches: {SAVED_EVERY}, keep: 9}}",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Node:
    """The launcher of one node of two, each with a folder for runs of its own.

    Args:
        dataset: what it trains on.
        root: of the folders of both nodes.
        rank: of the node.
        port: of node 0.
        more: further arguments.
    """

    def __init__(self, dataset: Path, root: Path, rank: int, port: int, *more: object) -> None:
        self.port, self.folder = port, root / f"node{rank}"
        self.folder.mkdir(exist_ok=True)
        self.log = self.folder / "out"
        nodes = ["--ranks", RANKS, "--nodes", 2, "--node-rank", rank, "--master", f"127.0.0.1:{port}"]
        self.process = start(
            *training(dataset, self.folder, "several", *nodes, *MORE, *more), log=self.log, **ONE_THREAD
        )

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8")

    def end(self) -> int:
        """Wait for its end; return its status."""
        try:
            return self.process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said) from None
        finally:
            self.process.kill()


def both(dataset: Path, root: Path, *more: object) -> list[Node]:
    """Two nodes that train together."""
    port = free_port()
    return [Node(dataset, root, rank, port, *more) for rank in range(2)]


def events(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def batches(log: Path) -> dict[int, float]:
    """Every logged batch with its loss, as it was trained last."""
    return {event["batch"]: event["loss"] for event in events(log) if event["event"] == "batch"}


@pytest.mark.slow  # starts 20 ranks
def test_two_nodes_train_as_one_machine_with_as_many_ranks_whatever_interrupts_them(
    dataset: Path, tmp_path: Path
) -> None:
    done(*training(dataset, tmp_path, "whole", "--ranks", RANKS, *MORE), cwd=None, **ONE_THREAD)
    kept = tmp_path / "node0" / "several"
    log = kept / "log.jsonl"

    # A notice on node 1 stops both.
    first, second = both(dataset, tmp_path)
    wait_until(lambda: batches(log), "a batch", first.process)
    second.process.send_signal(signal.SIGTERM)
    assert (first.end(), second.end()) == (75, 75), first.said + second.said
    stopped_at = max(batches(log))
    assert not list((tmp_path / "node1").rglob("*.pt")), "node 0 alone keeps the run"

    # Node 1 is gone without a word, and node 0 waits for the next one, which is told where to continue.
    first, second = both(dataset, tmp_path, "--until-done")
    wait_until(lambda: max(batches(log)) > stopped_at + SAVED_EVERY, "a batch to lose", first.process)
    second.process.kill()
    second.process.wait()
    wait_until(lambda: "restarting in" in first.said, "the restart", first.process)
    assert "node 1 is lost" in first.said
    second = Node(dataset, tmp_path, 1, first.port, "--until-done")
    assert (first.end(), second.end()) == (0, 0), first.said + second.said
    assert "Node 0 has the result" in second.said

    assert [event["ranks"] for event in events(log) if event["event"] == "start"] == [RANKS] * 3
    assert batches(log) == batches(tmp_path / "whole" / "log.jsonl")
    assert len(batches(log)) == BATCHES
    name = f"checkpoints/ep{EPOCHS}-ba{BATCHES}.pt"
    one, other = (torch.load(run / name, weights_only=False)["state"]["model"] for run in (tmp_path / "whole", kept))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []

    # Who comes to a run that is over is told so.
    first, second = both(dataset, tmp_path)
    assert (first.end(), second.end()) == (0, 0), first.said + second.said
    assert "the run is finished" in second.said


def test_nodes_that_would_train_something_else_are_refused_everywhere(dataset: Path, tmp_path: Path) -> None:
    port = free_port()
    first = Node(dataset, tmp_path, 0, port)
    other = Node(dataset, tmp_path, 1, port, "optimizer.lr=0.7")
    assert (first.end(), other.end()) == (2, 2), first.said + other.said
    for node in (first, other):
        assert "something else than node 0: recipe.optimizer.lr: 0.1 on node 0, 0.7 on node 1." in node.said
        assert node.said.count("imagenet-mds: ") == 1, node.said
    assert "node 1 (127.0.0.1): it would train" in first.said
    assert f"nodes:             2, this is node 0; they meet at 127.0.0.1:{port}\n" in first.said
    assert not (tmp_path / "node0" / "several").exists(), "the run's name is free"


def test_a_node_that_lacks_its_dataset_does_not_keep_the_others_waiting(dataset: Path, tmp_path: Path) -> None:
    port = free_port()
    first = Node(dataset, tmp_path, 0, port)
    wait_until(lambda: "starting the ranks" in first.said, "node 0", first.process)
    other = Node(tmp_path / "none", tmp_path, 1, port)
    assert (first.end(), other.end()) == (2, 2), first.said + other.said
    why = f"there is no dataset at {tmp_path / 'none'}"
    assert f"imagenet-mds: {why}" in other.said
    assert f"imagenet-mds: node 1 (127.0.0.1): {why}" in first.said


def test_mistakes_that_one_node_makes(dataset: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, line in (
            (["--nodes", 3, "--node-rank", 0, "--master", "a"], "4 ranks cannot be dealt evenly to 3 nodes"),
            (["--nodes", 2, "--node-rank", 2, "--master", "a"], "the last of 2 is 1"),
            (["--nodes", 2, "--master", "a"], "several machines need all of --nodes, --node-rank and --master"),
            (["--nodes", 2, "--node-rank", 0, "--master", f"127.0.0.1:{port}"], f"cannot listen on port {port}"),
        ):
            found = run(*training(dataset, tmp_path, "one", "--ranks", RANKS, *arguments))
            assert found.status == 2, found.err
            assert line in found.err
            assert "Traceback" not in found.err
    assert not (tmp_path / "one").exists()
