"""Converting to S3, verifying and repairing there: a real server over HTTP, and network faults."""

import random
import re
import signal
import time
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage.s3 import S3Storage
from imagenet_mds.storage.s3_client import reset_client
from tests.support.command import run, start, wait_until
from tests.support.drawing import files, make_tree
from tests.support.running import convert_here
from tests.support.s3_server import BUCKET, Proxy, Request, direct

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
    wait_until(parts_there, "the first part", process)
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


def test_no_credentials_are_reported(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    reset_client()
    with pytest.raises(UserError, match="there are no AWS credentials: set AWS_ACCESS_KEY_ID"):
        S3Storage.at(f"s3://{BUCKET}/mds").read("object")
