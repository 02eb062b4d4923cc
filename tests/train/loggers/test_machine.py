"""What the log says of the machine."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from imagenet_mds_train.loggers import machine as module
from imagenet_mds_train.loggers.machine import machine


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("processor\t: 0\nmodel name\t: A Processor @ 2.60GHz\nmodel name\t: Another\n", "A Processor @ 2.60GHz"),
        ("processor\t: 0\nCPU part\t: 0xd40\n", "0xd40"),
        ("", None),
    ],
)
def test_a_processor_is_known_by_its_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, device: str | None
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "_PROCESSORS", tmp_path / "cpuinfo")
    found = machine(on_gpu=False)
    assert (found["device"], found["threads"]) == (device, torch.get_num_threads())
    assert (found["torch"], found["simplejpeg"]) == (version("torch").split("+")[0], version("simplejpeg"))


def test_a_gpu_is_known_with_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "version")
    assert (machine(on_gpu=True)["device"], machine(on_gpu=True)["driver"]) == ("A GPU", None)
    (tmp_path / "version").write_text("550.54.15\n")
    assert machine(on_gpu=True)["driver"] == "550.54.15"
