"""`imagenet-mds runs` on folders of runs written by hand."""

import json
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.runs import KILLED_AND_CONTINUED, event, line, write_run

pytestmark = pytest.mark.slow  # starts whole commands


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run, a study with another one, and a damaged one."""
    write_run(tmp_path / "base", KILLED_AND_CONTINUED, checkpoint="ep3-ba30.pt")
    write_run(tmp_path / "lr" / "high", [event("start", 1, 0, 0), line(1, 6, 7)], "optimizer.lr=2.0")
    (write_run(tmp_path / "broken") / "run.json").write_text("{")
    return tmp_path


def test_runs_are_listed_with_a_note_for_what_is_broken(runs: Path) -> None:
    outcome = run("runs", "ls", runs)
    assert outcome.status == 0
    header, *rows = outcome.out.splitlines()
    assert header.split() == [
        *("run", "state", "epoch", "batch", "top-1", "best", "images/s", "hours", "starts", "checkpoint")
    ]
    assert [row.split() for row in rows] == [
        ["base", "stopped", "3/10", "30", "50.00%", "60.00%", "100", "0.62", "2", "ep3-ba30.pt"],
        ["lr/high", "killed", "or", "failed", "0/10", "7", "-", "-", "100", "0.10", "1", "-"],
    ]
    assert outcome.err.startswith(f"note: {runs}/broken is left out: {runs}/broken/run.json is damaged")
    assert outcome.err.count("\n") == 1
    listed = json.loads(run("runs", "ls", runs, "--json").out)
    assert [(one["name"], one["run"], one["epoch"], one["best_top1"]) for one in listed] == [
        ("base", f"{runs}/base", 3, 0.6),
        ("lr/high", f"{runs}/lr/high", 0, None),
    ]


def test_the_default_folder_is_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one")
    assert run("runs", "ls", cwd=tmp_path).out.splitlines()[1].startswith("one ")
    (tmp_path / "none" / "runs").mkdir(parents=True)
    empty = run("runs", "ls", "--json", cwd=tmp_path / "none")
    assert (empty.status, empty.out, empty.err) == (0, "[]\n", "")
    said = run("runs", "ls", cwd=tmp_path / "none")
    assert (said.status, said.out) == (0, "")
    assert said.err.startswith("note: no run was found: there is no run.json that can be read in ")
    assert f" {tmp_path}/none/runs, in its folders, or in theirs." in said.err
    assert said.err.count("\n") == 1


def test_another_folder_gets_one_line_and_not_one_for_each_folder_in_it(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "src" / "deep" / "deeper").mkdir(parents=True)
    write_run(tmp_path / "src" / "deep" / "deeper" / "too-deep")
    said = run("runs", "ls", tmp_path)
    assert (said.status, said.out, said.err.count("\n")) == (0, "", 1)
    assert "no run was found" in said.err


def test_a_damaged_run_alone_is_named(tmp_path: Path) -> None:
    (write_run(tmp_path / "broken") / "run.json").write_text("{")
    said = run("runs", "ls", tmp_path)
    first, second = said.err.splitlines()
    assert first.startswith(f"note: {tmp_path}/broken is left out: {tmp_path}/broken/run.json is damaged")
    assert second.startswith("note: no run was found")


def test_two_runs_are_compared(runs: Path) -> None:
    outcome = run("runs", "compare", runs / "base", runs / "lr/high")
    assert (outcome.status, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["optimizer.lr", "0.1", "2.0"] in lines
    assert "dataset and start: the same" in outcome.out
    assert ["top-1", "50.00%", "-"] in lines
    assert ["hours", "trained", "0.62", "0.10"] in lines
    found = json.loads(run("runs", "compare", runs / "base", runs / "lr/high", "--json").out)
    assert found["settings"] == [{"key": "optimizer.lr", "a": 0.1, "b": 2.0}]
    assert (found["origins"], found["a"]["top1"], found["b"]["batch"]) == ([], 0.5, 7)


def test_pages_are_written_where_they_are_asked_for(runs: Path) -> None:
    outcome = run("runs", "compare", runs / "base", runs / "lr/high", "--report", runs / "two.html")
    assert outcome.out.endswith(f"report: {runs}/two.html\n")
    assert "<svg" in (runs / "two.html").read_text(encoding="utf-8")
    assert run("runs", "report", runs / "base").out == f"report: {runs}/base/report.html\n"
    assert run("runs", "report", runs / "base", runs / "one.html").status == 0
    assert (runs / "one.html").read_bytes() == (runs / "base" / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls", "none"], "none does not exist: pass the folder of runs"),
        (["ls", "base/run.json"], "base/run.json is a file: pass the folder of runs"),
        (["compare", "base", "none"], "there is no run at none: pass the folder of a run, which holds run.json"),
        (["compare", "base", "lr"], "there is no run at lr: "),
        (["compare", "base", "base", "--report", "page.txt"], "--report page.txt: pass a file that ends in .html"),
        (["compare", "base", "base", "--report", "no/page.html"], "--report no/page.html: there is no folder no"),
        (["report", "none"], "there is no run at none"),
        (["report", "base", "base/log.jsonl"], "FILE base/log.jsonl: pass a file that ends in .html"),
        (["report", "base", "folder.html"], "folder.html cannot be written: Is a directory"),
    ],
)
def test_a_mistake_is_one_line(runs: Path, arguments: list[str], words: str) -> None:
    (runs / "folder.html").mkdir()
    outcome = run("runs", *arguments, cwd=runs)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert outcome.err.startswith(f"imagenet-mds: {words}")


def test_a_damaged_run_alone_ends_the_command_in_one_line(runs: Path) -> None:
    outcome = run("runs", "report", runs / "broken")
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "run.json is damaged" in outcome.err
