"""What is logged beside loss and speed: training accuracy, the GPUs, what other programs get."""

import json
import stat
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.loggers.console import Outlook
    from imagenet_mds_train.loggers.gpu_metrics import GPUMetrics, values_of
    from imagenet_mds_train.loggers.outside import outside_loggers
    from imagenet_mds_train.loggers.training_accuracy import TrainingAccuracy

pytestmark = pytest.mark.slow  # imports composer


class Logged:
    """Takes the place of Composer's logger."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics


def state_of(batch: int, outputs: torch.Tensor | None = None, targets: torch.Tensor | None = None) -> Any:
    timestamp = SimpleNamespace(batch=SimpleNamespace(value=batch))
    return SimpleNamespace(timestamp=timestamp, outputs=outputs, batch=(None, targets))


def test_accuracy_counts_the_larger_label_and_no_image_without_weight() -> None:
    accuracy, logged = TrainingAccuracy(every_batches=2), Logged()
    outputs = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0]])
    targets = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.0, 0.0], [1.0, 0.0]])
    # Two microbatches of the second batch.
    for part in (slice(0, 2), slice(2, 4)):
        accuracy.after_forward(state_of(1, outputs[part], targets[part]), logged)  # type: ignore[arg-type] # stands in
    accuracy.batch_end(state_of(2), logged)  # type: ignore[arg-type] # stands in
    assert logged.metrics == {"train/top1": pytest.approx(2 / 3)}
    accuracy.after_forward(state_of(2, outputs, targets), logged)  # type: ignore[arg-type] # stands in
    logged.metrics.clear()
    accuracy.batch_end(state_of(3), logged)  # type: ignore[arg-type] # stands in
    assert not logged.metrics


def test_what_nvidia_smi_prints_is_read() -> None:
    assert dict(values_of("1, 97, 12034, 71, 68.91\n")) == {
        "gpu/1/use": 0.97,
        "gpu/1/memory_mib": 12034,
        "gpu/1/celsius": 71,
        "gpu/1/watts": 68.91,
    }
    assert dict(values_of("0, 5, 100, [N/A], [Not Supported]\n")) == {"gpu/0/use": 0.05, "gpu/0/memory_mib": 100}


def test_the_gpus_are_watched_while_training_and_no_longer(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0, 50, 1000, 60, 70.5\necho 1, 60, 2000, 61, 71.5\nexec sleep 600\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    metrics, logged = GPUMetrics(str(tool), every_batches=2), Logged()
    metrics.fit_start(state_of(0), logged)  # type: ignore[arg-type] # stands in
    while len(metrics.latest) < 8:
        time.sleep(0.01)
    metrics.batch_end(state_of(1), logged)  # type: ignore[arg-type] # stands in
    assert not logged.metrics
    metrics.batch_end(state_of(2), logged)  # type: ignore[arg-type] # stands in
    assert (logged.metrics["gpu/0/use"], logged.metrics["gpu/1/celsius"]) == (0.5, 61)
    process = metrics._process
    assert process is not None
    assert process.poll() is None
    metrics.close(state_of(2), logged)  # type: ignore[arg-type] # stands in
    assert process.poll() is not None


def test_without_the_program_nothing_is_logged(tmp_path: Path) -> None:
    metrics, logged = GPUMetrics(str(tmp_path / "none"), every_batches=1), Logged()
    metrics.fit_start(state_of(0), logged)  # type: ignore[arg-type] # stands in
    metrics.batch_end(state_of(1), logged)  # type: ignore[arg-type] # stands in
    metrics.close(state_of(1), logged)  # type: ignore[arg-type] # stands in
    assert not logged.metrics


def test_what_is_left_is_said_in_time_and_dollars() -> None:
    outlook = Outlook(work_left=lambda batch: 7200.0, dollars_per_hour=4.0, seconds_before=1800)
    assert outlook.in_words(5, images_per_second=1.0, seconds=1800) == ", 2.0 h left, $4.00 so far"
    assert Outlook(work_left=lambda batch: 60.0).in_words(5, 2.0, 0.0) == ", 30 s left"


def test_a_run_has_one_id_at_weights_and_biases(tmp_path: Path) -> None:
    known = {"project": "p", "entity": None, "mode": "offline"}
    for _ in range(2):
        (logger,) = outside_loggers(known, tensorboard=False, folder=tmp_path, settings={"seed": 1}, group="g")
        found = json.loads((tmp_path / "wandb.json").read_bytes())["id"]
        options = logger._init_kwargs  # type: ignore[attr-defined] # Composer's
        assert (options["id"], options["resume"], options["mode"]) == (found, "allow", "offline")
        assert (options["project"], options["group"], options["config"]) == ("p", "g", {"seed": 1})
    assert outside_loggers(None, tensorboard=False, folder=tmp_path, settings={}) == []
