"""The state that a run leaves: its checkpoints, its log, its processes."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)["state"]
    return state


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, but for a line being written."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal trees of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert one == other, where


def tree_of(pid: int) -> list[int]:
    """A process and all below it that still run, the deepest last."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += tree_of(int(child))
    return found
