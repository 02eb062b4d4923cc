"""The checkpoint store keeps the same promises on a disk and in S3."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds_train.checkpoints.store import CheckpointStore
from tests.support.s3_server import BUCKET, Proxy

IDENTITY: dict[str, Any] = {"dataset": {"train": "a"}, "recipe": {"seed": 1}}


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """The checkpoints of a run, on a disk and in S3."""
    if request.param == "s3":
        proxy: Proxy = request.getfixturevalue("proxy")
        assert proxy
        yield S3Storage(BUCKET, "runs/demo/checkpoints")
    else:
        yield LocalStorage(tmp_path / "runs" / "demo" / "checkpoints")


Save = Callable[..., str]


@pytest.fixture
def save(storage: Storage, tmp_path: Path) -> Save:
    """Publishes a checkpoint and returns its name."""

    def save(batch: int, epoch: int = 0, content: bytes = b"weights", keep_last: int = 9) -> str:
        staged = tmp_path / f"ep{epoch}-ba{batch}.pt"
        staged.write_bytes(content)
        CheckpointStore(storage).publish(staged, epoch=epoch, batch=batch, identity=IDENTITY, keep_last=keep_last)
        assert not staged.exists()
        return staged.name

    return save


def test_the_newest_checkpoint_is_found(storage: Storage, save: Save) -> None:
    store = CheckpointStore(storage)
    assert store.newest() == (None, [])
    for batch in (10, 20, 9):
        save(batch)
    newest, warnings = store.newest()
    assert newest is not None
    assert (newest.basename, newest.identity, newest.format, warnings) == ("ep0-ba20.pt", IDENTITY, 1, [])
    assert storage.read(newest.basename) == b"weights"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (b"weightt", "its content is not what its record has"),
        (b"weight", "6 bytes, its record has 7"),
        (None, "missing"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    storage: Storage, save: Save, damage: bytes | None, words: str
) -> None:
    save(10)
    name = save(20)
    if damage is None:
        storage.delete(name)
    else:
        storage.write(name, damage)
    newest, warnings = CheckpointStore(storage).newest()
    assert newest is not None
    assert newest.batch == 10
    assert warnings == [f"{storage.location}/{name} is skipped: {words}"]


def test_a_checkpoint_without_a_record_does_not_count(storage: Storage, save: Save) -> None:
    save(10)
    storage.write("ep0-ba20.pt", b"half of it")
    newest, _ = CheckpointStore(storage).newest()
    assert newest is not None
    assert newest.batch == 10
    save(20)
    assert storage.read("ep0-ba20.pt") == b"weights"


@pytest.mark.parametrize("reached_batch", [None, 20])
def test_a_run_whose_checkpoints_are_all_broken_does_not_restart_at_0(
    storage: Storage, save: Save, reached_batch: int | None
) -> None:
    storage.write(save(20), b"broken!")
    with pytest.raises(WorldError, match=r"saved checkpoints.* and none can be used .*restore .*checkpoints"):
        CheckpointStore(storage).newest(reached_batch)


def test_a_run_whose_log_names_a_checkpoint_does_not_restart_at_0(storage: Storage) -> None:
    with pytest.raises(WorldError, match=r"saved checkpoints up to batch 20 and none can be used \(they are gone\)"):
        CheckpointStore(storage).newest(20)


def test_old_checkpoints_go_with_their_records(storage: Storage, save: Save) -> None:
    for batch in (5, 10, 20):
        save(batch, keep_last=2)
    assert storage.list_names() == ["ep0-ba10.json", "ep0-ba10.pt", "ep0-ba20.json", "ep0-ba20.pt"]


def test_the_end_of_an_epoch_replaces_its_last_batch(storage: Storage, save: Save) -> None:
    save(10, keep_last=2)
    save(20, keep_last=2)
    save(20, epoch=1, keep_last=2)
    assert [name for name in storage.list_names() if name.endswith(".pt")] == ["ep0-ba10.pt", "ep1-ba20.pt"]


def test_broken_newer_checkpoints_are_discarded_so_that_they_can_be_saved_again(storage: Storage, save: Save) -> None:
    save(10)
    storage.write(save(20, epoch=1), b"broken!")
    store = CheckpointStore(storage)
    newest, _ = store.newest()
    assert newest is not None
    assert newest.batch == 10
    store.discard_after(newest)
    assert storage.list_names() == ["ep0-ba10.json", "ep0-ba10.pt"]
    assert save(20, epoch=1) == "ep1-ba20.pt"


def test_a_second_writer_does_not_overwrite_a_record(storage: Storage, save: Save) -> None:
    save(10)
    with pytest.raises(WorldError, match=r"ep0-ba10\.pt was published by another process: only one may continue"):
        save(10)


def test_a_second_writer_does_not_replace_the_checkpoint_of_the_first(storage: Storage, save: Save) -> None:
    save(10)
    with pytest.raises(WorldError):
        save(10, content=b"others")
    newest, warnings = CheckpointStore(storage).newest()
    assert newest is not None
    assert (newest.batch, warnings) == (10, [])


def test_unreadable_records_are_discarded_so_that_the_run_can_pass_them(storage: Storage, save: Save) -> None:
    save(10)
    storage.write(save(20).replace(".pt", ".json"), b"")
    store = CheckpointStore(storage)
    newest, _ = store.newest()
    store.discard_after(newest)
    assert save(20) == "ep0-ba20.pt"


def test_what_killed_starts_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".ep0-ba10.tmp.pt", ".ep0-ba10.json.0123456789abcdef.tmp"):
        (folder / name).touch()
    CheckpointStore(LocalStorage(folder)).discard_after(None)
    assert list(folder.iterdir()) == []


def test_a_record_of_a_later_version_is_refused(storage: Storage, save: Save) -> None:
    save(10)
    record = json.loads(storage.read("ep0-ba10.json"))
    for change in ({"format": 2}, {"format": 2, "host": "x"}):
        storage.write("ep0-ba10.json", json.dumps(record | change).encode())
        with pytest.raises(UserError, match=r"ep0-ba10\.json was written by a later version of imagenet-mds"):
            CheckpointStore(storage).newest()


def test_a_record_that_is_not_json_is_skipped_with_a_warning(storage: Storage, save: Save) -> None:
    save(10)
    storage.write("ep0-ba20.json", b"")
    newest, warnings = CheckpointStore(storage).newest()
    assert newest is not None
    assert newest.batch == 10
    assert warnings == [f"{storage.location}/ep0-ba20.json is skipped: it is not a checkpoint's record"]
