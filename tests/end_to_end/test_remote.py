"""Training on a dataset in S3: the same batches as from a disk, over a bad line too; what is missing is said first."""

import json
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.dataset.integrity import faulty_shards
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.errors import WorldError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.loaders import TrainingImages, training_loader
from tests.support.command import run
from tests.support.datasets import manifest_at
from tests.support.probe import WORKERS
from tests.support.s3_server import BUCKET, Proxy, Request, direct

LOCATION = f"s3://{BUCKET}/mds"
SMALL = (
    "global_batch_size=16",
    "augment.size_px=16",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 64, workers_per_rank: 0}",
    "schedule={epochs: 1}",
    "logging={every_batches: 1, print_every_batches: 100}",
)


def put(dataset: Path, server: int) -> None:
    """Lay a dataset into the bucket, past the proxy."""
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            direct(server).upload_file(str(path), BUCKET, f"mds/{path.relative_to(dataset)}")


def config(workers: int) -> TrainConfig:
    """A small one."""
    sections = {"augment": {"size_px": 16}, "optimizer": {"lr": 0.1}, "schedule": {"epochs": 1}}
    return parse_config({"global_batch_size": 8, "data": {"workers_per_rank": workers}} | sections, "the test")


def digests(shard_cache: ShardCache, samples: int, workers: int) -> list[str]:
    """A name for each batch of an epoch."""
    loader = training_loader(config(workers), shard_cache, samples)
    return [xxhash.xxh64_hexdigest(images.numpy().tobytes() + labels.numpy().tobytes()) for images, labels in loader]


def shards_read(proxy: Proxy) -> list[str]:
    """The shards that were asked for, in order."""
    return [
        request.path.split("?")[0].rpartition("/")[2]
        for request, fault in proxy.seen
        if request.method == "GET" and ".mds" in request.path and not fault
    ]


@pytest.mark.usefixtures("blocks")
def test_batches_are_those_of_the_disk_cold_and_warm(proxy: Proxy, server: int, dataset: Path, tmp_path: Path) -> None:
    put(dataset, server)
    expected = digests(ShardCache(dataset / "train"), 158, 0)
    assert len(expected) == 19
    every = sorted(shard.basename for shard in manifest_at(dataset / "train").shards)
    for workers in WORKERS:
        train = Dataset.at(LOCATION, tmp_path / f"cache{workers}").split("train")
        train.check_available(train.info.shards)
        proxy.seen.clear()
        assert digests(train.shard_cache, 158, workers) == expected
        assert sorted(shards_read(proxy)) == every, "each shard once, whoever needs it"
        assert digests(train.shard_cache, 158, workers) == expected
        assert sorted(shards_read(proxy)) == every


@pytest.mark.usefixtures("blocks")
def test_a_bad_line_changes_no_batch(proxy: Proxy, server: int, dataset: Path, tmp_path: Path) -> None:
    put(dataset, server)
    train = Dataset.at(LOCATION, tmp_path / "cache").split("train")
    train.check_available(train.info.shards)
    dice = random.Random(3)

    def choose(request: Request) -> str | None:
        if ".mds" not in request.path or dice.random() > 0.4:
            return None
        return dice.choice(["slow down", "reset"] + ["stall"] * ("stall" not in proxy.faults()))

    proxy.choose = choose
    assert digests(train.shard_cache, 158, 2) == digests(ShardCache(dataset / "train"), 158, 0)
    assert {"slow down", "reset", "stall"} <= set(proxy.faults())


@pytest.mark.usefixtures("blocks")
def test_a_subset_fetches_its_own_shards(proxy: Proxy, server: int, dataset: Path, tmp_path: Path) -> None:
    put(dataset, server)
    train = Dataset.at(LOCATION, tmp_path / "cache").split("train")
    train.check_available(train.info.prefix(40))
    proxy.seen.clear()
    assert digests(train.shard_cache, 40, 0) == digests(ShardCache(dataset / "train"), 40, 0)
    assert sorted(shards_read(proxy)) == [shard.basename for shard in train.info.prefix(40)]


