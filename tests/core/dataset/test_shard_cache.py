"""The shard cache: each shard is fetched once, verified, and gets its name only when it is complete."""

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.dataset.prefetch import Need, Prefetcher
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.dataset.split_info import SplitInfo
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.local import LocalStorage
from tests.support.command import HANG_SECONDS
from tests.support.datasets import info_at


@dataclass(frozen=True)
class Elsewhere(LocalStorage):
    """A dataset on a disk that records its reads, and may be slow or return wrong data."""

    log: Path = Path("log")
    seconds: float = 0.0
    lie: Callable[[str, bytes], bytes] = field(default=lambda name, data: data)

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Read a range, and pass it through `lie`."""
        with open(self.log, "a", encoding="ascii") as log:
            log.write(f"{name}\n")
        time.sleep(self.seconds)
        return self.lie(name, super().read_range(name, start, length))

    def reads(self) -> list[str]:
        """Return the names that were read, in order."""
        return self.log.read_text(encoding="ascii").splitlines() if self.log.exists() else []


@dataclass(frozen=True)
class Case:
    """A remote split and an empty cache for it."""

    remote: Elsewhere
    shard_cache: ShardCache
    info: SplitInfo


def case(dataset: Path, tmp_path: Path, limit_bytes: int | None = None, **options: object) -> Case:
    """Prepare a cache for the training split."""
    remote = Elsewhere(dataset / "train", log=tmp_path / "log", **options)  # type: ignore[arg-type] # options of the test
    files = ShardCache(tmp_path / "cache", remote, limit_bytes)
    info = info_at(dataset / "train")
    files.prepare(info.shards)
    return Case(remote, files, info)


def names(shard_cache: ShardCache) -> set[str]:
    """Return the names in the folder, without the locks and the index."""
    return {path.name for path in shard_cache.folder.iterdir()} - {".held", "index.json"}


def test_a_shard_is_fetched_once_and_unchanged(dataset: Path, tmp_path: Path) -> None:
    here = case(dataset, tmp_path)
    for _ in range(2):
        for shard in here.info.shards:
            assert here.shard_cache.fetch(shard)
    assert here.remote.reads() == [shard.basename for shard in here.info.shards]
    assert names(here.shard_cache) == {shard.basename for shard in here.info.shards}
    for shard in here.info.shards:
        assert here.shard_cache.path(shard.basename).read_bytes() == (dataset / "train" / shard.basename).read_bytes()
    assert (here.shard_cache.folder / "index.json").read_bytes() == (dataset / "train" / "index.json").read_bytes()
    assert here.shard_cache.drop_broken(here.info.shards, threads=2) == []


def test_processes_that_want_the_same_shards_fetch_each_once(dataset: Path, tmp_path: Path) -> None:
    here = case(dataset, tmp_path, seconds=0.02)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_all, args=(here.shard_cache, here.info, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(here.remote.reads()) == sorted(shard.basename for shard in here.info.shards)


def _fetch_all(shard_cache: ShardCache, info: SplitInfo, number: int) -> None:
    shards = info.shards[number:] + info.shards[:number]
    needs = [Need(shard, place, place) for place, shard in enumerate(shards)]
    with Prefetcher(shard_cache, needs, distance=5, threads=3) as ahead:
        for place, shard in enumerate(shards):
            ahead.reach(place)
            assert shard_cache.fetch(shard)
            assert shard_cache.path(shard.basename).stat().st_size == shard.size_bytes


def test_fetch_without_wait_returns_while_another_process_fetches(dataset: Path, tmp_path: Path) -> None:
    here = case(dataset, tmp_path)
    shard = here.info.shards[0]
    with here.shard_cache._lock(shard.basename, wait=True) as lock:
        assert lock is not None
        assert not here.shard_cache.fetch(shard, wait=False)
    assert here.shard_cache.fetch(shard, wait=False)


def test_the_prefetcher_stays_within_its_distance(dataset: Path, tmp_path: Path) -> None:
    here = case(dataset, tmp_path)
    needs = [Need(shard, 10 * place, 10 * place + 9) for place, shard in enumerate(here.info.shards)]
    with Prefetcher(here.shard_cache, needs, distance=25, threads=2) as ahead:
        _until(lambda: len(here.remote.reads()) == 3)
        time.sleep(0.1)
        assert sorted(here.remote.reads()) == [need.shard.basename for need in needs[:3]]
        assert ahead.in_use() == {need.shard.basename for need in needs[:3]}
        ahead.reach(31)
        _until(lambda: len(here.remote.reads()) == 6)
        assert ahead.in_use() == {need.shard.basename for need in needs[3:6]}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_of_the_prefetcher_is_raised_to_the_reader_of_the_shard(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "mds"))
    here = case(copy, tmp_path)
    first, second = here.info.shards[:2]
    (copy / "train" / first.basename).unlink()
    with Prefetcher(here.shard_cache, [Need(first, 0, 0), Need(second, 1, 1)], distance=9, threads=1):
        _until(here.shard_cache.path(second.basename).exists)
    with pytest.raises(WorldError, match=rf"{first.basename} cannot be fetched: No such file"):
        here.shard_cache.fetch(first)


@pytest.mark.parametrize(
    "lie", [lambda _, data: data[:-1], lambda _, data: data + b"!", lambda _, data: bytes(len(data)), lambda *_: b""]
)
def test_a_shard_with_wrong_content_never_gets_its_name(
    dataset: Path, tmp_path: Path, lie: Callable[[str, bytes], bytes]
) -> None:
    here = case(dataset, tmp_path, lie=lie)
    with pytest.raises(WorldError, match=r"shard\.00000\.mds is broken: it has .* Repair it with `imagenet-mds verify"):
        here.shard_cache.fetch(here.info.shards[0])
    assert names(here.shard_cache) == set()
    assert len(here.remote.reads()) >= 3, "a wrong download is repeated"


def test_a_wrong_download_is_repeated(dataset: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def lie(name: str, data: bytes) -> bytes:
        seen.append(name)
        return bytes(len(data)) if len(seen) == 1 else data

    here = case(dataset, tmp_path, lie=lie)
    assert here.shard_cache.fetch(here.info.shards[0])
    assert here.shard_cache.drop_broken(here.info.shards, threads=1) == []


@pytest.mark.parametrize("damage", ["a flipped byte", "a zeroed tail", "cut short"])
def test_a_shard_that_changed_on_the_disk_is_removed_and_fetched_again(
    dataset: Path, tmp_path: Path, damage: str
) -> None:
    here = case(dataset, tmp_path)
    for shard in here.info.shards:
        here.shard_cache.fetch(shard)
    broken = here.info.shards[3]
    path = here.shard_cache.path(broken.basename)
    data = bytearray(path.read_bytes())
    if damage == "a flipped byte":
        data[len(data) // 2] ^= 1
    elif damage == "a zeroed tail":
        data[-100:] = bytes(100)
    else:
        del data[-100:]
    path.write_bytes(data)
    os.utime(here.shard_cache.path(here.info.shards[4].basename))  # touched, but whole
    checked: list[str] = []
    faults = here.shard_cache.drop_broken(here.info.shards, 2, lambda shard: checked.append(shard.basename))
    assert [shard for shard, _ in faults] == [broken]
    assert checked == [shard.basename for shard in here.info.shards[3:5]], "the others are as they were verified"
    assert not path.exists()
    assert here.shard_cache.fetch(broken)
    assert path.read_bytes() == (dataset / "train" / broken.basename).read_bytes()
    assert here.shard_cache.drop_broken(here.info.shards, 2, lambda shard: checked.append("again")) == []
    assert "again" not in checked


def test_a_limit_holds_and_shards_in_use_are_evicted_last(dataset: Path, tmp_path: Path) -> None:
    info = info_at(dataset / "train")
    limit_bytes = 8 * max(shard.size_bytes for shard in info.shards)
    here = case(dataset, tmp_path, limit_bytes)
    kept = {shard.basename for shard in info.shards[:3]}
    for _ in range(2):
        for shard in info.shards:
            assert here.shard_cache.fetch(shard, protect=lambda: kept)
            assert sum(path.stat().st_size for path in here.shard_cache.folder.glob("*.mds")) <= limit_bytes
            assert here.shard_cache.path(shard.basename).exists()
    assert kept <= names(here.shard_cache)
    assert {shard.basename for shard in info.shards} <= {path.name for path in (dataset / "train").iterdir()}


def test_a_limit_without_room_for_eight_shards_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--cache-limit of 100,000 bytes: allow for at least 8 shards, 5\d\d,\d\d\d bytes"
    ):
        case(dataset, tmp_path, 100_000)


def test_a_disk_with_no_room_is_refused_before_anything_is_fetched(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda storage: 1_000_000)
    with pytest.raises(
        UserError, match=r"would take 0\.0 GB more and its disk has 0\.0 GB free: pass --cache FOLDER on"
    ):
        case(dataset, tmp_path)
    here = case(dataset, tmp_path, limit_bytes=900_000)
    assert here.shard_cache.fetch(here.info.shards[0])


def test_the_only_copy_is_never_in_a_cache(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is read in place, and the only copy is never removed"):
        Dataset.at(str(dataset), None, 10**9)
    with pytest.raises(UserError, match="is inside the dataset"):
        Dataset.at(str(dataset), dataset / "train", 10**9)
    in_place = Dataset.at(str(dataset)).split("train").shard_cache
    with pytest.raises(WorldError, match="is missing"):
        in_place.fetch(ShardInfo("gone.mds", 1, "", 1))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: choose a folder"):
        Dataset.at("s3://bucket/mds", tmp_path / "file")


def test_another_dataset_has_another_folder(dataset: Path, few_classes: Path, tmp_path: Path) -> None:
    folders = {Dataset.at(str(root), tmp_path).split("train").shard_cache.folder for root in (dataset, few_classes)}
    assert len(folders) == 2
    assert all(folder.parent.parent == tmp_path for folder in folders)


def test_all_shards_missing_from_the_remote_are_named(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "mds"))
    split = Dataset.at(str(copy), tmp_path / "cache").split("train")
    shards = split.info.shards
    (copy / "train" / shards[1].basename).unlink()
    (copy / "train" / shards[4].basename).write_bytes(b"short")
    split.check_available(split.info.prefix(shards[0].samples))
    with pytest.raises(WorldError, match=r"2 of \d+ shards .*00001\.mds \(missing\), shard\.00004\.mds \(5 bytes\)\."):
        split.check_available(shards)


def test_the_partial_download_of_a_killed_process_is_overwritten(dataset: Path, tmp_path: Path) -> None:
    here = case(dataset, tmp_path)
    shard = here.info.shards[0]
    (here.shard_cache.folder / f".{shard.basename}.tmp").write_bytes(bytes(10 * shard.size_bytes))
    assert here.shard_cache.fetch(shard)
    assert here.shard_cache.path(shard.basename).stat().st_size == shard.size_bytes
    assert names(here.shard_cache) == {shard.basename}
    (here.shard_cache.folder / f".{here.info.shards[1].basename}.tmp").touch()
    here.shard_cache.prepare(here.info.shards)
    assert names(here.shard_cache) == {shard.basename}


def test_downloads_of_other_processes_take_room(dataset: Path, tmp_path: Path) -> None:
    largest = max(shard.size_bytes for shard in info_at(dataset / "train").shards)
    here = case(dataset, tmp_path, 8 * largest)
    first, second = here.info.shards[:2]
    coming = here.shard_cache.folder / f".{second.basename}.tmp"
    coming.write_bytes(bytes(8 * largest))
    with here.shard_cache._lock(second.basename, wait=True):
        assert not here.shard_cache.fetch(first, wait=False)
        threading.Timer(0.3, coming.unlink).start()
        assert here.shard_cache.fetch(first)


def test_partial_downloads_of_killed_processes_take_no_room(dataset: Path, tmp_path: Path) -> None:
    """It died after this process prepared the cache."""
    largest = max(shard.size_bytes for shard in info_at(dataset / "train").shards)
    here = case(dataset, tmp_path, 8 * largest)
    first, second = here.info.shards[:2]
    (here.shard_cache.folder / f".{second.basename}.tmp").write_bytes(bytes(8 * largest))
    assert here.shard_cache.fetch(first, wait=False)
    assert names(here.shard_cache) == {first.basename}


def test_a_limit_below_what_an_epoch_reads_at_once_gives_a_warning(dataset: Path, tmp_path: Path) -> None:
    location, shards = str(dataset), info_at(dataset / "train").shards
    size_bytes = sum(shard.size_bytes for shard in shards)
    largest = max(shard.size_bytes for shard in shards)
    for limit_bytes, samples_at_once, words in (
        (None, 16_384, None),
        (size_bytes, 16_384, None),
        (size_bytes - 1, 16_384, "shards are fetched several times"),
        (8 * largest, 40, None),
        (8 * largest, 140, "or lower data.order.shuffle_block_size"),
    ):
        said = (
            Dataset.at(location, tmp_path / "cache", limit_bytes)
            .split("train")
            .cache_too_small(shards, samples_at_once)
        )
        assert said is None if words is None else words in str(said)
