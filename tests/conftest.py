"""What many tests share, made once: a drawn tree of images, the dataset converted from it, an S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenet_mds.demo.draw import draw_tree
from tests.command import done
from tests.s3_server import BUCKET, Proxy, direct, proxy_before, s3_server

TRAIN_PER_CLASS, VAL_PER_CLASS = 16, 5

_LONGEST = ("tests/train/test_resume.py", "tests/test_demo.py", "tests/convert/test_s3.py", "tests/train/test_order.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: modules run two at a time, and one that came last would run alone."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's image set, small: 10 classes, 160 training files of which 2 are broken, 50 validation files."""
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
    """`tree` converted into shards of 64 KiB. Tests read it; one that changes a dataset copies it first."""
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
    """A proxy before it, this process led there too, and an empty bucket behind it."""
    import boto3  # boto3 takes a quarter of a second, for those who need it

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
