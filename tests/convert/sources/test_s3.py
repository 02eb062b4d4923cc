"""Sources in S3: the same bytes as from a disk, few requests, and network faults."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import retry
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds.storage.s3_client import reset_client
from imagenet_mds.vocabulary import SPLITS, SourceKind
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.shards.build import build_shard
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.archives import TRAIN_BASENAME, VAL_BASENAME
from tests.support.command import run
from tests.support.datasets import manifest_at
from tests.support.drawing import files
from tests.support.running import convert_here
from tests.support.s3_server import BUCKET, PAGE, Proxy, Request, direct
from tests.support.sources import (
    WNIDS,
    make_images,
    member,
    put_archives,
    put_class_tars,
    put_kaggle,
    put_parquet,
    put_webdataset,
    shards,
    tar_of,
)

pytestmark = pytest.mark.slow  # many requests to a real server

KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "tree": lambda tree, root: Path(shutil.copytree(tree, root)),
    "kaggle": put_kaggle,
    "archives": put_archives,
    "parquet": put_parquet,
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of images in every format, each in a folder named after it. Read-only."""
    root = tmp_path_factory.mktemp("local")
    make_images(root / "images")
    for kind, put in KINDS.items():
        put(root / "images", root / kind)
    return root


@pytest.fixture
def upload(proxy: Proxy, server: int) -> Callable[[Path, str], str]:
    """A function that copies a folder to a prefix, bypassing the proxy, and returns its address."""
    client = direct(server)

    def copy(folder: Path, prefix: str) -> str:
        for name, data in files(folder).items():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)
        return f"s3://{BUCKET}/{prefix}"

    return copy


def seen(proxy: Proxy, since: int = 0) -> Iterator[Request]:
    """The requests from index `since` on."""
    return (request for request, _ in proxy.seen[since:])


def images_asked_for(proxy: Proxy) -> list[tuple[str, str]]:
    """Method and name of every request for a single image."""
    return [(one.method, one.path) for one in seen(proxy) if one.path.partition("?")[0].endswith(".JPEG")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_s3_gives_the_bytes_of_one_on_a_disk(
    local: Path, tmp_path: Path, upload: Callable[[Path, str], str], proxy: Proxy, kind: str, in_process: None
) -> None:
    address = upload(local / kind, "raw")
    assert convert_here(local / kind, tmp_path / "a") == convert_here(address, tmp_path / "b") == 0
    # Manifests are equal too: kind, identities of source and conversion, what was left out and why.
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert manifest_at(tmp_path / "b" / "train").source.kind == kind
    assert convert_here(local / "tree", tmp_path / "c") == 0
    assert shards(tmp_path / "b") == shards(tmp_path / "c") != {}
    asked = images_asked_for(proxy)
    assert len(asked) == len(set(asked)) == (20 if kind in ("tree", "kaggle") else 0)
    assert {method for method, _ in asked} <= {"GET"}


def test_from_bucket_to_bucket_by_processes(
    local: Path, tmp_path: Path, upload: Callable[[Path, str], str], in_process: None
) -> None:
    outcome = run("convert", upload(local / "tree", "raw"), f"s3://{BUCKET}/mds", "--workers", 2)
    assert outcome.status == 0, outcome.err
    assert convert_here(local / "tree", tmp_path, shard_size="64MiB") == 0
    made = S3Storage.at(f"s3://{BUCKET}/mds")
    assert {entry.name: made.read(entry.name) for entry in made.walk()} == files(tmp_path)


def test_a_tree_is_listed_by_pages_and_no_image_is_asked_for(
    tmp_path: Path, upload: Callable[[Path, str], str], proxy: Proxy
) -> None:
    counts = {"n90000001": 2 * PAGE + 1, "n90000002": 1, "n90000003": PAGE}
    for wnid, count in counts.items():
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "train" / wnid / f"{wnid}_{number}.JPEG").write_bytes(b"x" * number)
    address = upload(tmp_path, "raw")
    before = len(proxy.seen)
    source = open_source(address)
    assert source.samples("train") == open_source(str(tmp_path)).samples("train")
    asked = [one for one in seen(proxy, before) if one.method == "GET"]
    assert all("list-type=2" in one.path and "delimiter=" in one.path for one in asked)
    # Three pages of the first class, and one of each other one.
    assert len([one for one in asked if "train%2Fn9" in one.path]) == 5


