"""The command line: its surface, how fast it answers, how it ends."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from imagenet_mds.cli import app
from imagenet_mds.cli.inspect import inspect
from imagenet_mds.errors import UserError
from tests.support.command import PROGRAM, done, environment, run
from tests.support.drawing import encoded, noise
from tests.support.running import convert_here
from tests.support.runs import KILLED_AND_CONTINUED, write_run

SURFACE = """
imagenet-mds --version --install-completion --show-completion
imagenet-mds aws
imagenet-mds aws clean --all --name --region --dry-run --yes
imagenet-mds aws cost --runs-per-month --name --region --json
imagenet-mds aws launch overrides --phase --data --spot --run-name --instance-type --pretrained --max-dollars \
--max-hours --wait-minutes --name --region --dry-run --yes
imagenet-mds aws logs run --lines --follow --name --region
imagenet-mds aws status run --name --region --json
imagenet-mds aws stop --name --region --dry-run
imagenet-mds aws volume
imagenet-mds aws volume create volume source options --size-gb --name --region --dry-run --yes
imagenet-mds aws volume restore snapshot --zone --name --region --dry-run
imagenet-mds aws volume snapshot volume --name --region --dry-run
imagenet-mds aws worker
imagenet-mds configs
imagenet-mds configs cp name file
imagenet-mds configs explain key --markdown
imagenet-mds configs ls
imagenet-mds configs show name overrides --json
imagenet-mds configs validate name overrides
imagenet-mds convert source dest --split --source-format --verify-source --subset --workers --check \
--max-side --min-side --quality --classes --val-fraction --tiles --half --raw --shard-size --engine --seed --plan \
--strict --overwrite --log-json
imagenet-mds demo folder
imagenet-mds doctor overrides --data --save --config --cache --cache-limit --json
imagenet-mds eval checkpoint --data --split --subset --resize-px --crop-px --flips --raw-weights \
--real-labels --against --report --results --cache --cache-limit --json
imagenet-mds export checkpoint file --json
imagenet-mds find-lr overrides --phase --config --data --cache --cache-limit --ranks --out --from --to \
--batches --json
imagenet-mds inspect dataset --sample --split --config --epoch --batch --ranks --workers --cache \
--cache-limit --json
imagenet-mds predict checkpoint images --data --json
imagenet-mds preview dataset file --split --start --count --columns --augmented --config --epoch --batch \
--cache --cache-limit
imagenet-mds replay run --data --cache --cache-limit --batches --checkpoint --ranks --json
imagenet-mds runs
imagenet-mds runs compare a b --report --json
imagenet-mds runs ls folder --json
imagenet-mds runs report run file
imagenet-mds train overrides --phase --config --data --cache --cache-limit --run-name --experiment-name \
--save --ranks --from-checkpoint --pretrained --deterministic --until-done --nodes --node-rank \
--master --plan --dry-run
imagenet-mds verify dataset --deep --repair
"""
HEAVY = {"torch", "torchvision", "composer", "streaming", "torchmetrics", "numpy", "PIL", "omegaconf", "wandb", "boto3"}


def _commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command and group, with the words that call it."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while pending:
        path, command = pending.pop(0)
        yield path, command
        pending += [((*path, name), inner) for name, inner in getattr(command, "commands", {}).items()]


def _surface() -> list[str]:
    """Return one line per command: its name, its arguments, its options."""
    lines = []
    for path, command in _commands():
        words = [
            "/".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.opts[0].startswith("-")
            else parameter.name
            for parameter in command.params
        ]
        lines.append(" ".join(["imagenet-mds", *path, *words]))
    return sorted(lines)


def test_the_surface_of_the_command_line_is_unchanged() -> None:
    assert _surface() == SURFACE.replace("\\\n", "").strip().splitlines()


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command that takes a value: its name in messages, and the words that give it an empty one."""

    name: str
    words: tuple[str, ...]


