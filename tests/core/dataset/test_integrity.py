"""Faults of shard files."""

from pathlib import Path

import pytest

from imagenet_mds.dataset.integrity import faulty_shards, shard_fault
from imagenet_mds.dataset.mds import ShardInfo, describe_shard
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage

DATA = b"a shard's bytes"


def _entry(basename: str) -> ShardInfo:
    shard = describe_shard(basename, DATA, 1)
    return ShardInfo(basename=basename, size_bytes=shard.size_bytes, xxh64=shard.xxh64, samples=1)


def test_a_whole_shard_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    assert shard_fault(LocalStorage(tmp_path), _entry("a")) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "missing"),
        (DATA[:-1], "14 bytes, the manifest has 15"),
        (DATA[::-1], f"xxh64 is {describe_shard('', DATA[::-1], 1).xxh64}, the manifest has {_entry('').xxh64}"),
    ],
)
def test_each_fault_is_described(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    assert words in str(shard_fault(LocalStorage(tmp_path), _entry("a")))


def test_a_read_error_is_a_fault_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(storage: Storage, name: str) -> str:
        raise OSError(5, "Input/output error", name)

    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr("imagenet_mds.dataset.integrity.stored_xxh64", refuse)
    assert shard_fault(LocalStorage(tmp_path), _entry("a")) == "cannot be read (Input/output error)"


def test_faults_come_in_the_order_of_the_shards_and_each_shard_is_counted(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(20)]
    for name in names[::2]:
        (tmp_path / name).write_bytes(DATA)
    counted: list[str] = []
    faults = faulty_shards(
        LocalStorage(tmp_path),
        [_entry(name) for name in names],
        threads=4,
        on_shard=lambda shard: counted.append(shard.basename),
    )
    assert [shard.basename for shard, _ in faults] == names[1::2]
    assert counted == names
