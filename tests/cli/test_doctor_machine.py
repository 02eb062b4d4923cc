"""`imagenet-mds doctor` without a dataset: what it finds of a machine, and what it says to do."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from imagenet_mds.doctor import machine
from imagenet_mds.doctor.machine import Check, check_machine
from imagenet_mds.process import attempt
from imagenet_mds.process.attempt import Blocks, leftover_blocks
from tests.support.command import run
from tests.support.metadata import Metadata, metadata_service
from tests.support.s3_server import BUCKET, Proxy

T4 = "Tesla T4, 15360, 7.5, 550.54.15"
H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54.15"


def found(places: list[str] | None = None) -> dict[str, Check]:
    """All checks by their names."""
    return {check.name: check for check in check_machine(places or [])}


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for NVIDIA's program on the path: it prints the file beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat {folder}/gpus\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "gpus"


def test_this_machine_can_train() -> None:
    outcome = run("doctor", "--json")
    checks = {one["name"]: one for one in json.loads(outcome.out)}
    assert outcome.status == (1 if any(one["state"] == "bad" for one in checks.values()) else 0)
    assert checks["torch"]["found"].startswith("2.7.0")
    assert checks["Python"]["state"] == "ok"
    assert {"GPU", "/dev/shm", "W&B", "instance metadata", "clock", "open files", "memory"} <= set(checks)
    assert all(one["hint"] for one in checks.values() if one["state"] != "ok")


def test_settings_without_a_dataset_are_refused() -> None:
    outcome = run("doctor", "data.workers_per_rank=2")
    assert outcome.status == 2
    assert "pass --data DATASET" in outcome.err
    assert run("doctor", "--data", "/nowhere", "--save", "/tmp").status == 2


def test_a_t4_has_no_bf16(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TRY_GPU", "print(2)")
    nvidia_smi.write_text(f"{T4}\n{H100}\n")
    checks = found()
    assert checks["GPU 0"].found == "Tesla T4, 15 GiB, capability 7.5: fp16; bf16 is refused (capability 8.0)"
    assert checks["GPU 1"].found.endswith("capability 9.0: fp16 and bf16")
    assert checks["torch on it"] == Check("torch on it", "ok", "computes, sees 2 GPUs of 2")


def test_a_gpu_that_torch_cannot_use_is_bad(nvidia_smi: Path) -> None:
    """The driver lists it, and this machine's torch has none: its own reason is shown."""
    nvidia_smi.write_text(f"{T4}\n")
    check = found()["torch on it"]
    assert check.state == "bad"
    assert "CUDA" in check.found or "NVIDIA" in check.found


def test_an_old_driver_is_bad(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TRY_GPU", "print(1)")
    monkeypatch.setattr(machine, "_cuda_of_torch", lambda: "12.6")
    nvidia_smi.write_text(T4.replace("550.54.15", "470.82.01") + "\n")
    check = found()["driver"]
    assert (check.state, check.found) == ("bad", "470.82.01")
    assert "needs 525 or later: update the driver" in check.hint


def test_little_shared_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that Docker starts with its defaults has 64 MB."""
    monkeypatch.setattr(machine, "_LEAST_SHARED_MEMORY", 1 << 60)
    check = found()["/dev/shm"]
    assert check.state == "bad"
    assert "--shm-size=1g" in check.hint


def test_what_is_left_in_shared_memory_is_told_from_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of the test's, because starts of other tests remove what is left in the real one."""
    monkeypatch.setattr(attempt, "SHARED_MEMORY", tmp_path)
    owner, block = tmp_path / "imagenet-mds-123456789012", tmp_path / "12345678901200_locals"
    block.touch()
    (tmp_path / "000000_locals").touch()
    with open(owner, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leftover_blocks() == Blocks({os.getpid()}, [], ["000000_locals"])
    left = leftover_blocks()
    assert (left.live, sorted(left.stale)) == (set(), sorted([owner.name, block.name]))
    assert found()["left-over shared memory"].hint == "the next training removes it"
    assert owner.exists(), "it only looks"


def test_a_folder_that_cannot_be_written_is_bad() -> None:
    assert found(["/proc/nowhere"])["disk at /proc/nowhere"].state == "bad"


def test_s3_is_tried(proxy: Proxy) -> None:
    place = f"s3://{BUCKET}/runs"
    assert found([place])[place] == Check(place, "ok", "lists, writes, reads and deletes")
    proxy.choose = lambda request: "denied" if request.method == "PUT" else None
    check = found([place])[place]
    assert check.state == "bad"
    assert "allow s3:PutObject there" in check.hint


def test_the_metadata_service_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_service(service: Metadata) -> None:
        for name, value in service.variables.items():
            monkeypatch.setenv(name, value)

    with metadata_service() as service:
        with_service(service)
        service.bodies["/latest/meta-data/instance-type"] = "g4dn.xlarge"
        service.bodies["/latest/meta-data/instance-life-cycle"] = "spot"
        assert found()["instance metadata"] == Check("instance metadata", "ok", "g4dn.xlarge, spot")
    check = found()["instance metadata"]
    assert check.state == "bad"
    assert "no spot notice would be seen" in check.hint
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert found()["instance metadata"].state == "note"


def test_a_key_of_weights_and_biases_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert found()["W&B"].state == "note"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    check = found()["W&B"]
    assert check.state == "ok"
    assert "secret" not in check.found
