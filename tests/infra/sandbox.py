"""A machine for setup.sh: a folder for the root of its file system, and small programs in place of those that would
change this one. Each of them writes its call down; bash, coreutils, tar and Python are real."""

import hashlib
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.command import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "infra" / "aws" / "setup.sh"
UNIT = ROOT / "infra" / "aws" / "imagenet-mds.service"

ROOT_VOLUME = "/dev/nvme0n1 Amazon Elastic Block Store"
DATA_VOLUME = "/dev/nvme1n1 Amazon Elastic Block Store"
STORE = "/dev/nvme2n1 Amazon EC2 NVMe Instance Storage"
OTHER_STORE = "/dev/nvme3n1 Amazon EC2 NVMe Instance Storage"

APP = "import os, sys\nprint('app', *sys.argv[1:])\n"

_RECORD = """#!/bin/bash
{ printf '%s' "${0##*/}"; printf '\\t%s' "$@"; echo; } >>"$SANDBOX/calls"
"""

_BODIES = {
    "aws": """case "$1 $2" in
"autoscaling describe-auto-scaling-instances") cat "$SANDBOX/lifecycle_state" ;;
"s3 cp")
  source="${@: -2:1}" target="${@: -1}"
  if [[ "$source" == s3://* ]]; then cp "$SANDBOX/archive" "$target"; else cp "$source" "$SANDBOX/uploaded"; fi ;;
esac""",
    "id": "exit 1",
    "lsblk": """if [[ "$*" == *MODEL* ]]; then cat "$SANDBOX/disks"; fi
[[ "$*" == *MOUNTPOINT*nvme0n1 ]] && printf '\\n/\\n/boot/efi\\n'
exit 0""",
    "mount": 'echo "${@: -1}" >>"$SANDBOX/mounted"',
    "mountpoint": 'exec grep --quiet --line-regexp --fixed-strings -- "${@: -1}" "$SANDBOX/mounted"',
    # The volumes of a test are blank but for those in these files.
    "blkid": """case "$*" in
*--label*) cat "$SANDBOX/labelled" 2>/dev/null || exit 2 ;;
*--match-tag*) cat "$SANDBOX/label" 2>/dev/null ;;
*) if [[ -e "$SANDBOX/label" ]]; then echo something; else exit 2; fi ;;
esac""",
    "systemctl": '[[ "$1" == is-system-running ]] && cat "$SANDBOX/system"\n[[ "$2" != dlami-nvme.service ]]',
    "nvidia-smi": '[[ "$1" != --query-gpu* ]] || cat "$SANDBOX/gpus"',
    # A real environment, with a pip that installs a uv which only writes its call down.
    "python3.11": f"""if [[ "$2" != venv ]]; then exec {sys.executable} "$@"; fi
{sys.executable} -m venv --without-pip "$3"
cp "$SANDBOX/pip" "$3/bin/pip"
""",
}

_PLAIN = ["apt-get", "chown", "journalctl", "mdadm", "mkfs.ext4", "nvidia-modprobe", "shutdown", "sleep", "udevadm"]
_PLAIN += ["useradd", "wipefs"]

_PIP = _RECORD + 'cp "$SANDBOX/uv" "${0%/*}/uv"\n'
"""What installs uv into the environment that it lies in."""


