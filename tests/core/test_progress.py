"""Progress in log files."""

import json

import pytest

from imagenet_mds.progress import ProgressLine


def test_a_log_gets_a_plain_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("imagenet_mds.progress.time.monotonic", lambda: now)
    with ProgressLine("train", 2000, "images") as line:
        for _ in range(20):
            now += 1.0
            line.advance(100, "3 left out")
    assert capsys.readouterr().err.splitlines() == [
        "train: 1,000 of 2,000 images, 100 images/s, 0:00:10 to go, 3 left out",
        "train: 2,000 of 2,000 images, 100 images/s, 0:00:00 to go, 3 left out",
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_resumed_work_is_in_the_count_but_not_in_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    now = 100.0
    monkeypatch.setattr("imagenet_mds.progress.time.monotonic", lambda: now)
    with ProgressLine("train", 400_000, "images", as_json=as_json) as line:
        line.resume_from(390_000)
        now += 10.0
        line.advance(0)
        now += 10.0
        line.advance(20)
    said = capsys.readouterr().err.splitlines()
    if as_json:
        rows = [json.loads(row) for row in said]
        assert [(row["done"], row["per_second"], row["seconds_left"]) for row in rows] == [
            (390_000, 0.0, None),
            (390_020, 1.0, 9980),
        ]
    else:
        assert said == [
            "train: 390,000 of 400,000 images, 0 images/s",
            "train: 390,020 of 400,000 images, 1 images/s, 2:46:20 to go",
        ]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("val", 1, "images") as line:
        line.advance(1)
    assert capsys.readouterr() == ("", "")
