"""`device_microbatch_size: auto` is settled once, and kept."""

from pathlib import Path

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run import start as start_module
from imagenet_mds_train.run.description import describe
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.microbatch import find_largest, largest_that_fits
from imagenet_mds_train.run.start import Start

AUTO = "system.device_microbatch_size=auto"


def prepare(dataset: Path, folder: Path, *overrides: str) -> Start:
    """A start of the demo's configuration with changes."""
    return Start.prepare(demo(*overrides), Dataset.at(str(dataset)), RunFolder(folder))


def demo(*overrides: str) -> TrainConfig:
    """The demo's configuration with changes."""
    return load_config("demo", overrides)


def test_a_cpu_takes_the_whole_batch(dataset: Path, tmp_path: Path) -> None:
    start = prepare(dataset, tmp_path, AUTO, "system.device=cpu").with_microbatch_found()
    assert start.config.system.device_microbatch_size is None
    assert start.identity == prepare(dataset, tmp_path, "system.device=cpu").identity


def test_a_run_keeps_what_was_found_at_its_first_start(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    searched = []

    def search(config: TrainConfig, classes: int) -> int:
        searched.append((config.device_batch_size, classes))
        return 8

    monkeypatch.setattr(start_module, "find_largest", search)
    start = prepare(dataset, tmp_path, AUTO)
    assert "in the largest parts that fit the GPU" in dict(describe(start))["batch"]
    start = start.with_microbatch_found()
    assert searched == [(start.config.global_batch_size, len(start.classes))]
    assert start.config.device_microbatch_size == 8
    start.record()

    again = prepare(dataset, tmp_path, AUTO).with_microbatch_found()
    assert len(searched) == 1
    assert (again.config, again.identity) == (start.config, start.identity)
    assert "in parts of 8" in dict(describe(again))["batch"]
    with pytest.raises(UserError, match=r"device_microbatch_size: 8 before, 16 now"):
        prepare(dataset, tmp_path, "system.device_microbatch_size=16")


@pytest.mark.parametrize(
    ("program", "kind", "message"),
    [
        ("import sys; print('imagenet-mds: too large', file=sys.stderr); sys.exit(2)", UserError, r"^too large$"),
        ("raise ImportError('no driver')", WorldError, r"\(ImportError: no driver\): pass a number"),
        ("import os; os.kill(os.getpid(), 9)", WorldError, r"\(status -9\): pass a number"),
        ("print('half')", WorldError, r"\(status 0\): pass a number"),
    ],
)
def test_a_failed_search_says_why(program: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        find_largest(demo(), 8, program)


def test_the_last_line_counts() -> None:
    program = """
import json, sys
given = json.loads(sys.argv[1])
print("a library's word"); print(given["config"]["global_batch_size"] * given["classes"])
"""
    assert find_largest(demo(), 3, program) == 3 * demo().global_batch_size


def test_the_search_needs_a_gpu() -> None:
    """The real search, in a process without one: torch's reason is in the message."""
    with pytest.raises(WorldError, match=r"(?i)(nvidia|cuda).*pass a number as system.device_microbatch_size"):
        find_largest(demo(), 8)


@pytest.mark.parametrize(
    ("device_batch_size", "room", "expected"),
    [(512, 1000, 512), (512, 200, 128), (96, 50, 48), (96, 47, 32), (7, 6, 1), (512, 1, 1)],
)
def test_the_largest_divisor_that_fits_is_taken(device_batch_size: int, room: int, expected: int) -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert largest_that_fits(device_batch_size, fits) == expected
    assert tried == sorted(tried, reverse=True)


def test_no_room_for_one_image_is_said() -> None:
    with pytest.raises(UserError, match="not even one image at a time"):
        largest_that_fits(4, lambda size: False)