def _parameters() -> list[Parameter]:
    """All parameters of all commands that take a value."""
    found = []
    for path, command in _commands():
        before: list[str] = []
        for parameter in command.params:
            option = parameter.opts[0]
            if not option.startswith("-"):
                found.append(Parameter(parameter.metavar or option.upper(), (*path, *before, "")))
                before.append("x")
            elif not getattr(parameter, "is_flag", False):
                found.append(Parameter(option, (*path, option, "")))
    return found


@pytest.mark.parametrize("parameter", _parameters(), ids=lambda parameter: " ".join(parameter.words[:-1]))
def test_an_empty_value_is_refused_and_is_not_the_current_folder(parameter: Parameter) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(parameter.name)} is empty: pass a value"):
        app(list(parameter.words), standalone_mode=False)


def test_an_empty_value_is_one_line(tmp_path: Path) -> None:
    outcome = run("train", "--phase", "1", "--data", "", cwd=tmp_path)
    assert outcome.status == 2
    assert outcome.err == "imagenet-mds: --data is empty: pass a value, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


def _imported(*arguments: str) -> set[str]:
    done = subprocess.run(
        [PROGRAM[0], "-X", "importtime", *PROGRAM[1:], *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["convert", "--help"],
        ["train", "--help"],
        ["predict", "--help"],
        ["runs", "ls", "--help"],
        ["find-lr", "--help"],
        ["replay", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    imported = _imported(*arguments)
    assert "typer" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    "group", [path for path, command in _commands() if getattr(command, "commands", {})], ids=" ".join
)
def test_the_help_of_a_group_has_whole_lines_in_80_columns(group: tuple[str, ...]) -> None:
    lines = done(*group, "--help", COLUMNS="80").out.splitlines()
    commands = lines[lines.index("Commands:") + 1 :]
    assert len(commands) > 1
    assert [line for line in commands if line.endswith("...") or len(line) > 80] == []


def test_commands_of_the_converter_import_neither_torch_nor_its_dependents(tree: object, dataset: object) -> None:
    for arguments in (["convert", str(tree), "none", "--plan"], ["inspect", str(dataset)], ["verify", str(dataset)]):
        assert not _imported(*arguments) & {"torch", "torchvision", "composer", "streaming", "torchmetrics", "wandb"}


def test_listing_and_comparing_runs_imports_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "one", KILLED_AND_CONTINUED)
    for arguments in (["ls", str(tmp_path / "runs")], ["compare", str(run), str(run)]):
        assert not _imported("runs", *arguments) & {"torch", "composer", "streaming", "numpy", "matplotlib", "wandb"}


def test_reading_batches_does_not_import_the_trainer(dataset: object) -> None:
    """Composer takes 10 s to import."""
    read = _imported("inspect", str(dataset), "--config", "demo", "--epoch", "0", "--batch", "0")
    assert "torch" in read
    assert not read & {"composer", "wandb"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "only-one"], "Missing argument 'dest'"),
        (["convert", "a", "b", "--workers", "0"], "--workers"),
        (["convert", "a", "b", "--raw", "--min-side", "99999999999"], "less than or equal to 65500"),
        (["convert", "a", "b", "--workers", "99999999999"], "less than or equal to 65536"),
        (["convert", "a", "b", "--split", "test"], "'test' is not one of"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["frobni\n\x1bcate"], "No such command 'frobni\\n\\x1bcate'"),
        (["convert", "a", "b", "--shard_size", "1"], "No such option: --shard_size"),
    ],
)
def test_a_usage_error_is_one_line_that_refers_to_the_help(arguments: list[str], words: str) -> None:
    outcome = run(*arguments)
    assert outcome.status == 2
    assert outcome.out == ""
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("imagenet-mds: ")
    assert "--help`." in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--config", "demo", "--lr", "0.1"], "there is no --lr: pass optimizer.lr=0.1"),
        (["train", "--phase", "1", "--epochs", "3"], "there is no --epochs: pass schedule.epochs=10"),
        (["train", "--phase", "1", "--resume"], "there is no --resume: pass nothing: the same command again continues"),
        (["convert", "a", "b", "--resize", "256"], "there is no --resize: pass --max-side 400 or --min-side 256"),
    ],
)
def test_an_option_by_the_name_of_other_programs_is_answered_with_ours(arguments: list[str], words: str) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"imagenet-mds: {words}\n")


