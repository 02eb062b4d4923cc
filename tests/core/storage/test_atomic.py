"""Atomic writes: a file is complete or does not exist."""

import errno
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.storage.atomic import Draft, create_atomic, json_bytes, write_atomic, write_json
from imagenet_mds.storage.local import LocalStorage
from tests.support.command import HANG_SECONDS


def test_a_file_is_written_and_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.bin", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"whole"}


@pytest.mark.parametrize("moved", [False, True])
def test_a_file_written_behind_is_complete_whether_its_parts_moved_or_not(tmp_path: Path, moved: bool) -> None:
    ahead, whole = b"..head was there....", b"head" + b"0123456789abcdef"
    if moved:
        whole = whole[:2] + whole[3:]
    with Draft(tmp_path / "a.bin") as draft:
        draft.write_behind(memoryview(whole if not moved else ahead)[4:10], 4)
        draft.write_behind(memoryview(whole if not moved else ahead)[10:12], 10)
        assert [path.name for path in tmp_path.iterdir()] != ["a.bin"]
        draft.publish(memoryview(whole), moved=moved)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": whole}


def test_an_abandoned_draft_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")

    def interrupted() -> None:
        with Draft(tmp_path / "a.bin") as draft:
            draft.write_behind(b"new", 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"old"}


@pytest.mark.parametrize("parts", [1, 2, 50])
def test_a_failed_part_is_raised_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    pwrite = os.pwrite

    def fail_in_thread(descriptor: int, data: memoryview, start: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, start)

    def written() -> None:
        with Draft(tmp_path / "a.bin") as draft:
            for part in range(parts):
                draft.write_behind(b"new", 3 * part)
            draft.publish(parts * b"new")

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(os, "pwrite", fail_in_thread)
    with pytest.raises(OSError, match="No space left"):
        written()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"old"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(failing, fail)
    with pytest.raises(type(error)):
        write_atomic(tmp_path / "a.bin", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"old"}


def test_the_content_is_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append("fsync of " + ("the folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "the file"))
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomic(tmp_path / "a.bin", b"whole")
    assert events == ["fsync of the file", "rename", "fsync of the folder"]


def test_a_missing_folder_is_the_systems_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "none" / "a.bin", b"")


def test_json_for_people_is_sorted_readable_and_always_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "\u00e9"})
    expected = '{\n  "a": "\u00e9",\n  "b": [\n    1\n  ]\n}\n'.encode()
    assert (tmp_path / "a.json").read_bytes() == expected == json_bytes({"a": "\u00e9", "b": [1]})


def test_a_name_is_created_once(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "lease")
    storage.create("owner", b"first")
    with pytest.raises(FileExistsError):
        storage.create("owner", b"second")
    assert {entry.name: storage.read(entry.name) for entry in storage.walk()} == {"owner": b"first"}


def test_one_of_many_processes_creates_a_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_number in range(20):
        path = tmp_path / f"{round_number}"
        barrier, won = context.Barrier(4), context.Queue()
        processes = [context.Process(target=_create, args=(path, barrier, won, number)) for number in range(4)]
        for process in processes:
            process.start()
        outcomes = [won.get(timeout=HANG_SECONDS) for _ in processes]
        for process in processes:
            process.join()
        winners = [number for number in outcomes if number is not None]
        assert len(winners) == 1
        assert path.read_bytes() == bytes([winners[0]]) * 100_000
    assert len(list(tmp_path.iterdir())) == 20, "no temporary file is left"


def _create(path: Path, barrier: Any, won: Any, number: int) -> None:
    barrier.wait()
    try:
        create_atomic(path, bytes([number]) * 100_000)
    except FileExistsError:
        won.put(None)
    else:
        won.put(number)


def test_a_link_whose_answer_was_lost_counts_as_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats the request, and the second answer is that the name exists."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    create_atomic(tmp_path / "owner", b"first")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"owner": b"first"}
    with pytest.raises(FileExistsError):
        create_atomic(tmp_path / "owner", b"second")


def test_a_created_file_is_durable_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def noted_fsync(descriptor: int) -> None:
        events.append("fsync of " + ("the folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "the file"))
        fsync(descriptor)

    def noted_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    create_atomic(tmp_path / "a.bin", b"whole")
    assert events == ["fsync of the file", "link", "fsync of the folder"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    create_atomic(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        create_atomic(tmp_path / "a", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"first"}
