"""Fixtures that many tests share, made once: drawn images, datasets converted from them, an S3 server.

The suite has two tiers. `make quick` leaves out what is slow: everything in `end_to_end/`, which starts whole commands,
and every module with `pytestmark = pytest.mark.slow`. Slow modules are not even imported then, because importing
composer is what makes some of them slow.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, here and in commands: two modules run at a time, and threads that wait for work burn a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A notice for the machine of the tests is none for the runs in them.
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

from imagenet_mds.demo.draw import draw_tree
from tests.support.command import done
from tests.support.damage import cut, damage, flipped, zeroed
from tests.support.drawing import make_tree
from tests.support.properties import load_profile
from tests.support.running import run_tasks_here
from tests.support.s3_server import BUCKET, Proxy, direct, proxy_before, s3_server

TRAIN_PER_CLASS, VAL_PER_CLASS = 16, 5

_END_TO_END = Path(__file__).resolve().parent / "end_to_end"
_SLOW_MARK = "pytestmark = pytest.mark.slow"

load_profile()


def _is_slow(path: Path) -> bool:
    return _END_TO_END in path.parents or _SLOW_MARK in path.read_text(encoding="utf-8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave slow modules out of `-m "not slow"` without importing them."""
    if config.option.markexpr == "not slow" and collection_path.name.startswith("test_"):
        return True if collection_path.suffix == ".py" and _is_slow(collection_path) else None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `end_to_end`, and run slow modules first: two modules run at a time, and a slow one that came
    last would run alone. The slowest of all is the first."""
    for item in items:
        if _END_TO_END in item.path.parents:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name != "test_resume.py"))


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder for all tests of a module, removed after them: the runs of every module together take 20 GB."""
    folder = tmp_path_factory.mktemp("module")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version of the demo's images: 10 classes, 160 training files of which 2 are broken, 50 for validation."""
    root = tmp_path_factory.mktemp("tree")
    draw_tree(root, train_per_class=TRAIN_PER_CLASS, val_per_class=VAL_PER_CLASS)
    return root


@pytest.fixture(scope="session")
def few_classes(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the first three classes of `tree`."""
    root = tmp_path_factory.mktemp("few")
    for split in ("train", "val"):
        (root / "tree" / split).mkdir(parents=True)
        for folder in sorted((tree / split).iterdir())[:3]:
            (root / "tree" / split / folder.name).symlink_to(folder)
    done("convert", root / "tree", root / "mds", "--workers", 1)
    return root / "mds"


@pytest.fixture(scope="session")
def dataset(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tree` converted into shards of 64 KiB. Read-only: a test that changes a dataset copies it first."""
    destination = tmp_path_factory.mktemp("dataset") / "mds"
    done("convert", tree, destination, "--shard-size", "64KiB", "--workers", 2)
    return destination


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of an S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the server, which this process uses too, with an empty bucket behind it."""
    import boto3  # takes a quarter of a second, which tests without S3 need not pay

    from imagenet_mds.storage.s3_client import reset_client

    with proxy_before(server) as proxy:
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        reset_client()
        client = direct(server)
        client.create_bucket(Bucket=BUCKET)
        yield proxy
        everything = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{server}").Bucket(BUCKET)
        everything.objects.all().delete()
        for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        client.delete_bucket(Bucket=BUCKET)
    reset_client()


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 8 training and 2 validation images. Read-only."""
    return make_tree(tmp_path_factory.mktemp("small") / "tree", n00000001=5, n00000002=3)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run shard tasks in the test's own process."""
    monkeypatch.setattr("imagenet_mds_convert.run.run_tasks", run_tasks_here)


@pytest.fixture(scope="module")
def blocks() -> Iterator[None]:
    """Allow streaming datasets in this process, with shared memory blocks and lock files of its own."""
    from imagenet_mds_train.data.stream import own_resources

    with own_resources():
        yield


@pytest.fixture(scope="module")
def damaged(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with three damaged training samples."""
    root = tmp_path_factory.mktemp("damaged") / "mds"
    return damage(dataset, root, "train", _5=zeroed, _6=cut, _4=flipped)
