"""The runs below a folder, from folders written by hand."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.process.locks import is_locked
from imagenet_mds_train.history.comparison import Comparison, differing
from imagenet_mds_train.history.runs import Run, find_run, list_runs, list_runs_in_s3
from imagenet_mds_train.run.mirror import RunMirror
from tests.support.runs import IDENTITY, KILLED_AND_CONTINUED, event, line, write_run
from tests.support.s3_server import BUCKET, Proxy, direct

RESULT = {"batches": 30, "epochs": 3, "top1": 0.5}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder as a running process does. The lock is its descriptor's, so to this process it is another's too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_the_state_is_what_result_lock_and_log_show(tmp_path: Path) -> None:
    stopped = write_run(tmp_path / "stopped", KILLED_AND_CONTINUED)
    killed = write_run(tmp_path / "killed", KILLED_AND_CONTINUED[:-1])
    finished = write_run(tmp_path / "finished", KILLED_AND_CONTINUED, result=RESULT)
    bare = write_run(tmp_path / "bare")
    assert [Run.read(one).state for one in (stopped, killed, finished, bare)] == [
        *("stopped", "killed or failed", "finished", "killed or failed")
    ]
    with locked(killed), locked(finished):
        assert is_locked(killed)
        assert [Run.read(one).state for one in (killed, finished)] == ["running", "finished"]
        assert Run.read(killed).ends() == ["killed or failed", "running"]
    assert Run.read(killed).ends() == ["killed or failed", "killed or failed"]
    assert Run.read(stopped).ends() == ["killed or failed", "stopped"]


def test_asking_for_the_lock_leaves_it_free(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    run = Run.read(write_run(tmp_path / "run", KILLED_AND_CONTINUED, checkpoint="ep3-ba30.pt"))
    figures = run.figures()
    assert figures.pop("hours") == pytest.approx(37 / 60)
    assert figures.pop("top5") == pytest.approx(0.7)
    assert figures.pop("train_loss") == pytest.approx(1.7)
    assert figures.pop("waiting_for_data") == pytest.approx(0.1)
    assert figures.pop("images_per_second") == pytest.approx(100)
    assert figures == {
        "state": "stopped",
        "epoch": 3,
        "epochs": 10,
        "batch": 30,
        "top1": 0.5,
        "loss": 1.5,
        "best_top1": 0.6,
        "best_epoch": 2,
        "starts": 2,
        "checkpoint": "ep3-ba30.pt",
    }


def test_a_checkpoint_counts_if_its_file_is_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", checkpoint="ep1-ba10.pt")
    (folder / "checkpoints" / "ep1-ba10.pt").unlink()
    assert Run.read(folder).checkpoint is None
    assert Run.read(folder).figures()["top1"] is None


def test_runs_are_found_two_levels_down_and_other_folders_are_noted(tmp_path: Path) -> None:
    for name in ("b", "a", "study/one", "study/two", "study/deep/three"):
        write_run(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").touch()
    runs, notes = list_runs(tmp_path)
    assert [str(run.path.relative_to(tmp_path)) for run in runs] == ["a", "b", "study/one", "study/two"]
    assert notes == [
        f"{tmp_path}/empty is left out: it holds no run",
        f"{tmp_path}/study/deep is left out: it holds no run",
    ]
    assert [run.path for run in list_runs(tmp_path / "a")[0]] == [tmp_path / "a"]


def put(folder: Path, server: int, prefix: str) -> None:
    """Copy a run to S3 as it lies there."""
    for path in folder.rglob("*"):
        if path.is_file():
            direct(server).upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


def test_runs_in_s3_are_found_as_those_in_folders(
    proxy: Proxy, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = write_run(tmp_path / "run", KILLED_AND_CONTINUED, checkpoint="ep3-ba30.pt")
    for name in ("b", "study/one", "study/deep/three"):
        put(run, server, f"runs/{name}")
    put(write_run(tmp_path / "damaged"), server, "runs/a")
    direct(server).put_object(Bucket=BUCKET, Key="runs/a/run.json", Body=b"{")
    root = f"s3://{BUCKET}/runs"
    runs, (note,) = list_runs_in_s3(root)
    assert [one.location for one in runs] == [f"{root}/b", f"{root}/study/one"]
    assert note.startswith(f"{root}/a is left out: ")
    assert [one.location for one in list_runs_in_s3(f"{root}/study/one/")[0]] == [f"{root}/study/one"]
    found = find_run(f"{root}/b")
    assert (found.name, found.figures()) == ("b", Run.read(run).figures())
    assert found.checkpoint == "ep3-ba30.pt"
    # The working copy is locked where the run is in progress.
    working = RunMirror.at(f"{root}/b").folder.path
    working.mkdir(parents=True)
    assert find_run(f"{root}/b").state == "stopped"
    with locked(working):
        assert find_run(f"{root}/b").state == "running"
    direct(server).delete_object(Bucket=BUCKET, Key="runs/b/log.jsonl")
    assert find_run(f"{root}/b").history.batch == 0
    with pytest.raises(UserError, match=r"there is no run at .*: pass the address of a run"):
        find_run(f"{root}/study")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", b"{", "run.json is damaged"),
        ("run.json", b"[]", "run.json is no record of a run"),
        ("run.json", b'{"format": 1}', "run.json is no record of a run"),
        (
            "run.json",
            b'{"config": {"global_batch_size": 8}, "format": 1, "identity": {}}',
            "run.json: optimizer is missing",
        ),
        ("run.json", b'{"config": {}, "format": 99}', "was written by a later version of imagenet-mds"),
        ("run.json", b'{"config": {}, "format": "x"}', "run.json is no record of a run"),
        ("run.json", b'{"config": {}, "identity": []}', "run.json is no record of a run"),
        ("run.json", b"\xff\xfe", "run.json is damaged"),
        ("log.jsonl", b"\x00\x01\n\x02\n", "log.jsonl is damaged: none of its 2 lines is an event"),
        ("result.json", b"", "result.json is damaged"),
        ("checkpoints/ep9-ba9.json", b'{"format": 99}', "was written by a later version of imagenet-mds"),
    ],
)
def test_a_damaged_run_is_a_note_and_the_others_are_listed(
    tmp_path: Path, file: str, content: bytes, words: str
) -> None:
    write_run(tmp_path / "whole", KILLED_AND_CONTINUED)
    (write_run(tmp_path / "damaged") / file).write_bytes(content)
    runs, (note,) = list_runs(tmp_path)
    assert [run.path.name for run in runs] == ["whole"]
    assert note.startswith(f"{tmp_path}/damaged is left out: ")
    assert words in note


def test_an_earlier_configuration_counts_with_defaults(tmp_path: Path) -> None:
    """`run.json` of a commit that had fewer keys."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", (), "algorithms.sam={}")
    record = json.loads((a / "run.json").read_bytes())
    for key in ("sam", "swa", "colout"):
        del record["config"]["algorithms"][key]
    del record["config"]["loss"]
    (a / "run.json").write_text(json.dumps(record))
    comparison = Comparison.of(Run.read(a), Run.read(b))
    assert [(one.key, one.a, one.b) for one in comparison.settings] == [
        ("algorithms.sam.every_batches", None, 10),
        ("algorithms.sam.rho", None, 0.5),
    ]
    assert comparison.origins == []