def test_a_file_is_no_folder_for_the_demo(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run("demo", tmp_path / "file")
    assert (outcome.status, outcome.err) == (2, f"imagenet-mds: {tmp_path}/file is a file: choose a folder\n")


def test_a_terminal_that_is_not_utf8_gets_escapes_and_no_traceback(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "\u732b"):
        (tmp_path / "tree" / "train" / name).mkdir(parents=True)
        (tmp_path / "tree" / "train" / name / "a.JPEG").write_bytes(encoded(noise()))
    outcome = run("convert", tmp_path / "tree", tmp_path / "mds", PYTHONIOENCODING="ascii")
    assert outcome.status == 0, outcome.err
    assert "taken as they are: caf\\xe9, \\u732b" in outcome.err
    shown = run("inspect", tmp_path / "mds", "--sample", 0, PYTHONIOENCODING="latin-1")
    assert shown.status == 0, shown.err


@pytest.mark.usefixtures("in_process")
def test_control_characters_in_names_are_escaped_in_every_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a\x1b[31mred\nline"
    for name in ("cat\x1b[2J", "dog"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "a.JPEG").write_bytes(encoded(noise()))
        (root / "train" / name / "b.JPEG").write_bytes(b"none")
    (root / "train" / "dog" / "c\x1b\u2028.xml").touch()
    (root / "train" / "eel\n").mkdir()
    refused = run("convert", root, tmp_path / "mds")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "a\\x1b[31mred\\nline/train has a name with a line break in it" in refused.err
    (root / "train" / "eel\n").rmdir()
    convert_here(root, tmp_path / "m\x1bds")
    inspect(str(tmp_path / "m\x1bds"), sample=0)
    said = "".join(capsys.readouterr())
    assert "taken as they are: cat\\x1b[2J, dog" in said
    assert "m\\x1bds/train: 2 images" in said
    assert "left out: cat\\x1b[2J/b.JPEG: " in said
    assert "such as dog/c\\x1b\\u2028.xml" in said
    assert "\x1b" not in said + refused.err


def test_a_user_error_is_one_line_without_a_traceback(tmp_path: object) -> None:
    outcome = run("inspect", f"{tmp_path}/none")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        f"imagenet-mds: there is no dataset at {tmp_path}/none: "
        f"make one with `imagenet-mds convert SOURCE {tmp_path}/none`\n"
    )


def test_the_shipped_configurations_are_listed_and_shown() -> None:
    listed = run("configs", "ls")
    assert [line.split()[0] for line in listed.out.splitlines()] == [
        *("demo", "dev", "phase1", "phase2", "phase3"),
        *("classic", "hot", "medium", "mild"),
    ]
    shown = run("configs", "show", "phase3", "optimizer.lr=1e-4")
    assert re.search(r"lr: 0.0001 +# command line", shown.out)
    as_json = run("configs", "show", "phase3", "optimizer.lr=1e-4", "--json")
    assert json.loads(as_json.out)["optimizer"]["lr"] == 1e-4


def test_a_configuration_is_copied_and_checked(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    assert run("configs", "cp", "phase2", mine).status == 0
    checked = run("configs", "validate", mine, "optimizer.lr=0.2")
    assert (checked.status, "recipe classic" in checked.out, "learning rate 0.2" in checked.out) == (0, True, True)
    again = run("configs", "cp", "phase3", mine)
    assert (again.status, "is there already" in again.err) == (2, True)
    assert run("configs", "validate", mine).out == checked.out.replace("learning rate 0.2", "learning rate 0.05")
    mine.write_text("recipe: medium\noptimiser: {lr: 1}\nschedule: {epochs: 0}\n")
    wrong = run("configs", "validate", mine)
    assert (wrong.status, wrong.out, wrong.err.count("\n")) == (2, "", 1)
    assert "did you mean optimizer" in wrong.err
    assert "schedule.epochs" in wrong.err
