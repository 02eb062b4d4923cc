"""Checkpoints are written on a thread, from copies."""

import threading
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from imagenet_mds_train.checkpoints.background import BackgroundWriter, Snapshot, copied
from tests.support.command import HANG_SECONDS


def snapshot(batch: int) -> Snapshot:
    """A snapshot that says only which batch it is of."""
    return Snapshot({"batch": batch}, epoch=0, batch=batch, stall_seconds=0)


def test_a_copy_shares_nothing_with_what_goes_on_changing() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    numbers: Any = np.arange(3)
    state: dict[str, Any] = {
        "model": OrderedDict(weight=weight, half=torch.ones(2, dtype=torch.float16)),
        "optimizer": {"groups": [{"lr": 0.1, "params": [0, 1]}], "place": (weight, timedelta(seconds=3))},
        "rng": [{"numpy": ("MT19937", numbers)}],
    }
    kept = copied(state)
    with torch.no_grad():
        weight.add_(1)
    numbers += 1
    state["optimizer"]["groups"][0]["lr"] = 0.2
    assert type(kept["model"]) is OrderedDict
    assert torch.equal(kept["model"]["weight"], torch.ones(2, 3, 4, 5))
    assert kept["model"]["weight"].is_contiguous(memory_format=torch.channels_last)
    assert not kept["model"]["weight"].requires_grad
    assert kept["model"]["half"].dtype == torch.float16
    assert kept["optimizer"] == {
        "groups": [{"lr": 0.1, "params": [0, 1]}],
        "place": (kept["optimizer"]["place"][0], timedelta(seconds=3)),
    }
    assert torch.equal(kept["optimizer"]["place"][0], torch.ones(2, 3, 4, 5))
    assert kept["rng"][0]["numpy"][1].tolist() == [0, 1, 2]


def test_training_does_not_wait_and_only_the_newest_of_those_that_wait_is_written() -> None:
    go_on, written = threading.Event(), []

    def write(snapshot: Snapshot) -> None:
        assert go_on.wait(HANG_SECONDS)
        written.append(snapshot.batch)

    writer = BackgroundWriter(write)
    writer.put(snapshot(1))
    deadline = time.monotonic() + HANG_SECONDS
    while writer._waiting is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for batch in (2, 3, 4):
        writer.put(snapshot(batch))
    assert writer.busy
    go_on.set()
    writer.wait()
    assert written == [1, 4]
    assert not writer.busy


def test_a_failed_write_is_raised_in_the_training_thread_and_ends_the_writing() -> None:
    def write(snapshot: Snapshot) -> None:
        raise OSError("no room")

    writer = BackgroundWriter(write)
    writer.put(snapshot(1))
    for attempt in (writer.wait, writer.raise_if_failed, lambda: writer.put(snapshot(2))):
        with pytest.raises(OSError, match="no room"):
            attempt()


def test_waiting_for_nothing_returns() -> None:
    BackgroundWriter[Snapshot](lambda snapshot: None).wait()


def test_what_is_being_written_learns_of_a_newer_one() -> None:
    written: list[tuple[int, bool]] = []
    began = threading.Event()

    def write(snapshot: Snapshot) -> None:
        began.set()
        written.append((snapshot.batch, writer.superseded(HANG_SECONDS if snapshot.batch == 1 else 0.0)))

    writer = BackgroundWriter(write)
    writer.put(snapshot(1))
    assert began.wait(HANG_SECONDS)
    writer.put(snapshot(2))
    writer.wait()
    assert written == [(1, True), (2, False)]


def test_while_nothing_is_written_it_looks_around_and_what_it_finds_ends_the_training() -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 3:
            raise OSError("lost")

    writer = BackgroundWriter[Snapshot](lambda snapshot: None, idle=look, idle_seconds=0.001)
    writer.start()
    deadline = time.monotonic() + HANG_SECONDS
    while len(looks) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(OSError, match="lost"):
        writer.raise_if_failed()