def test_datasets_and_origins_are_compared(tmp_path: Path) -> None:
    other = {"dataset": IDENTITY["dataset"] | {"train": "dddd"}, "recipe": {"seed": 1}, "threads_per_rank": 2}
    a = write_run(tmp_path / "a", identity=IDENTITY | {"recipe": {"seed": 2}})
    b = write_run(tmp_path / "b", identity=other, forked_from="runs/a/checkpoints/ep1-ba1.pt")
    comparison = Comparison.of(Run.read(a), Run.read(b))
    assert comparison.settings == []
    assert [(one.key, one.a, one.b) for one in comparison.origins] == [
        ("dataset.train", "aaaa", "dddd"),
        ("forked_from", None, "runs/a/checkpoints/ep1-ba1.pt"),
        ("threads_per_rank", None, 2),
    ]
    values = comparison.as_values()
    assert (values["a"]["run"], values["a"]["state"]) == (str(a), "killed or failed")
    json.dumps(values, allow_nan=False)


def test_a_group_that_is_null_shows_in_each_key_of_the_other() -> None:
    found = differing({"ema": None, "same": {"x": 1}, "size": [1, 2]}, {"ema": {"k": 3}, "same": {"x": 1}, "size": [1]})
    assert [(one.key, one.a, one.b) for one in found] == [("ema.k", None, 3), ("size", [1, 2], [1])]


def test_a_run_is_found_by_its_folder_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/study/one"))
    assert find_run("study/one").path == find_run("runs/study/one").path == Path("runs/study/one")
    for wrong in ("study", "none", "runs/study/one/run.json", ""):
        with pytest.raises(UserError, match="there is no run at"):
            find_run(wrong)


def test_a_run_has_the_name_of_its_folder_however_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_run(tmp_path / "one"))
    assert [find_run(typed).name for typed in (".", "../one", str(tmp_path / "one"))] == ["one"] * 3
    monkeypatch.chdir("checkpoints")
    assert find_run("..").name == "one"


def test_a_place_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, words in (("none", "none does not exist: pass"), ("file", "file is a file: pass")):
        with pytest.raises(UserError, match=words):
            list_runs(tmp_path / name)
    assert list_runs(tmp_path) == ([], [])


def test_a_run_that_was_only_started_has_no_figures(tmp_path: Path) -> None:
    figures = Run.read(write_run(tmp_path / "run", [event("start", 1, 0, 0)])).figures()
    assert (figures["starts"], figures["batch"], figures["hours"], figures["images_per_second"]) == (1, 0, 0, None)
    assert Run.read(write_run(tmp_path / "one", [line(1, 1, 1)])).figures()["batch"] == 1
