"""The program as an instance installs it."""

import subprocess
import sys
from pathlib import Path

from imagenet_mds_infra.code import PACKAGES, pack


def test_the_archive_runs_without_the_checkout(tmp_path: Path) -> None:
    packed, digest = pack()
    assert (packed, digest) == pack()
    (tmp_path / "code.tar.gz").write_bytes(packed)
    subprocess.run(["tar", "-xzf", "code.tar.gz"], cwd=tmp_path, check=True)
    assert {path.name for path in (tmp_path / "app").iterdir()} == set(PACKAGES)
    assert (tmp_path / "requirements.lock").is_file()
    assert "ExecStart=" in (tmp_path / "imagenet-mds.service").read_text()
    outcome = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path / 'app')!r}); sys.argv[1:] = "
            "['configs', 'show', 'phase3']; from imagenet_mds.cli import main; main()",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert 'recipe: "medium"' in outcome.stdout