@pytest.mark.usefixtures("blocks")
def test_a_cache_smaller_than_the_dataset_serves_all_of_it(
    proxy: Proxy, server: int, dataset: Path, tmp_path: Path
) -> None:
    put(dataset, server)
    largest = max(shard.size_bytes for shard in manifest_at(dataset / "train").shards)
    train = Dataset.at(LOCATION, tmp_path / "cache", 8 * largest).split("train")
    train.check_available(train.info.shards)
    expected = digests(ShardCache(dataset / "train"), 158, 0)
    for workers in (0, 2):
        assert digests(train.shard_cache, 158, workers) == expected
    assert sum(path.stat().st_size for path in train.shard_cache.folder.glob("*.mds")) <= 8 * largest


@pytest.mark.usefixtures("blocks")
def test_a_shard_that_cannot_be_had_ends_the_loader_with_its_name(
    proxy: Proxy, server: int, dataset: Path, tmp_path: Path
) -> None:
    """The library's own loader waits for it for ever."""
    put(dataset, server)
    train = Dataset.at(LOCATION, tmp_path / "cache").split("train")
    train.check_available(train.info.shards)
    direct(server).delete_object(Bucket=BUCKET, Key="mds/train/shard.00007.mds")
    with pytest.raises(Exception, match=r"shard\.00007\.mds cannot be fetched: No such object"):
        digests(train.shard_cache, 158, 2)


def test_a_run_on_s3_is_the_run_on_a_disk(proxy: Proxy, server: int, dataset: Path, tmp_path: Path) -> None:
    put(dataset, server)
    cache = tmp_path / "cache"
    command = ("train", "--config", "demo", "--save", tmp_path, *SMALL)
    local = run(*command, "--data", dataset, "--run-name", "local")
    assert local.status == 0, local.err
    remote = run(*command, "--data", LOCATION, "--cache", cache, "--run-name", "remote")
    assert remote.status == 0, remote.err
    assert f"fetched to:        {cache}" in remote.out
    assert _losses(tmp_path / "local") == _losses(tmp_path / "remote")
    # What lies in the cache is used, but for what is not as it was.
    broken = next(cache.glob("*/train/shard.00002.mds"))
    data = bytearray(broken.read_bytes())
    data[-50:] = bytes(50)
    broken.write_bytes(data)
    proxy.seen.clear()
    again = run(*command, "--data", LOCATION, "--cache", cache, "--run-name", "again", "--ranks", 2)
    assert again.status == 0, again.err
    assert f"note: {broken} is fetched again: its content's xxh64 is" in again.err
    assert shards_read(proxy) == ["shard.00002.mds"]
    evaluated = run("eval", tmp_path / "local", "--data", LOCATION, "--cache", tmp_path / "cold", "--json")
    assert json.loads(evaluated.out)["samples"] == 50
    for part in ("train", "val"):
        direct(server).delete_object(Bucket=BUCKET, Key=f"mds/{part}/shard.00001.mds")
    for name in ("shard.00003.mds", "shard.00011.mds"):
        direct(server).delete_object(Bucket=BUCKET, Key=f"mds/train/{name}")
    refused = run(*command, "--data", LOCATION, "--cache", cache, "--run-name", "refused")
    assert refused.status == 1
    assert (
        ": 3 of 19 shards are missing or not whole: shard.00001.mds (missing), shard.00003.mds (missing), "
        in refused.err
    )
    assert "shard.00011.mds (missing); s3://imagenet/mds/val: 1 of " in refused.err
    assert "(missing). Rebuild them with `imagenet-mds verify s3://imagenet/mds --repair" in refused.err
    assert not (tmp_path / "refused" / "run.json").exists(), "before a rank starts, and the name is free still"


def _losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [event["loss"] for event in map(json.loads, lines) if event["event"] == "batch"]
    assert len(losses) == 9
    return losses


