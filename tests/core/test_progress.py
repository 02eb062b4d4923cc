"""Progress for people who read a log file."""

import pytest

from imagenet_mds.progress import ProgressLine


def test_a_log_gets_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("imagenet_mds.progress.time.monotonic", lambda: now)
    with ProgressLine("train", 2000, "images") as line:
        for _ in range(20):
            now += 1.0
            line.advance(100, "3 left out")
    assert capsys.readouterr().err.splitlines() == [
        "train: 1,000 of 2,000 images, 100 images/s, 3 left out",
        "train: 2,000 of 2,000 images, 100 images/s, 3 left out",
    ]


def test_nothing_is_said_of_what_is_done_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("val", 1, "images") as line:
        line.advance(1)
    assert capsys.readouterr() == ("", "")
