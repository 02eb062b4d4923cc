"""Completion in a shell, installed by the command that the README names."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import environment

BASH = shutil.which("bash")
INSTALL = "imagenet-mds --install-completion"
COMPLETE = """
. ~/.bashrc
COMP_WORDS=({words}) COMP_CWORD={place}
# What bash calls when Tab is pressed: the function that is registered for the program.
$(complete -p imagenet-mds | sed 's/.* -F \\([^ ]*\\) .*/\\1/') imagenet-mds
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the program on the path and its completion installed."""
    if BASH is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("home")
    program = folder / "bin" / "imagenet-mds"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom imagenet_mds.cli import main\n\nmain()\n")
    program.chmod(0o755)
    # Two commands, because bash replaces itself by the only one, and the shell is recognised by the parent process.
    said = _bash(folder, f"{INSTALL}\ntrue")
    assert "bash completion installed" in said.stdout
    return folder


def _bash(home: Path, script: str) -> "subprocess.CompletedProcess[str]":
    assert BASH is not None
    variables = environment(HOME=str(home))
    variables["PATH"] = f"{home / 'bin'}:{variables['PATH']}"
    return subprocess.run([BASH, "-c", script], env=variables, capture_output=True, text=True, check=True, timeout=900)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("imagenet-mds tr", "train"),
        ("imagenet-mds aws vol", "volume"),
        ("imagenet-mds aws volume sn", "snapshot"),
        ("imagenet-mds train --until", "--until-done"),
        ("imagenet-mds convert a b --check str", "structure"),
        ("imagenet-mds train --data '' --until", "--until-done"),
    ],
)
def test_bash_completes_commands_options_and_choices(home: Path, words: str, expected: str) -> None:
    typed = words.split()  # bash hands the words over with their quotes
    said = _bash(home, COMPLETE.format(words=shlex.join(typed), place=len(typed) - 1))
    assert said.stdout.split() == [expected]
    assert said.stderr == ""


def test_the_command_in_the_documentation_is_this_one() -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    assert f"`{INSTALL}`" in readme.read_text(encoding="utf-8")