@dataclass
class Machine:
    """A machine, and what its scripts are told."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The root of the machine's file system."""
        return self.folder / "root"

    def environment(self) -> dict[str, str]:
        """The environment of a script."""
        programs = f"{self.folder / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": programs, "SANDBOX": str(self.folder), "IMAGENET_MDS_ROOT": str(self.root)} | self.variables

    def run(self, *arguments: str, script: Path = SETUP) -> subprocess.CompletedProcess[str]:
        """Run setup.sh to its end."""
        return subprocess.run(
            ["bash", script, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def stand_in(self, name: str, body: str = "") -> None:
        """Put a program in place of a real one."""
        program = self.folder / "bin" / name
        program.write_text(_RECORD + body + "\n", encoding="utf-8")
        program.chmod(0o755)

    def say(self, name: str, *lines: str) -> None:
        """Set what the programs answer."""
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def forget(self) -> None:
        """Forget the calls so far."""
        (self.folder / "calls").write_text("", encoding="utf-8")

    def calls(self, *prefix: str) -> list[list[str]]:
        """The calls that begin so."""
        lines = (self.folder / "calls").read_text(encoding="utf-8").splitlines()
        return [call for line in lines if (call := line.split("\t"))[: len(prefix)] == list(prefix)]

    def path(self, name: str) -> Path:
        """A file of the machine, by its absolute name."""
        return self.root / name.lstrip("/")

    def log(self) -> str:
        """What the setup has logged on the machine."""
        return self.path("/var/log/imagenet-mds-setup.log").read_text(encoding="utf-8")

    def emptied_group(self) -> bool:
        """Whether the group's size was set to 0, and to nothing else."""
        calls = self.calls("aws", "autoscaling", "set-desired-capacity")
        for call in calls:
            assert call[call.index("--desired-capacity") + 1] == "0"
            assert call[call.index("--auto-scaling-group-name") + 1] == "trainers"
        return bool(calls)

    def is_off(self) -> bool:
        """Whether the machine was shut down."""
        return self.calls("shutdown") == [["shutdown", "-h", "now"]]

    def archive(self, *left_out: str) -> None:
        """Make the program's archive, and say its checksum."""
        app = self.folder / "package" / "app" / "imagenet_mds"
        app.mkdir(parents=True, exist_ok=True)
        (app / "__init__.py").touch()
        (app / "__main__.py").write_text(APP, encoding="utf-8")
        (self.folder / "package" / "requirements.lock").write_text("numpy==2.0.0\n", encoding="utf-8")
        (self.folder / "package" / "imagenet-mds.service").write_bytes(UNIT.read_bytes())
        with tarfile.open(self.folder / "archive", "w:gz") as archive:
            for name in {"app", "requirements.lock", "imagenet-mds.service"} - set(left_out):
                archive.add(self.folder / "package" / name, name)
        sha256 = hashlib.sha256((self.folder / "archive").read_bytes()).hexdigest()
        self.variables["IMAGENET_MDS_CODE_SHA256"] = sha256
        self.variables["IMAGENET_MDS_CODE"] = f"code/{sha256}.tar.gz"


def make_machine(folder: Path, *disks: str, data: str = "none") -> Machine:
    """A machine of the group `trainers` with a root volume, other disks and four T4."""
    variables = {
        "IMAGENET_MDS_NAME": "trainers",
        "IMAGENET_MDS_BUCKET": "trainers-123456789012-us-east-1",
        "IMAGENET_MDS_LAUNCH": "launches/phase3.json",
        "IMAGENET_MDS_DATA": data,
        "AWS_REGION": "us-east-1",
    }
    machine = Machine(folder, variables)
    (folder / "bin").mkdir(parents=True)
    for name in ("etc", "var/lib/cloud/data"):
        machine.path(name).mkdir(parents=True)
    machine.path("/var/lib/cloud/data/instance-id").write_text("i-0123456789abcdef0\n", encoding="utf-8")
    for name in [*_BODIES, *_PLAIN]:
        machine.stand_in(name, _BODIES.get(name, ""))
    for name, text in (("pip", _PIP), ("uv", _RECORD)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    machine.say("disks", ROOT_VOLUME, *disks)
    machine.say("gpus", *["Tesla T4"] * 4)
    machine.say("lifecycle_state", "InService")
    machine.say("system", "running")
    machine.say("mounted")
    machine.forget()
    machine.archive()
    return machine


def path_of(program: str) -> str | None:
    """Where a program is on this machine, in the folders that a user's PATH may lack too."""
    folders = [*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"]
    return next((str(Path(folder) / program) for folder in folders if (Path(folder) / program).exists()), None)