def stock(dataset: Path, out: Path, compression: str | None = None) -> Path:
    """The dataset as the library's own writer makes it: an index, and no manifest."""
    from streaming import MDSWriter, StreamingDataset

    for split in ("train", "val"):
        columns = {"i": "int", "x": "jpeg", "y": "int"}
        options: dict[str, Any] = {"size_limit": 1 << 16, "hashes": ["xxh64"], "compression": compression}
        with MDSWriter(columns=columns, out=str(out / split), **options) as writer:
            for path in sorted((dataset / split).glob("*.mds")):
                for record in _records(path):
                    writer.write(record)
    assert StreamingDataset.__module__
    return out


def _records(path: Path) -> list[dict[str, Any]]:
    from tests.support.shards import read_shard

    return [{"i": record.index, "x": record.image, "y": record.label} for record in read_shard(path)]


@pytest.mark.usefixtures("blocks")
def test_a_dataset_of_stock_tools_is_trained_on_without_its_fingerprint_and_subsets(
    dataset: Path, tmp_path: Path
) -> None:
    theirs = stock(dataset, tmp_path / "stock")
    from streaming import MDSWriter

    ours = TrainingImages(config(0), ShardCache(dataset / "train"), 158)
    images = TrainingImages(config(0), ShardCache(theirs / "train"), 158)
    assert [images.read(sample) for sample in range(158)] == [ours.read(sample) for sample in range(158)]
    command = ("train", "--config", "demo", "--data", theirs, "--save", tmp_path, *SMALL)
    done = run(*command, "--run-name", "stock", "model.classes=10")
    assert done.status == 0, done.err
    assert done.err.count("has no manifest: it is identified by its index alone") == 1
    assert "158 of 158 in 10 classes" in done.out
    evaluated = run("eval", tmp_path / "stock", "--data", theirs, "--json")
    assert json.loads(evaluated.out)["samples"] == 50, evaluated.err
    seen = run("inspect", theirs, "--config", "demo", "--batch", 1, "--json")
    assert len(json.loads(seen.out)) == 32
    assert "158 images" in run("inspect", theirs).out
    assert json.loads(run("inspect", theirs, "--sample", 7, "--json").out)["class"] == ours.read(7)[1]
    for more in ((), ("--augmented", "--config", "demo")):
        assert run("preview", theirs, tmp_path / "sheet.png", *more).status == 0
    images_alone = tmp_path / "images alone" / "train"
    with MDSWriter(columns={"x": "jpeg", "y": "int"}, out=str(images_alone), size_limit=1 << 16) as writer:
        for sample in range(20):
            writer.write({"x": ours.read(sample)[0].image, "y": ours.read(sample)[1]})
    facts = json.loads(run("inspect", images_alone.parent, "--sample", 11, "--json").out)
    assert (facts["class"], facts["bytes"]) == (ours.read(11)[1], len(ours.read(11)[0].image))
    refused = run(*command, "--run-name", "subset", "data.subset=40")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "pass data.subset=null to train on all of it" in refused.err
    few = run(*command, "--run-name", "few", "model.classes=3")
    assert few.status == 2
    assert re.search(r"a sample has class [3-9] and the model knows 3: pass model\.classes", few.err)
    # Another dataset of stock tools is another run's.
    shutil.rmtree(theirs / "val")
    shutil.copytree(theirs / "train", theirs / "val")
    other = run(*command, "--run-name", "stock", "model.classes=10")
    assert other.status == 2
    assert "dataset.val: 'index-" in other.err


