"""setup.sh, run on a machine that is a folder: what it makes of it, what it never touches, how it ends if it fails."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.sandbox import DATA_VOLUME, OTHER_STORE, ROOT_VOLUME, SETUP, STORE, Machine, make_machine, path_of
from tests.support.command import wait_until

pytestmark = pytest.mark.slow

USER_DATA_BYTES = 16384
"""What EC2 takes as user data."""


def done(machine: Machine, *arguments: str) -> str:
    """Run the setup, which must succeed."""
    outcome = machine.run(*arguments)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert not machine.is_off()
    assert not machine.emptied_group()
    return outcome.stdout


def test_a_fresh_machine_ends_with_the_unit_started(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE)
    out = done(machine)
    assert machine.calls("systemctl")[-3:] == [
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "imagenet-mds.service"],
        ["systemctl", "start", "imagenet-mds.service"],
    ]
    assert machine.log() == out, "the log and the console differ"
    (user,) = machine.calls("useradd")
    home = str(machine.path("/mnt/nvme/imagenet-mds"))
    assert user[-1] == "imagenet-mds"
    assert user[user.index("--home-dir") + 1] == home
    assert ["chown", "imagenet-mds:", home, f"{home}/.cache"] in machine.calls("chown")


def test_the_unit_is_told_all_variables(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE)
    done(machine)
    lines = machine.path("/etc/imagenet-mds.env").read_text(encoding="utf-8").splitlines()
    told = dict(line.split("=", 1) for line in lines)
    home = str(machine.path("/mnt/nvme/imagenet-mds"))
    added = {"AWS_DEFAULT_REGION": "us-east-1", "HOME": home, "XDG_CACHE_HOME": f"{home}/.cache"}
    assert told == machine.variables | added


def test_the_launcher_runs_the_program_of_the_archive(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    done(machine)
    launcher = machine.path("/usr/local/bin/imagenet-mds")
    ran = subprocess.run(
        [launcher, "aws", "two words"], cwd=tmp_path, env=machine.environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "app aws two words\n"
    (sync,) = machine.calls("uv")
    assert sync[:3] == ["uv", "pip", "sync"]
    assert "--require-hashes" in sync
    assert sync[-1] == str(machine.path("/opt/imagenet-mds/code/requirements.lock"))


def test_the_second_time_does_nothing_again(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE, DATA_VOLUME, data="fill")
    done(machine)
    machine.stand_in("id")
    machine.forget()
    done(machine)
    for name in ("mkfs.ext4", "mdadm", "mount", "useradd", "pip", "uv"):
        assert machine.calls(name) == [], f"{name} ran again"
    assert machine.calls("systemctl", "start", "imagenet-mds.service")


def test_another_lock_makes_the_environment_from_scratch(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    done(machine)
    leftover = machine.path("/opt/imagenet-mds/.venv/leftover")
    leftover.touch()
    machine.path("/opt/imagenet-mds/.venv/.complete").write_text("another\n", encoding="utf-8")
    done(machine)
    assert len(machine.calls("uv")) == 2
    assert not leftover.exists()


def test_a_reboot_mounts_what_the_first_start_formatted(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE, DATA_VOLUME, data="fill")
    done(machine)
    machine.say("mounted")
    machine.say("labelled", "/dev/nvme2n1")
    machine.say("label", "imagenet-mds")
    machine.forget()
    done(machine, "boot")
    assert machine.calls("mkfs.ext4") == []
    mounts = [call[-2:] for call in machine.calls("mount")]
    assert mounts == [["/dev/nvme2n1", str(machine.path("/mnt/nvme"))], ["/dev/nvme1n1", str(machine.path("/data"))]]
    assert machine.calls("nvidia-smi", "-ac"), "a reboot resets the clocks"


def test_user_data_is_lines_of_exports_and_this_file(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, DATA_VOLUME, data="read-only")
    exports = "".join(f"export {name}={value}\n" for name, value in machine.variables.items())
    script = tmp_path / "part-001"
    script.write_text("#!/bin/bash\n" + exports + SETUP.read_text(encoding="utf-8"), encoding="utf-8")
    assert script.stat().st_size < USER_DATA_BYTES - 2048
    machine.variables.clear()
    assert machine.run(script=script).returncode == 0
    copy = machine.path("/usr/local/sbin/imagenet-mds-setup")
    assert copy.read_bytes() == script.read_bytes()
    machine.say("mounted")
    assert machine.run("boot", script=copy).returncode == 0
    assert len(machine.calls("mount", "--options", "ro,noatime")) == 2


# ---- disks


def test_without_an_instance_store_the_home_is_on_the_root_volume(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, DATA_VOLUME)
    done(machine)
    assert machine.calls("mkfs.ext4") == []
    assert machine.calls("mount") == []
    assert f"HOME={machine.path('/var/lib/imagenet-mds')}\n" in machine.path("/etc/imagenet-mds.env").read_text()


def test_several_instance_stores_become_one_array(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE, DATA_VOLUME, OTHER_STORE)
    done(machine)
    (array,) = machine.calls("mdadm")
    assert array[-4:] == ["--level=0", "--raid-devices=2", "/dev/nvme2n1", "/dev/nvme3n1"]
    (made,) = machine.calls("mkfs.ext4")
    assert made[-1] == array[2] == "/dev/md/imagenet-nvme"


def test_the_stripe_that_the_image_made_is_used_as_it_is(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE, OTHER_STORE)
    striped = str(machine.path("/opt/dlami/nvme"))
    machine.say("mounted", striped)
    done(machine)
    assert machine.calls("mount") == [["mount", "--bind", striped, str(machine.path("/mnt/nvme"))]]
    assert machine.calls("mkfs.ext4") == machine.calls("mdadm") == []


def test_a_dataset_is_mounted_read_only_and_nothing_is_written_to_it(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, DATA_VOLUME, data="read-only")
    done(machine)
    data = str(machine.path("/data"))
    assert machine.calls("mount") == [["mount", "--options", "ro,noatime", "/dev/nvme1n1", data]]
    assert machine.calls("mkfs.ext4") == []
    assert not any(data in call for call in machine.calls("chown"))


def test_a_blank_volume_is_made_ready_to_be_filled(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, STORE, DATA_VOLUME, data="fill")
    done(machine)
    made = machine.calls("mkfs.ext4")
    assert [call[-1] for call in made] == ["/dev/nvme2n1", "/dev/nvme1n1"]
    assert made[1][made[1].index("-L") + 1] == "imagenet-mds"
    data = str(machine.path("/data"))
    assert machine.calls("mount")[1][-2:] == ["/dev/nvme1n1", data]
    assert ["chown", "imagenet-mds:", data] in machine.calls("chown")


def test_a_volume_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, data="read-only")
    machine.stand_in("sleep", f'echo "{ROOT_VOLUME}" >"$SANDBOX/disks"; echo "{DATA_VOLUME}" >>"$SANDBOX/disks"')
    done(machine)
    assert len(machine.calls("sleep")) == 1
    assert machine.calls("mount", "--options", "ro,noatime", "/dev/nvme1n1")


@pytest.mark.skipif(path_of("mkfs.ext4") is None or path_of("blkid") is None, reason="no mkfs.ext4 or blkid here")
def test_blkid_tells_a_blank_volume_from_one_without_a_label(tmp_path: Path) -> None:
    """What the stand-in for blkid promises, of the real one."""
    blkid = path_of("blkid")
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(20 << 20))
    assert subprocess.run([str(blkid), "--probe", volume], capture_output=True).returncode == 2
    for label in ("", "imagenet-mds"):
        named = ["-L", label] if label else []
        subprocess.run([str(path_of("mkfs.ext4")), "-q", "-F", *named, str(volume)], check=True)
        assert subprocess.run([str(blkid), "--probe", volume], capture_output=True).returncode == 0
        ask = [str(blkid), "--probe", "--output", "value", "--match-tag", "LABEL", str(volume)]
        assert subprocess.run(ask, capture_output=True, text=True).stdout.strip() == label


# ---- GPUs


@pytest.mark.parametrize(
    ("gpus", "fixed"), [(["Tesla T4"] * 4, True), (["NVIDIA A10G"], False), (["NVIDIA L4"], False)]
)
def test_only_the_clocks_of_a_t4_are_fixed(tmp_path: Path, gpus: list[str], fixed: bool) -> None:
    machine = make_machine(tmp_path)
    machine.say("gpus", *gpus)
    done(machine)
    expected = [["nvidia-smi", "-pm", "1"], ["nvidia-smi", "-ac", "5001,1590"]] if fixed else []
    assert machine.calls("nvidia-smi", "-pm") + machine.calls("nvidia-smi", "-ac") == expected


def test_a_machine_without_a_gpu_is_set_up_too(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, DATA_VOLUME, data="fill")
    machine.stand_in("nvidia-smi", "exit 9")
    done(machine)
    assert "no GPU answers" in machine.log()


def test_clocks_that_cannot_be_fixed_do_not_end_the_machine(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    machine.stand_in("nvidia-smi", '[[ "$1" != -ac ]] || exit 4\n[[ "$1" != --query-gpu* ]] || echo "Tesla T4"')
    done(machine)
    assert "the clocks of the T4 are not fixed" in machine.log()


# ---- failures


def broken(machine: Machine, what: str) -> None:
    """Break one thing of a machine."""
    if what == "no variable":
        del machine.variables["IMAGENET_MDS_CODE"]
    elif what == "strange variable":
        machine.variables["IMAGENET_MDS_CODE"] = "code/$(reboot)"
    elif what == "strange data":
        machine.variables["IMAGENET_MDS_DATA"] = "write"
    elif what == "other archive":
        machine.variables["IMAGENET_MDS_CODE_SHA256"] = "0" * 64
    elif what in ("app", "requirements.lock", "imagenet-mds.service"):
        machine.archive(what)
    elif what == "no python":
        machine.stand_in("python3.11", "exit 1")
        for name in ("python3.10", "python3.12", "python3"):
            machine.stand_in(name, "exit 1")
    elif what in ("pip", "uv"):
        (machine.folder / what).write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    elif what == "no second volume":
        machine.say("disks", ROOT_VOLUME, STORE)
    elif what == "two volumes":
        machine.say("disks", ROOT_VOLUME, DATA_VOLUME, "/dev/nvme9n1 Amazon Elastic Block Store")
    elif what == "a volume of somebody":
        machine.say("label", "precious")
    elif what == "a volume without a label":
        machine.say("label")
    elif what == "download":
        machine.stand_in(
            "aws", '[[ "$*" != *s3://*tar.gz* ]] || exit 1\n[[ "$1" != s3 ]] || cp "${@: -2:1}" "$SANDBOX/uploaded"'
        )
    elif what == "start":
        machine.stand_in("systemctl", '[[ "$1" != start ]]')
    else:
        machine.stand_in(what, "exit 5")


@pytest.mark.parametrize(
    ("what", "step", "says"),
    [
        ("no variable", "check the variables", "IMAGENET_MDS_CODE is missing"),
        ("strange variable", "check the variables", "IMAGENET_MDS_CODE is missing or has other characters"),
        ("strange data", "check the variables", "must be none, read-only or fill"),
        ("lsblk", "mount the instance stores", ""),
        ("mkfs.ext4", "mount the instance stores", ""),
        ("mount", "mount the instance stores", ""),
        ("no second volume", "mount the data (fill)", "no second EBS volume is attached"),
        ("two volumes", "mount the data (fill)", "/dev/nvme1n1 /dev/nvme9n1"),
        ("a volume of somebody", "mount the data (fill)", "nothing was formatted"),
        ("a volume without a label", "mount the data (fill)", "nothing was formatted"),
        ("useradd", "make the user", ""),
        ("chown", "make the user", ""),
        ("download", "fetch the program", ""),
        ("other archive", "fetch the program", "does not have the sha256 0000"),
        ("app", "fetch the program", "the archive has no app"),
        ("requirements.lock", "fetch the program", "the archive has no requirements.lock"),
        ("imagenet-mds.service", "fetch the program", "the archive has no imagenet-mds.service"),
        ("no python", "install Python's packages", "no Python 3.10, 3.11 or 3.12"),
        ("pip", "install Python's packages", ""),
        ("uv", "install Python's packages", ""),
        ("start", "start the unit", ""),
    ],
)
def test_a_step_that_fails_ends_the_machine_and_empties_the_group(
    tmp_path: Path, what: str, step: str, says: str
) -> None:
    machine = make_machine(tmp_path, STORE, DATA_VOLUME, data="fill")
    broken(machine, what)
    outcome = machine.run()
    assert outcome.returncode != 0
    assert re.search(rf"failed with status \d+ in step: {re.escape(step)}\n", outcome.stdout), outcome.stdout
    assert says in outcome.stdout
    assert machine.emptied_group()
    assert machine.is_off()
    (upload,) = [call for call in machine.calls("aws", "s3", "cp") if call[-1].startswith("s3://")]
    assert upload[-1] == "s3://trainers-123456789012-us-east-1/launches/phase3.setup.log"
    assert f"in step: {step}\n" in (tmp_path / "uploaded").read_text(encoding="utf-8")
    if "volume" in what:
        assert [call[-1] for call in machine.calls("mkfs.ext4") if call[-1] != "/dev/nvme2n1"] == []


@pytest.mark.parametrize("refused", ["s3", "autoscaling"])
def test_a_machine_ends_even_if_aws_refuses_what_goes_before(tmp_path: Path, refused: str) -> None:
    machine = make_machine(tmp_path)
    machine.stand_in("aws", f'[[ "$1" != {refused} ]]')
    (tmp_path / "pip").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    assert machine.run().returncode != 0
    # Where nobody says whether the instance is in service, the group is emptied: it is the cheaper mistake.
    assert machine.emptied_group()
    assert machine.is_off()


@pytest.mark.parametrize("state", ["None", "Terminating:Wait", "Terminating", "Detaching"])
def test_an_instance_that_is_not_in_service_leaves_the_group_alone(tmp_path: Path, state: str) -> None:
    """`None` is the answer for the builder of a volume, which is no instance of the group."""
    machine = make_machine(tmp_path)
    machine.say("lifecycle_state", state)
    machine.stand_in("useradd", "exit 5")
    assert machine.run().returncode != 0
    assert not machine.emptied_group()
    assert machine.is_off()


def test_a_spot_interruption_of_the_setup_leaves_the_group_alone(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    machine.stand_in(
        "useradd", 'touch "$SANDBOX/waiting"; while [[ -e "$SANDBOX/waiting" ]]; do command sleep 0.01; done'
    )
    (tmp_path / "bin" / "sleep").unlink()
    process = subprocess.Popen(["bash", SETUP], env=machine.environment(), stdout=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "waiting").exists, "the step in which it is interrupted", None)
        os.kill(process.pid, signal.SIGTERM)
        (tmp_path / "waiting").unlink()
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "interrupted in step: make the user" in out
    assert machine.calls("aws") == []
    assert machine.calls("shutdown") == []


def test_a_step_that_dies_because_the_machine_is_stopping_leaves_the_group_alone(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    machine.say("system", "stopping")
    machine.stand_in("useradd", "exit 5")
    assert machine.run().returncode == 5
    assert machine.calls("aws") == machine.calls("shutdown") == []


# ---- the end of the unit


def test_a_unit_that_gives_up_ends_the_machine(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    done(machine)
    machine.stand_in("journalctl", "echo the reason")
    machine.run("failed")
    assert machine.emptied_group()
    assert machine.is_off()
    assert "the reason\n" in (tmp_path / "uploaded").read_text(encoding="utf-8")


def test_a_unit_that_is_killed_because_the_machine_is_stopping_ends_nothing(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    done(machine)
    machine.say("system", "stopping")
    assert machine.run("failed").returncode == 0
    assert not machine.emptied_group()
    assert not machine.is_off()


def test_another_argument_is_refused(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    outcome = machine.run("reboot")
    assert outcome.returncode == 2
    assert "no argument, boot or failed" in outcome.stderr
    assert not machine.is_off()


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    ran = subprocess.run([shellcheck, SETUP], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.skipif(path_of("systemd-analyze") is None, reason="no systemd-analyze here: the units are not verified")
def test_systemd_accepts_the_units_as_they_are_installed(tmp_path: Path) -> None:
    machine = make_machine(tmp_path)
    done(machine)
    units = machine.path("/etc/systemd/system")
    paths = (machine.path("/usr/local"), units)
    for unit in units.iterdir():
        # The programs of the unit are where the test's machine has them.
        text = (
            unit.read_text(encoding="utf-8")
            .replace("=+/usr/local", "=/usr/local")
            .replace("=/usr/local", f"={paths[0]}")
        )
        unit.write_text(text, encoding="utf-8")
    ran = subprocess.run(
        [str(path_of("systemd-analyze")), "verify", "--man=no", "--recursive-errors=no", *sorted(units.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
