"""Notices of an interruption, from a metadata service over HTTP."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenet_mds_train.interruption.notice import Notice, NoticeWatcher
from imagenet_mds_train.run.launch import Limits, launch
from tests.support.command import wait_until
from tests.support.metadata import ACTION, REBALANCE, TERMINATE, Metadata, metadata_service

SOON = 0.02


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """A service that has no notice, and is the one that is asked."""
    with metadata_service() as metadata:
        for name, value in metadata.variables.items():
            monkeypatch.setenv(name, value)
        yield metadata


@pytest.fixture
def watcher(metadata: Metadata) -> Iterator[NoticeWatcher]:
    """A watcher that asks often."""
    watcher = NoticeWatcher(SOON)
    yield watcher
    watcher.close()


def taken(watcher: NoticeWatcher) -> Notice:
    """The next notice, waited for."""
    found: list[Notice] = []

    def take() -> bool:
        if notice := watcher.next():
            found.append(notice)
        return bool(found)

    wait_until(take, "a notice")
    return found[0]


def asked_again(metadata: Metadata) -> None:
    """Wait until the service was asked three times more."""
    before = len(metadata.asked)
    wait_until(lambda: len(metadata.asked) > before + 6, "more questions")


@pytest.mark.parametrize(("action", "word"), [("terminate", "terminated"), ("stop", "stopped"), ("hibernate", "hiber")])
def test_an_action_is_a_stop_with_its_time(metadata: Metadata, watcher: NoticeWatcher, action: str, word: str) -> None:
    asked_again(metadata)
    assert watcher.next() is None
    metadata.bodies[ACTION] = json.dumps({"action": action, "time": "2030-01-02T03:04:05Z"})
    notice = taken(watcher)
    assert notice.kind == "stop"
    assert f"this instance will be {word}" in notice.text
    assert notice.text.endswith("at 2030-01-02T03:04:05Z")
    assert metadata.refused == 0


def test_a_rebalance_recommendation_is_one_save_each(metadata: Metadata, watcher: NoticeWatcher) -> None:
    for when in ("2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z"):
        metadata.bodies[REBALANCE] = json.dumps({"noticeTime": when})
        notice = taken(watcher)
        assert (notice.kind, when in notice.text) == ("save", True)
        asked_again(metadata)
        assert watcher.next() is None
    metadata.bodies[ACTION] = TERMINATE
    assert taken(watcher).kind == "stop"


def test_a_token_is_renewed_before_it_expires_and_when_it_is_refused(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata.ttl_seconds = 2.0
    watcher = NoticeWatcher(SOON)
    wait_until(lambda: len(metadata.tokens) > 2, "other tokens")
    metadata.ttl_seconds = 21_600
    before = len(metadata.tokens)
    wait_until(lambda: len(metadata.tokens) > before, "another token")
    metadata.tokens.clear()
    wait_until(lambda: metadata.tokens, "a token after a refusal")
    metadata.bodies[ACTION] = TERMINATE
    assert taken(watcher).kind == "stop"
    assert metadata.refused == 1


@pytest.mark.parametrize("body", ["<html>captive portal</html>", "[]", '{"action": "dance"}', "\x00" * 100_000])
def test_garbage_is_said_once_and_a_notice_after_it_is_seen(
    metadata: Metadata, watcher: NoticeWatcher, body: str
) -> None:
    metadata.bodies[ACTION] = body
    notice = taken(watcher)
    assert notice.kind == "trouble"
    assert f"at http://127.0.0.1:{metadata.port} does not answer as it should" in notice.text
    asked_again(metadata)
    assert watcher.next() is None
    metadata.bodies[ACTION] = TERMINATE
    assert taken(watcher).kind == "stop"


def test_a_stall_is_said_once_and_a_notice_after_it_is_seen(metadata: Metadata, watcher: NoticeWatcher) -> None:
    asked_again(metadata)
    metadata.stalls = True
    assert taken(watcher).kind == "trouble"
    metadata.stalls = False
    metadata.bodies[ACTION] = TERMINATE
    assert taken(watcher).kind == "stop"


def test_it_can_be_turned_off(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "True")
    metadata.bodies[ACTION] = TERMINATE
    watcher = NoticeWatcher(SOON)
    time.sleep(0.3)
    assert watcher.next() is None
    assert metadata.tokens == {}


@pytest.mark.parametrize("endpoint", ["nowhere", "http://", "file:///etc/passwd", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
    notice = taken(NoticeWatcher(SOON))
    assert (notice.kind, f"at {endpoint} does not answer" in notice.text) == ("trouble", True)


def test_a_service_that_never_answers_does_not_delay_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The port takes connections, and nobody reads them. The rank ends at once, and so does the launcher."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr("imagenet_mds.process.metadata._ENDPOINT", f"http://127.0.0.1:{mute.getsockname()[1]}")
        monkeypatch.setattr("imagenet_mds.process.metadata._TIMEOUT_SECONDS", 10_000)
        assert launch(1, tmp_path / "job", tmp_path, program="pass").status == 0
    assert capfd.readouterr().err == ""


SAVES = """
import os, signal, sys, time
from imagenet_mds_train.interruption.board import Board

def say(what):
    with open(f"{sys.argv[1]}-{what}{os.environ['RANK']}.part", "w") as file:
        file.write(str(board.saves_asked_for))
    os.rename(file.name, file.name.removesuffix(".part"))

def stop(*_):
    os.kill(os.getppid(), signal.SIGTERM)  # as another program that has read the notice
    time.sleep(0.5)
    say("stopped")
    os._exit(75)

board = Board.inherited()
signal.signal(signal.SIGTERM, stop)
while not board.saves_asked_for:
    time.sleep(0.01)
say("saved")
time.sleep(10_000)
"""


def test_ranks_save_for_a_recommendation_and_stop_for_a_notice(
    metadata: Metadata, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagenet_mds.process.signals.REPEAT_SECONDS", 0.0)
    metadata.bodies[REBALANCE] = json.dumps({"noticeTime": "2030-01-01T00:00:00Z"})

    def announce_when_saved() -> None:
        wait_until(lambda: len(list(tmp_path.glob("job-saved?"))) == 2, "the saves of both ranks")
        metadata.bodies[ACTION] = TERMINATE

    thread = threading.Thread(target=announce_when_saved)
    thread.start()
    assert launch(2, tmp_path / "job", tmp_path, program=SAVES, limits=Limits(notice_seconds=SOON)).status == 75
    thread.join()
    assert [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("job-*"))] == ["1"] * 4
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("Rebalance recommendation of 2030-01-01T00:00:00Z: ")
    assert first.endswith("has become likely. Saving, then going on.")
    assert second.startswith("Spot notice: this instance will be terminated at 2030-01-02T03:04:05Z. Saving, then exit")
