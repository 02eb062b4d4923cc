"""Objects in S3 through the storage: parts, faults, names, create-only writes."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage import retry
from imagenet_mds.storage.s3 import S3Storage
from tests.support.running import convert_here
from tests.support.s3_server import BUCKET, Proxy, Request, direct


def stored(prefix: str) -> dict[str, bytes]:
    """Every object below a prefix, by name."""
    storage = S3Storage.at(f"s3://{BUCKET}/{prefix}")
    return {entry.name: storage.read(entry.name) for entry in storage.walk()}


@pytest.mark.usefixtures("in_process")
def test_what_may_not_be_removed_is_reported_and_not_mixed_with(proxy: Proxy, small_tree: Path) -> None:
    address = f"s3://{BUCKET}/mds"
    proxy.choose = lambda request: "kept" if "delete" in request.path else None
    # A complete dataset stays complete even if leftovers cannot be removed.
    for _ in range(2):
        assert convert_here(small_tree, address) == 0
    before = stored("mds")
    with pytest.raises(UserError, match=r"manifest\.json: access is denied: .* s3:DeleteObject .* \(AccessDenied\)"):
        convert_here(small_tree, address, seed=1, overwrite=True)
    after = stored("mds")
    assert after.pop("train/.work/clearing") == b""
    assert after == before


def test_a_large_object_goes_up_in_parts_over_a_bad_line(proxy: Proxy, server: int) -> None:
    data = random.Random(1).randbytes(40 << 20)
    faults = {"PUT": iter(["reset", "slow down"])}
    proxy.choose = lambda request: next(faults.get(request.method, iter(())), None) if request.size_bytes else None
    storage = S3Storage.at(f"s3://{BUCKET}/large")
    storage.write("object", data)
    assert proxy.faults() == ["reset", "slow down"]
    gets = iter(["reset", "reset"])
    proxy.choose = lambda request: next(gets, None) if request.method == "GET" else None
    assert storage.read("object") == data
    assert storage.read_range("object", 1000, 500) == data[1000:1500]
    assert storage.read_range("object", len(data) - 3, 500) == data[-3:]
    assert storage.read_range("object", len(data), 500) == b""
    assert storage.size_bytes("object") == len(data)
    assert direct(server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


@pytest.mark.usefixtures("in_process")
def test_unfinished_uploads_are_aborted_once_all_is_complete(proxy: Proxy, server: int, small_tree: Path) -> None:
    client = direct(server)

    def uploads() -> list[str]:
        return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]

    keys = ["mds/train/.work/shard.00000.json", "mds/train/shard.00000.mds", "other/object"]
    for key in keys:
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 100)
    seen = {}

    def choose(request: Request) -> None:
        if request.method == "PUT":
            seen[request.path.partition("?")[0]] = sorted(uploads())

    proxy.choose = choose
    assert convert_here(small_tree, f"s3://{BUCKET}/mds") == 0
    # While it runs, they may belong to another run that is still alive.
    assert seen[f"/{BUCKET}/mds/train/manifest.json"] == keys
    assert uploads() == ["other/object"]


def test_an_upload_that_another_run_has_ended_is_reported(proxy: Proxy) -> None:
    proxy.choose = lambda request: "ended" if "partNumber=2" in request.path else None
    with pytest.raises(UserError, match="mds/shard: another process finished this work"):
        S3Storage.at(f"s3://{BUCKET}/mds").write("shard", bytes(40 << 20))


def test_a_silent_line_is_given_up_after_botos_attempts(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "READ_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(retry, "REQUEST_RETRIES", 2)
    proxy.choose = lambda request: "stall"
    with pytest.raises(OSError, match="Read timeout on endpoint URL"):
        S3Storage.at(f"s3://{BUCKET}/mds").read("object")
    assert len(proxy.seen) == 1 + retry.REQUEST_RETRIES


def test_names_and_parents(proxy: Proxy) -> None:
    storage = S3Storage.at(f"s3://{BUCKET}//a/b/")
    assert (storage.location, storage.name, storage.parent.location) == (f"s3://{BUCKET}/a/b", "b", f"s3://{BUCKET}/a")
    assert storage.parent.parent.location == f"s3://{BUCKET}"
    assert storage.list_names() == []
    for name in ("x", "c/y", "c/d/z"):
        storage.write(name, name.encode())
    assert storage.list_names() == ["c", "x"]
    assert sorted(entry.name for entry in storage.walk()) == ["c/d/z", "c/y", "x"]
    assert storage.parent.parent.child("a").list_names() == ["b"]
    storage.delete("c")
    assert storage.list_names() == ["x"]
    assert storage.size_bytes("c/y") is None
    with pytest.raises(FileNotFoundError):
        storage.read("c/y")


def test_an_object_is_created_once(proxy: Proxy) -> None:
    storage = S3Storage.at(f"s3://{BUCKET}/lease")
    storage.create("owner", b"first")
    with pytest.raises(FileExistsError, match="The object exists"):
        storage.create("owner", b"second")
    assert storage.read("owner") == b"first"
    storage.delete("owner")
    storage.create("owner", memoryview(b"third"))
    assert storage.read("owner") == b"third"


def test_one_of_many_writers_creates_an_object(proxy: Proxy) -> None:
    storage = S3Storage.at(f"s3://{BUCKET}/lease")

    def create(number: int) -> int | None:
        try:
            storage.create("owner", b"%d" % number)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert storage.read("owner") == b"%d" % winners[0]


def test_an_object_whose_answer_was_lost_counts_as_created(proxy: Proxy) -> None:
    faults = iter(["lost"])
    proxy.choose = lambda request: next(faults, None) if request.method == "PUT" else None
    storage = S3Storage.at(f"s3://{BUCKET}/lease")
    storage.create("owner", b"first")
    assert [request.method for request, _ in proxy.seen] == ["PUT", "PUT", "HEAD"]
    assert storage.read("owner") == b"first"


def test_a_write_in_flight_is_a_conflict_only_if_it_succeeds(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "CREATE_ATTEMPTS", 3)
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.01)
    storage = S3Storage.at(f"s3://{BUCKET}/lease")
    faults = iter(["conflict"])
    proxy.choose = lambda request: next(faults, None) if request.method == "PUT" else None
    storage.create("owner", b"first")
    proxy.choose = lambda request: "conflict" if request.method == "PUT" else None
    with pytest.raises(FileExistsError):
        storage.create("owner", b"second")
    assert storage.read("owner") == b"first"
    with pytest.raises(OSError, match="Another write was in flight 3 times"):
        storage.create("other", b"first")
    assert storage.size_bytes("other") is None
