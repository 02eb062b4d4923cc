"""Every command in the documentation is one of this program's, with options and values that it takes."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from imagenet_mds.cli import app
from imagenet_mds.cli.options import parse_size
from imagenet_mds.resources import config_names, recipe_names
from imagenet_mds_infra.prices import TYPES
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.reference import keys_of
from tests.docs.pages import Line, lines_in_blocks, lines_in_text
from tests.support.command import run

PROGRAM: Any = typer.main.get_command(app)
LINES = lines_in_blocks()
SHIPPED = {*config_names(), *recipe_names()}
COPIED = {"my.yaml": "phase3"}
"""Files that the pages make, and the configuration that they are a copy of."""

SIZES = ("cache_limit", "shard_size")


def _command(words: tuple[str, ...]) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """The command that words name, the words that name it, and the others."""
    command, place = PROGRAM, 0
    while place < len(words) and words[place] in getattr(command, "commands", {}):
        command = command.commands[words[place]]
        place += 1
    return command, words[:place], words[place:]


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def _parsed(line: Line) -> dict[str, Any]:
    """The values of the command's parameters. Nothing is run."""
    command, path, rest = _command(line.words)
    assert not hasattr(command, "commands"), f"{line} names no command"
    context = command.make_context(" ".join(path), list(rest), parent=typer.Context(PROGRAM, info_name="imagenet-mds"))
    values: dict[str, Any] = context.params
    return values


def _is_of_the_program(line: Line) -> bool:
    """Whether it asks for help, or has options of the program or of a group alone."""
    command, _, rest = _command(line.words)
    return "--help" in rest or hasattr(command, "commands")


def test_the_pages_are_read() -> None:
    pages = {line.page for line in LINES}
    assert {"README.md", "docs/phase1.md", "docs/phase2.md", "docs/phase3.md", "docs/aws.md"} <= pages
    assert "docs/interruption.md" in pages  # the systemd unit
    assert len(LINES) > 100
    named = {_command(line.words)[1] for line in LINES}
    commands = {name for name, command in PROGRAM.commands.items() if name != "demo" and not command.hidden}
    assert {path[0] for path in named if path} == commands
    aws = PROGRAM.commands["aws"].commands
    assert {path[1] for path in named if path[:1] == ("aws",) and len(path) > 1} == set(aws) - {"worker"}


@pytest.mark.parametrize("line", [line for line in LINES if not _is_of_the_program(line)], ids=str)
def test_a_command_line_is_understood(line: Line) -> None:
    values = _parsed(line)
    for name in SIZES:
        if values.get(name) is not None:
            assert parse_size(values[name], name) > 0
    for kind in values.get("instance_type") or ():
        assert kind in TYPES
    if "zone" in values:
        assert re.fullmatch(r"[a-z]{2}-[a-z]+-\d[a-f]", values["zone"])
    if values.get("key") is not None:
        assert keys_of(values["key"])
    if line.words[0] == "train" or line.words[:2] == ("aws", "launch"):
        assert _configuration(values) is not None, f"{line} names no configuration"
    if (configuration := _configuration(values)) is not None:
        load_config(
            configuration,
            tuple(values.get("overrides") or ()),
            values.get("ranks"),
            deterministic=values.get("deterministic", False),
        )


def _configuration(values: dict[str, Any]) -> str | None:
    """The shipped configuration that the values of a command name."""
    if values.get("phase") is not None:
        return f"phase{values['phase']}"
    # `configs` has the name as an argument; --name of `aws` is that of a deployment.
    name = values.get("config") or ("region" not in values and values.get("name")) or None
    return COPIED.get(name, name) if name else None


@pytest.mark.parametrize("line", [line for line in LINES if _is_of_the_program(line)], ids=str)
def test_a_line_of_the_program_or_a_group_has_its_options(line: Line) -> None:
    command, _, rest = _command(line.words)
    assert rest, f"{line} does nothing"
    assert set(rest) <= _options(command) | {"--help"}


@pytest.mark.parametrize("line", sorted(set(lines_in_text()), key=str), ids=str)
def test_a_command_in_the_text_has_the_options_that_are_named(line: Line) -> None:
    command, path, rest = _command(line.words)
    assert path or line.words[0].startswith(("-", "COMMAND")), f"{line} names no command"
    named = {word for word in rest if re.fullmatch(r"--[a-z][a-z-]*", word)}
    assert named <= _options(command) | {"--help"}


def _is_cheap(line: Line) -> bool:
    """Whether it needs no data and no network, and takes a moment."""
    words = line.words
    if "--help" in words:
        return True
    if words[0] == "configs":
        return True
    return words == ("doctor",)


@pytest.mark.slow
def test_what_is_cheap_is_run_in_the_order_of_the_page(tmp_path: Path) -> None:
    """A page copies a configuration before it validates the copy."""
    cheap = [line for line in dict.fromkeys(LINES) if _is_cheap(line)]
    assert {line.words[0] for line in cheap} >= {"--help", "configs", "doctor", "aws"}
    for line in cheap:
        outcome = run(*line.words, cwd=tmp_path)
        # What doctor finds of the machine that runs the tests is not the documentation's fault.
        allowed = (0, 1) if line.words[0] == "doctor" else (0,)
        assert outcome.status in allowed, f"{line}\n{outcome.err}"
        assert outcome.out, line


def test_a_line_with_a_mistake_is_found() -> None:
    for words in (
        ("train", "--phase", "4"),
        ("convert", "a", "b", "--split", "test"),
        ("convert", "a"),
        ("aws", "volume", "snapshots", "imagenet"),
    ):
        with pytest.raises((typer.TyperException, AssertionError)):
            _parsed(Line("here", words))
