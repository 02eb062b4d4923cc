"""Converting to S3, verifying and repairing there: a real server over HTTP, and network faults."""

import random
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage import retry
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds.storage.s3_client import reset_client
from tests.command import run, start
from tests.convert.drawing import files, make_tree
from tests.convert.running import convert_here
from tests.s3_server import BUCKET, Proxy, Request, direct

OPTIONS = ("--shard-size", "64KiB", "--workers", 2)


def stored(prefix: str) -> dict[str, bytes]:
    """Every object below a prefix, by name."""
    storage = S3Storage.at(f"s3://{BUCKET}/{prefix}")
    return {entry.name: storage.read(entry.name) for entry in storage.walk()}


def test_a_dataset_in_s3_has_the_bytes_of_one_on_a_disk(proxy: Proxy, tree: Path, dataset: Path) -> None:
    outcome = run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS)
    assert outcome.status == 0, outcome.err
    assert re.search(r"of the workers' time (\w+ \d+%, )*upload \d+%", outcome.out)
    assert stored("mds") == files(dataset)
    again = run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS)
    assert "is complete already" in again.out
    for command in ("verify", "inspect"):
        outcome = run(command, f"s3://{BUCKET}/mds")
        assert outcome.status == 0, outcome.err


def test_faults_on_the_way_lose_and_double_nothing(proxy: Proxy, tree: Path, dataset: Path) -> None:
    dice = random.Random(0)

    def choose(request: Request) -> str | None:
        if dice.random() > 0.15:
            return None
        # One stall is enough, because each costs five seconds.
        kinds = ["slow down", "reset"] + ["stall"] * ("stall" not in proxy.faults())
        return dice.choice(kinds)

    proxy.choose = choose
    outcome = run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS)
    assert outcome.status == 0, outcome.err
    assert {"slow down", "reset", "stall"} <= set(proxy.faults())
    proxy.choose = lambda request: None
    assert stored("mds") == files(dataset)


def test_killed_at_ten_random_moments_and_continued(proxy: Proxy, tree: Path, dataset: Path, tmp_path: Path) -> None:
    dice = random.Random(0)
    for workers in (2, 1, 4, 2, 1, 4, 2, 1, 4, 2):
        options = ("--shard-size", "64KiB", "--workers", workers)
        process = start("convert", tree, f"s3://{BUCKET}/mds", *options, log=tmp_path / "log", **proxy.variables)
        before, wanted = len(proxy.seen), dice.randint(1, 40)
        while len(proxy.seen) < before + wanted and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    outcome = run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS)
    assert outcome.status == 0, outcome.err
    assert stored("mds") == files(dataset)


def test_killed_in_the_middle_of_an_upload_in_parts_it_leaves_none_unfinished(
    proxy: Proxy, server: int, tmp_path: Path, in_process: None
) -> None:
    tree = make_tree(tmp_path / "tree", n00000001=5, n00000002=5)
    for path in (tree / "train").glob("*/*"):
        # Bytes behind the end of an image are kept: a shard of 40 MiB, in three parts.
        path.write_bytes(path.read_bytes() + bytes(4 << 20))
    convert_here(tree, tmp_path / "mds", shard_size="64MiB")
    client = direct(server)

    def unfinished() -> list[dict[str, str]]:
        found: list[dict[str, str]] = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return found

    def parts_there() -> int:
        uploads = unfinished()
        return sum(
            len(client.list_parts(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]).get("Parts", []))
            for upload in uploads
        )

    # The first part is uploaded; the others take seconds.
    proxy.choose = lambda request: "stall" if re.search(r"partNumber=[23]\b", request.path) else None
    command = ("convert", tree, f"s3://{BUCKET}/mds", "--shard-size", "64MiB", "--workers", 1)
    process = start(*command, log=tmp_path / "log", **proxy.variables)
    deadline = time.monotonic() + 60
    while not parts_there():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert [upload["Key"] for upload in unfinished()] == ["mds/train/shard.00000.mds"]
    proxy.choose = lambda request: None
    outcome = run(*command)
    assert outcome.status == 0, outcome.err
    assert stored("mds") == files(tmp_path / "mds")
    assert unfinished() == []


def test_an_expired_token_is_reported_in_one_line(proxy: Proxy, tree: Path) -> None:
    proxy.choose = lambda request: "expired" if request.method == "PUT" and ".mds" in request.path else None
    outcome = run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS)
    assert outcome.status == 2
    assert "the credentials have expired: renew them and run the same command again (ExpiredToken)" in outcome.err
    assert "Traceback" not in outcome.err
    proxy.choose = lambda request: None
    assert run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS).status == 0


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://nowhere/mds", "there is no such bucket: create it, or check the name (NoSuchBucket)"),
        ("s3:///mds", "s3:///mds: pass s3://BUCKET/PREFIX"),
        (f"s3://{BUCKET}/none", "there is no dataset at s3://imagenet/none"),
    ],
)
def test_addresses_that_lead_nowhere_are_reported(proxy: Proxy, address: str, words: str) -> None:
    outcome = run("inspect", address)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_another_conversion_in_the_bucket_is_refused(proxy: Proxy, tree: Path) -> None:
    assert run("convert", tree, f"s3://{BUCKET}/mds", "--split", "val", *OPTIONS).status == 0
    before = stored("mds")
    refused = run("convert", tree, f"s3://{BUCKET}/mds", "--split", "val", *OPTIONS, "--seed", 1)
    assert refused.status == 2
    assert "another seed (0, now 1)" in refused.err
    assert stored("mds") == before
    other = ("--split", "val", *OPTIONS, "--seed", 1, "--overwrite")
    assert run("convert", tree, f"s3://{BUCKET}/mds", *other).status == 0
    assert stored("mds") != before


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


def test_a_broken_object_is_found_and_repaired(proxy: Proxy, tree: Path, dataset: Path) -> None:
    assert run("convert", tree, f"s3://{BUCKET}/mds", *OPTIONS).status == 0
    storage = S3Storage.at(f"s3://{BUCKET}/mds/train")
    data = bytearray(storage.read("shard.00002.mds"))
    data[len(data) // 2] ^= 1
    storage.write("shard.00002.mds", bytes(data))
    storage.delete("shard.00004.mds")
    found = run("verify", f"s3://{BUCKET}/mds")
    assert found.status == 1
    assert f"broken: s3://{BUCKET}/mds/train/shard.00002.mds: its content's xxh64 is" in found.out
    assert f"broken: s3://{BUCKET}/mds/train/shard.00004.mds: missing" in found.out
    repaired = run("verify", f"s3://{BUCKET}/mds", "--repair", tree)
    assert repaired.status == 0, repaired.err
    assert stored("mds") == files(dataset)


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


def test_no_credentials_are_reported(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    reset_client()
    with pytest.raises(UserError, match="there are no AWS credentials: set AWS_ACCESS_KEY_ID"):
        S3Storage.at(f"s3://{BUCKET}/mds").read("object")


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
