"""The installed program: sdist to wheel to a fresh environment, used from a folder full of traps."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
TRAP = "raise SystemExit('the user\\'s own file was run')\n"

TERRAFORM_LEFTOVERS = ("infra/aws/.terraform/provider", "infra/aws/.terraform.lock.hcl", "infra/aws/terraform.tfstate")
"""What `terraform apply` leaves in a checkout: a provider of 700 MB, and the account's numbers."""


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel, and a folder with a user's files."""

    program: Path
    wheel: Path
    folder: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the installed program in the user's folder, with nothing of the checkout on the path."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.program, *map(str, arguments)],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel, without isolation, because the lock contains the build requirements."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(module_folder: Path) -> Installed:
    """Build an sdist, unpack it, build a wheel from it, and install that."""
    root = module_folder
    sdist = build("sdist", ROOT, root / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    for leftover in TERRAFORM_LEFTOVERS:
        (unpacked / leftover).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / leftover).write_text("{}", encoding="utf-8")
    wheel = build("wheel", unpacked, root / "wheel")
    venv.create(root / "venv", with_pip=False)
    variables = {"base": str(root / "venv"), "platbase": str(root / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", vars=variables))
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--offline"]
    subprocess.run([*uv, "--python", str(root / "venv" / "bin" / "python"), str(wheel)], check=True, timeout=120)
    # The dependencies come from the environment of the tests; a path file within that folder (the editable checkout's)
    # is not followed from here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    folder = root / "user"
    for trap in ("train.py", "convert.py", "configs.py", "infra.py", "configs/phase1.yaml", "train/__init__.py"):
        (folder / trap).parent.mkdir(parents=True, exist_ok=True)
        (folder / trap).write_text(TRAP, encoding="utf-8")
    return Installed(root / "venv" / "bin" / "imagenet-mds", wheel, folder)


def test_the_wheel_has_the_packages_and_the_data_and_no_tests(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"imagenet_mds", "imagenet_mds_convert", "imagenet_mds_infra", "imagenet_mds_train"}
    for data in (
        "_data/configs/phase3.yaml",
        "_data/infra/README.md",
        "_data/requirements.lock",
        "demo/report.html",
        "py.typed",
    ):
        assert f"imagenet_mds/{data}" in names
    for shipped in ("group.tf", "setup.sh", "imagenet-mds.service"):
        assert f"imagenet_mds/_data/infra/aws/{shipped}" in names
    assert not [name for name in names if "tfstate" in name or ".terraform" in name]


def test_the_shipped_configuration_is_found_and_not_the_users(installed: Installed) -> None:
    shown = installed.run("configs", "show", "phase1")
    assert shown.returncode == 0, shown.stderr
    assert "global_batch_size: 64" in shown.stdout


def test_the_pipeline_runs_in_a_hostile_folder(installed: Installed, tree: Path) -> None:
    converted = installed.run("convert", tree, "mds", "--workers", 2)
    assert converted.returncode == 0, converted.stderr
    small = ("augment.size_px=16", "evaluation={resize_px: 16, crop_px: 16}", "schedule.epochs=1")
    trained = installed.run("train", "--config", "demo", "--data", "mds", *small)
    assert trained.returncode == 0, trained.stderr
    assert "runs/demo is finished after 4 batches" in trained.stdout
    assert (installed.folder / "runs" / "demo" / "result.json").exists()