@pytest.mark.usefixtures("blocks")
def test_a_merged_index_of_stock_tools_is_read_in_place_and_through_a_cache(dataset: Path, tmp_path: Path) -> None:
    """Its shards lie in folders, each with the same names in it."""
    merged = tmp_path / "merged" / "train"
    shards = []
    for part in ("00000", "00001"):
        shutil.copytree(stock(dataset, tmp_path / part) / "train", merged / part)
        for shard in json.loads((merged / part / "index.json").read_bytes())["shards"]:
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
    # As the library's merge_index writes it, which leaves files open.
    (merged / "index.json").write_text(json.dumps({"version": 2, "shards": shards}), encoding="utf-8")
    expected = digests(ShardCache(merged), 316, 0)
    train = Dataset.at(str(merged.parent), tmp_path / "cache").split("train")
    train.check_available(train.info.shards)
    assert len({train.shard_cache.path(shard.basename) for shard in train.info.shards}) == len(train.info.shards)
    assert digests(train.shard_cache, 316, 2) == expected
    first = train.info.shards[0].basename
    train.shard_cache.path(first).write_bytes(b"")
    (note,) = train.verify(train.info.shards, threads=1)
    assert note.startswith(f"{train.shard_cache.path(first)} is fetched again")
    assert digests(train.shard_cache, 316, 0) == expected
    (merged / first).unlink()
    with pytest.raises(WorldError, match="Copy them again from where they came from"):
        train.check_available(train.info.shards)


@pytest.mark.parametrize("compression", ["zstd:7", "gz", "br:1", "bz2:9", "snappy"])
def test_compressed_shards_of_stock_tools_are_read_unpacked(dataset: Path, tmp_path: Path, compression: str) -> None:
    packed = stock(dataset, tmp_path / "packed", compression)
    assert not list(packed.rglob("*.mds"))
    train = Dataset.at(str(packed), tmp_path / "cache").split("train")
    assert train.warning is not None
    assert f"unpacked into {train.shard_cache.folder}" in train.warning
    train.check_available(train.info.shards)
    plain = ShardCache(stock(dataset, tmp_path / "plain") / "train")
    files = pickle.loads(pickle.dumps(train.shard_cache))
    assert digests(files, 158, 0) == digests(plain, 158, 0)
    assert faulty_shards(LocalStorage(files.folder), train.info.shards, threads=1) == []
    # The library puts an unpacked shard beside a compressed one, or in its place.
    first, second = train.info.shards[:2]
    for shard in (first, second):
        shutil.copy(files.path(shard.basename), packed / "train")
    next((packed / "train").glob(f"{second.basename}.*")).unlink()
    assert train.shard_cache.missing(train.info.shards) == []
    again = Dataset.at(str(packed), tmp_path / "other cache").split("train")
    again.check_available(again.info.shards)
    assert again.shard_cache.fetch(second)


def test_a_compressed_dataset_is_trained_on_and_looked_into(dataset: Path, tmp_path: Path) -> None:
    packed = stock(dataset, tmp_path / "packed", "zstd")
    cache = ("--cache", tmp_path / "cache")
    done = run("train", "--config", "demo", "--data", packed, *cache, "--save", tmp_path, *SMALL, "model.classes=10")
    assert done.status == 0, done.err
    assert "its compressed shards are unpacked" in done.err
    facts = json.loads(run("inspect", packed, "--sample", 7, "--json").out)
    assert facts["class"] == TrainingImages(config(0), ShardCache(dataset / "train"), 158).read(7)[1]
    shutil.rmtree(tmp_path / "cache")
    broken = next((packed / "train").glob("*.zstd"))
    broken.write_bytes(broken.read_bytes()[:-1] + b"!")
    refused = run("inspect", packed, "--config", "demo", *cache)
    assert (refused.status, len(refused.err.splitlines())) == (1, 1)
    assert f"{broken.name.removesuffix('.zstd')} cannot be fetched: it does not unpack as zstd" in refused.err


def test_what_is_no_index_of_images_is_said(dataset: Path, tmp_path: Path) -> None:
    from streaming import MDSWriter

    out = tmp_path / "texts"
    for split in ("train", "val"):
        with MDSWriter(columns={"text": "str"}, out=str(out / split)) as writer:
            writer.write({"text": "a"})
    outcome = run("train", "--config", "demo", "--data", out, "--save", tmp_path, *SMALL)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert "has text: give a dataset with images in x and classes in y" in outcome.err
    (out / "train" / "index.json").write_text("{}", encoding="utf-8")
    outcome = run("train", "--config", "demo", "--data", out, "--save", tmp_path)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert "is not an index of MDS shards" in outcome.err
