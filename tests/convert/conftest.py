"""Settings of the tests of the converter, a small tree, and an S3 server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.convert.drawing import make_tree
from tests.convert.running import run_tasks_here
from tests.core.properties import load_profile
from tests.s3_server import BUCKET, Proxy, direct, proxy_before, s3_server

load_profile()


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 8 images to train on, 2 to validate. Tests read it."""
    return make_tree(tmp_path_factory.mktemp("small") / "tree", n00000001=5, n00000002=3)


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of an S3 server."""
    with s3_server() as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before it, this process led there too, and an empty bucket behind it."""
    import boto3  # boto3 takes a quarter of a second, for those who need it

    from imagenet_mds import s3

    with proxy_before(server) as proxy:
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        s3._client.cache_clear()
        client = direct(server)
        client.create_bucket(Bucket=BUCKET)
        yield proxy
        everything = boto3.resource("s3", endpoint_url=f"http://127.0.0.1:{server}").Bucket(BUCKET)
        everything.objects.all().delete()
        for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        client.delete_bucket(Bucket=BUCKET)
    s3._client.cache_clear()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard tasks are done in the process of the test."""
    monkeypatch.setattr("imagenet_mds_convert.convert.run_tasks", run_tasks_here)