def test_what_is_no_image_of_a_tree_is_not_taken_for_one(proxy: Proxy, server: int) -> None:
    client = direct(server)
    taken = ["n01/a.JPEG", "n01/caf\u00e9 +%.JPEG", "n01/e/f.JPEG", "n02/b.png"]
    others = [
        "n01/",
        "n01/.hidden.JPEG",
        "n01/c.txt",
        "n01/d.JPEG/",
        "n01//g.JPEG",
        ".n03/a.JPEG",
        "x.JPEG",
    ]
    for name in taken + others:
        client.put_object(Bucket=BUCKET, Key=f"raw/train/{name}", Body=b"x")
    source = open_source(f"s3://{BUCKET}/raw/")
    assert source.classes == ("n01", "n02")
    assert [sample.key for sample in source.samples("train")] == sorted(taken)
    client.put_object(Bucket=BUCKET, Key="raw/train/n02/a\rb.JPEG", Body=b"x")
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/raw/train/n02 has a name with a line break in it"):
        open_source(f"s3://{BUCKET}/raw/")


def test_archives_are_listed_by_few_requests(
    tmp_path: Path, upload: Callable[[Path, str], str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_bytes = 1 << 20
    monkeypatch.setattr("imagenet_mds_convert.sources.tars._REMOTE_AHEAD_BYTES", ahead_bytes)
    put_archives(make_images(tmp_path / "tree"), tmp_path / "archives")
    images = {wnid: [member(f"{wnid}_{n}.JPEG", bytes(40_000)) for n in range(60)] for wnid in WNIDS}
    tars = [member(f"{wnid}.tar", tar_of(members)) for wnid, members in images.items()]
    (tmp_path / "archives" / TRAIN_BASENAME).write_bytes(tar_of(tars))
    source = open_source(upload(tmp_path / "archives", "raw"))
    before = len(proxy.seen)
    found = {split: source.samples(split) for split in SPLITS}
    asked = [one for one in seen(proxy, before) if one.method == "GET"]
    of_train = [one for one in asked if TRAIN_BASENAME in one.path]
    # A header per class and the end; then 2.4 MB per class in pieces, where an image across two pieces is read again.
    assert len(of_train) == len(WNIDS) + 1 + 3 * len(WNIDS)
    assert len([one for one in asked if VAL_BASENAME in one.path]) == 1
    assert found == {split: open_source(str(tmp_path / "archives")).samples(split) for split in found}
    assert len(found["train"]) == 4 * 60


@pytest.mark.parametrize("put", [put_class_tars, put_webdataset], ids=["class tars", "webdataset"])
def test_it_is_read_from_s3_too(
    tmp_path: Path, put: Callable[[Path, Path], Path], upload: Callable[[Path, str], str]
) -> None:
    root = put(make_images(tmp_path / "tree"), tmp_path / "root")
    here, there = open_source(str(root)), open_source(upload(root, "raw"))
    for split in here.splits:
        assert here.samples(split) == there.samples(split)
        for sample in there.samples(split):
            assert there.read(sample.where) == here.read(sample.where)


def test_images_are_read_several_at_once(
    local: Path, tmp_path: Path, upload: Callable[[Path, str], str], proxy: Proxy
) -> None:
    source = open_source(upload(local / "tree", "raw"))
    task = SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), Policy()).task(0)
    expected = build_shard(task)
    proxy.delay_seconds = 0.2
    begun = time.perf_counter()
    assert build_shard(task) == expected
    # Fourteen sequential reads would take 2.8 s.
    assert time.perf_counter() - begun < 1.4


def test_a_key_that_vanishes_after_the_listing_is_left_out_with_its_reason(
    local: Path, tmp_path: Path, upload: Callable[[Path, str], str], server: int, in_process: None
) -> None:
    source = open_source(upload(local / "tree", "raw"))
    conversion = SplitConversion.plan_for(source, "val", LocalStorage(tmp_path), Policy())
    gone = conversion.samples[2].key
    direct(server).delete_object(Bucket=BUCKET, Key=f"raw/val/{gone}")
    manifest = convert_split(conversion, workers=1)
    assert [(entry.key, entry.reason) for entry in manifest.left_out] == [(gone, "cannot be read (No such object)")]
    assert manifest.samples == len(conversion.samples) - 1


