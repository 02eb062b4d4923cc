"""Batches on their way to the device."""

from typing import Any

import pytest
import torch

from imagenet_mds_train.data.device import on_a_stream


class Recorder:
    """Stands for torch's streams and events where there is no GPU: writes down who waits for what, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.events = 0

    def record_event(self) -> str:
        """An event behind all that the side stream was given so far."""
        self.events += 1
        self.log.append(f"record {self.events}")
        return f"event {self.events}"

    def wait_event(self, event: str) -> None:
        """The training stream waits."""
        self.log.append(f"wait {event}")

    def __enter__(self) -> None:
        self.log.append("side stream")

    def __exit__(self, *_: object) -> None:
        self.log.append("training stream")


class OnDevice:
    """A tensor's part in it."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def record_stream(self, stream: Recorder) -> None:
        """The memory is in use by the training stream."""
        assert stream is self.recorder
        self.recorder.log.append(f"in use {self.name}")


def test_the_next_batch_is_on_its_way_while_this_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: recorder)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: recorder)

    def finish(batch: Any, number: int) -> Any:
        assert batch == number + 1
        recorder.log.append(f"finish {batch}")
        return (OnDevice(recorder, f"images {batch}"), OnDevice(recorder, f"labels {batch}"))

    used = []
    for batch in on_a_stream(zip([1, 2, 3], range(3), strict=True), finish, torch.device("cuda", 0)):
        used.append(batch[0].name)  # type: ignore[attr-defined] # of the recorder's
        recorder.log.append(f"use {len(used)}")
    assert used == ["images 1", "images 2", "images 3"]
    log = recorder.log
    for number in (1, 2, 3):
        finished, waited, use = (
            log.index(f"record {number}"),
            log.index(f"wait event {number}"),
            log.index(f"use {number}"),
        )
        assert log.index(f"finish {number}") < finished < waited < log.index(f"in use images {number}") < use
        if number < 3:
            assert log.index(f"finish {number + 1}") < use, "one batch ahead"
    assert log.count("side stream") == log.count("training stream") == 3


def test_nothing_is_asked_of_a_stream_for_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Recorder())
    assert list(on_a_stream(iter([]), lambda batch, number: batch, torch.device("cuda", 0))) == []
