"""The run's log and screen: each line covers the time since the line before it."""

import json
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.loggers import Logger

    from imagenet_mds_train.loggers.console import Console, Outlook
    from imagenet_mds_train.loggers.run_log import RunLog
    from imagenet_mds_train.loggers.throughput import Throughput

pytestmark = pytest.mark.slow  # imports composer


def test_speed_and_waiting_are_of_the_lines_own_interval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Log and screen have lines at different intervals; the data are late only for batch 4."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    throughput = Throughput(global_batch_size=10, every_batches=1, counts=dict)
    outlook = Outlook(work_left=lambda batch: (6 - batch) * 10.0, dollars_per_hour=360.0, seconds_before=20.0)
    destinations = [
        RunLog(tmp_path / "log", attempt=1, every_batches=2),
        Console(every_batches=3, epochs=1, outlook=outlook),
    ]

    def value(number: int) -> SimpleNamespace:
        return SimpleNamespace(value=number)

    state: Any = SimpleNamespace(
        total_loss_dict={"loss/train/total": torch.tensor(1.0)},
        scaler=None,
        optimizers=[torch.optim.SGD([torch.zeros(1)], lr=0.1)],
        dataloader_len=value(6),
        max_duration=value(1),
        timestamp=SimpleNamespace(batch=value(0), epoch=value(0), batch_in_epoch=value(0)),
    )
    logger = Logger(state, destinations=destinations)

    def happens(event: str) -> None:
        """Run an event in the order of Composer's engine: destinations come last."""
        for callback in (throughput, *destinations):
            getattr(callback, event)(state, logger)

    happens("epoch_start")
    for batch in range(1, 7):
        happens("before_dataloader")
        now += 3.0 if batch == 4 else 0.0
        happens("after_dataloader")
        now += 1.0
        state.timestamp.batch = state.timestamp.batch_in_epoch = value(batch)
        happens("batch_end")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    speeds = [(line["batch"], line["images_per_second"], line["waiting_for_data"]) for line in lines]
    assert speeds == [(2, 10.0, 0.0), (4, 4.0, 0.6), (6, 10.0, 0.0)]
    first, second = capfd.readouterr().err.splitlines()
    assert "batch 3/6 loss 1.0000 lr 0.1000 10 images/s (0% waiting for data)" in first
    assert "batch 6/6 loss 1.0000 lr 0.1000 5 images/s (50% waiting for data)" in second
