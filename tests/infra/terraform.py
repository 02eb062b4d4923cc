"""Terraform for tests: a copy of infra/aws, the provider from a mirror on the disk, no network."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import HANG_SECONDS

SOURCE = Path(__file__).resolve().parents[2] / "infra" / "aws"

_MIRRORS = ("/opt/*", "/usr/share/terraform*", "/usr/local/share/terraform*", "/usr/local/share/terraform/*")

_OVERRIDE = """provider "aws" {
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
}
"""
"""moto has one host for all buckets."""


def find_mirror() -> Path | None:
    """The folder that has the provider below registry.terraform.io: TF_PLUGIN_MIRROR, or one of the usual places."""
    if named := os.environ.get("TF_PLUGIN_MIRROR"):
        return Path(named)
    found = (path for pattern in _MIRRORS for path in sorted(Path("/").glob(pattern.lstrip("/"))))
    own = Path.home() / ".terraform.d" / "plugins"
    provider = Path("registry.terraform.io") / "hashicorp" / "aws"
    return next((path for path in (own, *found) if (path / provider).is_dir()), None)


@dataclass(frozen=True)
class Terraform:
    """A folder with the configuration, initialised, and the environment of the commands in it."""

    folder: Path
    variables: dict[str, str]

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run a command of Terraform, which must end with a status; give its output."""
        ran = subprocess.run(
            ["terraform", f"-chdir={self.folder}", *arguments],
            env={name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
            | {"TF_IN_AUTOMATION": "1", "TF_CLI_ARGS": "-no-color"}
            | self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert ran.returncode == status, ran.stdout
        return ran.stdout

    def outputs(self) -> dict[str, Any]:
        """The outputs of the last apply."""
        values = json.loads(self.run("output", "-json"))
        return {name: output["value"] for name, output in values.items()}

    def changes(self) -> dict[str, set[str]]:
        """What an apply would change: the attributes of each resource, the unknown ones too."""
        self.run("plan", "-input=false", "-out=again")
        planned = json.loads(self.run("show", "-json", "again"))["resource_changes"]
        found = {}
        for change in (resource["change"] | {"address": resource["address"]} for resource in planned):
            if change["actions"] == ["no-op"]:
                continue
            before, after = change["before"] or {}, change["after"] or {}
            differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            found[change["address"]] = differ | {
                name for name, value in change["after_unknown"].items() if value is True
            }
        return found


def prepare_terraform(folder: Path, **variables: str) -> Terraform:
    """Copy and initialise the configuration. Skips the test aloud where Terraform or the provider is missing."""
    mirror = find_mirror()
    if shutil.which("terraform") is None:
        pytest.skip("NOT TESTED: infra/aws, because there is no terraform on the path")
    if mirror is None:
        pytest.skip("NOT TESTED: infra/aws, because no mirror has the provider; TF_PLUGIN_MIRROR names one")
    shutil.copytree(SOURCE, folder / "aws", ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*"))
    (folder / "aws" / "moto_override.tf").write_text(_OVERRIDE, encoding="utf-8")
    options = folder / "terraform.rc"
    installation = f'provider_installation {{\n  filesystem_mirror {{\n    path = "{mirror}"\n  }}\n}}\n'
    options.write_text("disable_checkpoint = true\n" + installation, encoding="utf-8")
    terraform = Terraform(folder / "aws", {"TF_CLI_CONFIG_FILE": str(options)} | variables)
    terraform.run("init", "-input=false")
    return terraform