def test_a_read_that_fails_otherwise_leaves_nothing_out(
    local: Path, tmp_path: Path, upload: Callable[[Path, str], str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BODY_ATTEMPTS", 2)
    source = open_source(upload(local / "tree", "raw"))
    conversion = SplitConversion.plan_for(source, "val", LocalStorage(tmp_path), Policy())
    bad = conversion.samples[2].key
    proxy.choose = lambda request: "reset" if request.path.endswith(bad) else None
    with pytest.raises(WorldError, match=rf"the source cannot be read: {bad}: s3://.*{bad} broke off 2 times"):
        build_shard(conversion.task(0))
    proxy.choose = lambda request: "expired" if request.path.endswith(bad) else None
    with pytest.raises(UserError, match=rf"{bad}: the credentials have expired: renew them"):
        build_shard(conversion.task(0))


def test_a_listing_that_is_not_answered_is_said(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "READ_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(retry, "REQUEST_RETRIES", 2)
    reset_client()
    proxy.choose = lambda request: "stall"
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/raw cannot be listed: Read timeout"):
        open_source(f"s3://{BUCKET}/raw")


def test_what_is_not_there_is_reported_as_on_a_disk(proxy: Proxy, server: int, tmp_path: Path) -> None:
    """An empty folder in S3 is an object, such as consoles create."""
    (tmp_path / "raw").mkdir()
    direct(server).put_object(Bucket=BUCKET, Key="raw/", Body=b"")
    direct(server).put_object(Bucket=BUCKET, Key="file.tar", Body=b"x")
    (tmp_path / "file.tar").write_bytes(b"x")
    layouts: list[tuple[str, Literal["auto", SourceKind]]] = [
        ("none", "auto"),
        ("none", "kaggle"),
        ("file.tar", "auto"),
        ("raw", "auto"),
        ("raw", "tree"),
        ("raw", "kaggle"),
        ("raw", "archives"),
        ("raw", "parquet"),
        ("raw", "cifar10"),
    ]
    for where, source_format in layouts:
        said = []
        for root in (str(tmp_path), f"s3://{BUCKET}"):
            with pytest.raises(UserError) as caught:
                open_source(f"{root}/{where}", source_format)
            said.append(str(caught.value).replace(root, "ROOT"))
        assert said[0] == said[1]
        assert f"ROOT/{where}" in said[0]


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["CLS-LOC/train/n01/a.JPEG"], ""),
        (["train/n01/a.JPEG", "train/n02/a.JPEG"], "train"),
        (["n01/a.JPEG", "n02/a.JPEG"], ""),
        (["train/a.JPEG"], ""),
        (["train/n01/a.JPEG"], ""),
        (["train/n01/a.JPEG", "train/n02/a.JPEG", "val/n03/a.JPEG"], ""),
        (["ILSVRC/Data/CLS-LOC/train/n01440764/a.JPEG", "ILSVRC/Data/CLS-LOC/val/a.JPEG", "LOC_val_solution.csv"], ""),
        (["ILSVRC/Data/CLS-LOC/train/n01440764/a.JPEG", "ILSVRC/Data/CLS-LOC/val/a.JPEG"], "ILSVRC/Data"),
    ],
)
def test_a_layout_that_cannot_be_used_is_answered_as_on_a_disk(
    tmp_path: Path, upload: Callable[[Path, str], str], names: list[str], where: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    said = []
    for root in (str(tmp_path), upload(tmp_path, "raw")):
        with pytest.raises(UserError) as caught:
            open_source(f"{root}/{where}".rstrip("/"))
        said.append(str(caught.value).replace(root, "ROOT"))
    assert said[0] == said[1]


def test_a_dataset_inside_its_source_is_refused_there_too(local: Path, upload: Callable[[Path, str], str]) -> None:
    address = upload(local / "tree", "raw")
    for inside in (address, f"{address}/mds"):
        with pytest.raises(UserError, match=f"{inside} lies inside the source {address}/: give a destination outside"):
            convert_here(f"{address}/", inside)
    with pytest.raises(UserError, match="train has 14 images; give that or less"):
        convert_here(f"{address}/", f"{address}2", subset="1000000")


def test_a_listing_on_a_disk_and_in_s3_say_the_same(tmp_path: Path, upload: Callable[[Path, str], str]) -> None:
    for name in ("a", "b/c", "b/d/e", "f.x/g"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    here, there = LocalStorage(tmp_path), S3Storage.at(upload(tmp_path, "raw"))
    for one, other in ((here, there), (here.child("b"), there.child("b"))):
        assert sorted(one.listing().folders) == sorted(other.listing().folders)
        assert {(e.name, e.size_bytes) for e in one.listing().files} == {
            (e.name, e.size_bytes) for e in other.listing().files
        }
    for storage in (here, there):
        with pytest.raises(FileNotFoundError):
            storage.child("none").listing()
