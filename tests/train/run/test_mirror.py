"""A run in S3 and its working copy, against a real S3 server with faults before it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import open_storage
from imagenet_mds_train.run.find import find_checkpoint, find_weights
from imagenet_mds_train.run.lease import Lease, LostLease
from imagenet_mds_train.run.mirror import RunMirror
from imagenet_mds_train.run.permissions import check_permissions
from imagenet_mds_train.run.uploads import Uploads
from tests.support.command import HANG_SECONDS
from tests.support.s3_server import BUCKET, Proxy, Request, direct

LOCATION = f"s3://{BUCKET}/runs/one"
IDENTITY: dict[str, Any] = {"dataset": {"train": "aaaa"}}


@pytest.fixture
def machines(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Machines":
    """Machines that share nothing but the bucket."""
    return Machines(tmp_path, monkeypatch)


class Machines:
    """Each has a cache of its own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch

    def on(self, name: str) -> RunMirror:
        """The run as a machine sees it."""
        self.monkeypatch.setenv("XDG_CACHE_HOME", str(self.root / name))
        return RunMirror.at(LOCATION)

    def taken_over(self, name: str) -> RunMirror:
        """The run, claimed by a machine that has its checkpoint."""
        mirror = self.on(name)
        mirror.folder.path.mkdir(parents=True)
        mirror = mirror.claimed()
        mirror.pull(lambda warning: None)
        return mirror

    def begun(self, name: str) -> RunMirror:
        """The run, started on a machine."""
        mirror = self.on(name)
        mirror.folder.path.mkdir(parents=True, exist_ok=True)
        mirror.pull(lambda warning: None)
        mirror = mirror.claimed()
        mirror.folder.create({}, IDENTITY)
        mirror.prepare(None)
        return mirror


def save(mirror: RunMirror, batch: int, epoch: int = 0) -> None:
    """Save a checkpoint as the saver does: here, then in S3."""
    folder = mirror.folder
    folder.staging.mkdir(parents=True, exist_ok=True)
    file = folder.staging / f"ep{epoch}-ba{batch}.pt"
    file.write_bytes(f"weights of {batch}".encode() * 1000)
    record = folder.checkpoints.publish(file, epoch=epoch, batch=batch, identity=IDENTITY, keep_last=1)
    Uploads(mirror, patience_seconds=900).publish(record)


def keys(server: int) -> list[str]:
    """What lies under the run."""
    found = direct(server).list_objects_v2(Bucket=BUCKET, Prefix="runs/one/", MaxKeys=1000).get("Contents", [])
    return [item["Key"].removeprefix("runs/one/") for item in found]


def pulled(mirror: RunMirror) -> list[str]:
    """Pull, and return what is said of broken checkpoints."""
    warnings: list[str] = []
    mirror.pull(warnings.append)
    return warnings


def test_a_bare_machine_has_all_that_it_needs(machines: Machines) -> None:
    first = machines.begun("a")
    first.folder.log.write_text('{"event": "start"}\n')
    save(first, 3)
    first.push_files()
    second = machines.on("b")
    assert not second.folder.path.exists()
    assert pulled(second) == []
    record, warnings = second.folder.newest_checkpoint()
    assert record is not None
    assert (record.batch, warnings) == (3, [])
    assert second.folder.log.read_text() == '{"event": "start"}\n'
    assert second.folder.read_identity() == IDENTITY
    assert find_checkpoint(LOCATION).read_bytes() == b"weights of 3" * 1000
    assert find_checkpoint(f"{LOCATION}/checkpoints/ep0-ba3.pt").read_bytes() == b"weights of 3" * 1000
    with pytest.raises(UserError, match=r"has no checkpoint ep0-ba4\.pt"):
        find_checkpoint(f"{LOCATION}/checkpoints/ep0-ba4.pt")
    with pytest.raises(UserError, match="no checkpoint yet, or it is no run"):
        find_checkpoint(f"s3://{BUCKET}/runs/other")


def test_a_start_killed_after_a_checkpoint_leaves_the_log_up_to_it(machines: Machines) -> None:
    first = machines.begun("a")
    first.folder.log.write_text('{"event": "batch", "batch": 3}\n')
    save(first, 3)
    # It is killed here, before it pushes its files.
    second = machines.on("b")
    pulled(second)
    assert second.folder.log.read_text() == first.folder.log.read_text()


def test_a_checkpoint_that_was_not_recorded_is_removed(machines: Machines, server: int) -> None:
    first = machines.begun("a")
    save(first, 3)
    client = direct(server)
    client.put_object(Bucket=BUCKET, Key="runs/one/checkpoints/ep0-ba5.pt", Body=b"its start was killed")
    client.put_object(Bucket=BUCKET, Key="runs/one/checkpoints/notes.pt", Body=b"not a checkpoint")
    second = machines.on("b")
    pulled(second)
    second = second.claimed()
    second.prepare(second.folder.checkpoints.newest()[0])
    names = [key.removeprefix("checkpoints/") for key in keys(server) if key.startswith("checkpoints/")]
    assert names == ["ep0-ba3.json", "ep0-ba3.pt", "notes.pt"]


def test_a_working_copy_that_is_further_stays(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = machines.begun("a")
    save(mirror, 3)
    mirror.folder.log.write_text("1\n")
    mirror.push_files()
    mirror.folder.log.write_text("1\n2\n")
    file = mirror.folder.staging / "ep0-ba5.pt"
    file.write_bytes(b"not uploaded yet")
    mirror.folder.checkpoints.publish(file, epoch=0, batch=5, identity=IDENTITY, keep_last=1)
    mirror.pull(lambda warning: None)
    assert mirror.folder.checkpoints.names() == ["ep0-ba5.pt"]
    assert mirror.folder.log.read_text() == "1\n2\n"


def test_a_working_copy_of_before_another_machine_went_on_gives_way(machines: Machines) -> None:
    first = machines.begun("a")
    first.folder.log.write_text("1\n")
    save(first, 3)
    first.folder.log.write_text("1\n2\n")
    published(first, 9)  # and not uploaded
    second = machines.taken_over("b")
    second.folder.log.write_text("1\n3\n")
    save(second, 5)
    first = machines.on("a")
    assert pulled(first) == []
    assert first.folder.checkpoints.names() == ["ep0-ba5.pt"]
    assert first.folder.log.read_text() == "1\n3\n"


def test_checkpoints_without_the_record_of_their_run_are_refused(machines: Machines, server: int) -> None:
    save(machines.begun("a"), 3)
    direct(server).delete_object(Bucket=BUCKET, Key="runs/one/run.json")
    with pytest.raises(WorldError, match=r"has ep0-ba3\.pt without run\.json"):
        pulled(machines.on("b"))


@pytest.mark.parametrize("fault", ["flipped", "cut"])
def test_damage_on_the_way_is_not_a_damaged_checkpoint(machines: Machines, proxy: Proxy, fault: str) -> None:
    save(machines.begun("a"), 3)
    hit: list[Request] = []

    def choose(request: Request) -> str | None:
        if request.method == "GET" and "list-type" not in request.path and len(hit) < 4:
            hit.append(request)
            return fault
        return None

    proxy.choose = choose
    second = machines.on("b")
    assert pulled(second) == []
    assert len(hit) == 4
    assert second.folder.checkpoints.names() == ["ep0-ba3.pt"]


def test_another_run_of_the_same_name_replaces_the_working_copy(machines: Machines, server: int) -> None:
    old = machines.begun("a")
    save(old, 7)
    for key in keys(server):
        direct(server).delete_object(Bucket=BUCKET, Key=f"runs/one/{key}")
    save(machines.begun("b"), 2)
    again = machines.on("a")
    assert pulled(again) == []
    assert again.folder.checkpoints.names() == ["ep0-ba2.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "record"])
def test_a_damaged_checkpoint_is_passed_over_aloud(machines: Machines, server: int, damage: str) -> None:
    first = machines.begun("a")
    save(first, 3)
    save(first, 5)
    client, key = direct(server), "runs/one/checkpoints/ep0-ba5.pt"
    data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    if damage == "cut":
        client.put_object(Bucket=BUCKET, Key=key, Body=data[:-1])
    elif damage == "flipped":
        client.put_object(Bucket=BUCKET, Key=key, Body=data[:100] + b"?" + data[101:])
    elif damage == "gone":
        client.delete_object(Bucket=BUCKET, Key=key)
    else:
        client.put_object(Bucket=BUCKET, Key=key.replace(".pt", ".json"), Body=b"{")
    second = machines.on("b")
    (warning,) = pulled(second)
    assert "ep0-ba5" in warning
    assert second.folder.checkpoints.names() == ["ep0-ba3.pt"]
    client.delete_object(Bucket=BUCKET, Key="runs/one/checkpoints/ep0-ba3.pt")
    with pytest.raises(WorldError, match=r"saved checkpoints and none can be used \(.*ep0-ba3"):
        pulled(machines.on("c"))


def test_the_last_three_and_one_each_ten_epochs_and_the_best_stay(machines: Machines, server: int) -> None:
    mirror = machines.begun("a")
    (mirror.folder.path / "best.json").write_text(json.dumps({"batch": 15, "epoch": 3, "top1": 0.5}))
    for epoch in range(1, 24):
        save(mirror, 5 * epoch, epoch)
        save(mirror, 5 * epoch + 2, epoch)
    stay = ["ep10-ba50", "ep20-ba100", "ep22-ba112", "ep23-ba115", "ep23-ba117", "ep3-ba15"]
    found = sorted(key.removeprefix("checkpoints/") for key in keys(server) if key.startswith("checkpoints/"))
    assert found == sorted(f"{name}.{end}" for name in stay for end in ("json", "pt"))
    assert mirror.folder.checkpoints.names() == ["ep23-ba117.pt"]


def test_a_run_that_was_refused_gives_its_name_back(machines: Machines, server: int) -> None:
    mirror = machines.begun("a")
    assert "run.json" in keys(server)
    mirror.forget()
    assert keys(server) == []
    assert pulled(machines.on("b")) == []
    assert not machines.on("b").folder.path.exists()


def test_of_two_machines_the_later_one_writes(machines: Machines, server: int) -> None:
    first = machines.begun("a")
    save(first, 3)
    second = machines.taken_over("b")
    second.prepare(second.folder.newest_checkpoint()[0])
    before = keys(server)
    writes: tuple[Callable[[], None], ...] = (lambda: save(first, 5), first.push_files)
    for write in writes:
        with pytest.raises(LostLease, match=r"was taken over by \S+ at \d\d:\d\d:\d\d UTC, process \d+") as failed:
            write()
        assert failed.value.exit_status == 2
    assert keys(server) == before
    save(second, 5)
    assert "checkpoints/ep0-ba5.json" in keys(server)


def test_what_a_late_start_left_does_not_stop_the_one_that_has_the_lease(machines: Machines) -> None:
    first = machines.begun("a")
    save(first, 3)
    second = machines.taken_over("b")
    # The first one was past its look at the lease.
    store = first.checkpoints
    file = first.folder.staging / "ep0-ba5.pt"
    file.write_bytes(b"late")
    store.publish(file, epoch=0, batch=5, identity=IDENTITY, keep_last=3)
    save(second, 5)
    assert find_checkpoint(LOCATION).read_bytes() == b"weights of 5" * 1000


def test_claims_at_once_get_numbers_of_their_own(proxy: Proxy) -> None:
    storage = open_storage(LOCATION).child("lease")
    leases = [Lease.claim(storage) for _ in range(5)]
    assert [lease.generation for lease in leases] == [1, 2, 3, 4, 5]
    leases[-1].refuse_lost()
    for lease in leases[:-1]:
        with pytest.raises(LostLease):
            lease.refuse_lost()
    assert storage.list_names() == ["00000004.json", "00000005.json"]


def test_uploads_are_tried_again_while_s3_refuses(
    machines: Machines, proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    mirror = machines.begun("a")
    record = published(mirror, 3)
    refused: list[Request] = []

    def choose(request: Request) -> str | None:
        if request.method == "PUT" and "checkpoints" in request.path and len(refused) < 3:
            refused.append(request)
            return "expired"
        return None

    proxy.choose = choose
    assert Uploads(mirror, patience_seconds=900, first_pause_seconds=0.01).upload(record, nothing_newer)
    assert len(refused) == 3
    assert "the upload is tried again" in capfd.readouterr().err
    assert find_checkpoint(LOCATION).read_bytes() == b"weights of 3" * 1000


def test_past_its_patience_it_says_where_the_checkpoint_is(machines: Machines, proxy: Proxy) -> None:
    mirror = machines.begun("a")
    record = published(mirror, 3)
    proxy.choose = lambda request: "expired" if request.method == "PUT" else None
    uploads = Uploads(mirror, patience_seconds=0.05, first_pause_seconds=0.01)
    with pytest.raises(WorldError, match=r"has taken no checkpoint for 0\.05 s .*the last one is in"):
        uploads.upload(record, nothing_newer)
    proxy.choose = lambda request: None
    assert uploads.upload(record, nothing_newer)


def test_while_s3_refuses_only_the_newest_is_tried_and_the_patience_counts_from_the_first(
    machines: Machines, proxy: Proxy, server: int
) -> None:
    mirror = machines.begun("a")
    uploads = Uploads(mirror, patience_seconds=HANG_SECONDS, first_pause_seconds=0.01)
    proxy.choose = lambda request: "expired" if request.method == "PUT" and "checkpoints" in request.path else None
    for batch in (3, 5):
        assert not uploads.upload(published(mirror, batch), lambda seconds: True)
    gone, newer = mirror.folder.checkpoints.records()[0], published(mirror, 7)
    assert not uploads.upload(gone, lambda seconds: True)  # the working copy keeps the newest alone
    assert uploads._refused_since is not None
    uploads._refused_since -= HANG_SECONDS
    with pytest.raises(WorldError, match="has taken no checkpoint"):
        uploads.upload(newer, lambda seconds: True)
    proxy.choose = lambda request: None
    assert uploads.upload(newer, nothing_newer)
    assert [key for key in keys(server) if key.endswith(".pt")] == ["checkpoints/ep0-ba7.pt"]


def test_a_best_checkpoint_that_was_given_up_follows(machines: Machines, proxy: Proxy, server: int) -> None:
    mirror = machines.begun("a")
    save(mirror, 3)
    best = published(mirror, 5)
    (mirror.folder.path / "best.pt").write_bytes((mirror.folder.path / "checkpoints" / best.basename).read_bytes())
    (mirror.folder.path / "best.json").write_text(json.dumps({"epoch": 0, "batch": 5, "top1": 0.5}))
    mirror.push_files()
    assert "best.json" not in keys(server)  # its checkpoint is not there
    save(mirror, 7)
    assert {"best.json", "checkpoints/ep0-ba5.pt", "checkpoints/ep0-ba5.json"} <= set(keys(server))
    second = machines.on("b")
    pulled(second)
    assert second.read_best() == second.folder.read_best() == {"epoch": 0, "batch": 5, "top1": 0.5}


def test_a_checkpoint_that_is_there_already_is_not_uploaded_again(machines: Machines, proxy: Proxy) -> None:
    mirror = machines.begun("a")
    save(mirror, 3)
    (record,) = mirror.folder.checkpoints.records()
    before = len(proxy.seen)
    assert Uploads(mirror, patience_seconds=900).upload(record, nothing_newer)
    assert not [request for request, _ in proxy.seen[before:] if request.method == "PUT" and ".pt" in request.path]


def nothing_newer(seconds: float) -> bool:
    """Wait as the saver does while no newer checkpoint comes."""
    time.sleep(seconds)
    return False


def published(mirror: RunMirror, batch: int) -> Any:
    """The record of a checkpoint that is only here."""
    mirror.folder.staging.mkdir(parents=True, exist_ok=True)
    file = mirror.folder.staging / f"ep0-ba{batch}.pt"
    file.write_bytes(f"weights of {batch}".encode() * 1000)
    return mirror.folder.checkpoints.publish(file, epoch=0, batch=batch, identity=IDENTITY, keep_last=1)


@pytest.mark.parametrize(
    ("method", "query", "permission"),
    [
        ("GET", "list-type", "s3:ListBucket"),
        ("PUT", "permissions", "s3:PutObject"),
        ("GET", "permissions", "s3:GetObject"),
        ("POST", "delete", "s3:DeleteObject"),
    ],
)
def test_a_missing_permission_is_named(
    machines: Machines, proxy: Proxy, method: str, query: str, permission: str
) -> None:
    mirror = machines.on("a")
    check_permissions(mirror.storage)
    proxy.choose = lambda request: "denied" if request.method == method and query in request.path else None
    with pytest.raises(UserError, match=f"cannot be used for a run, .*{permission}"):
        check_permissions(mirror.storage)


def test_a_result_that_was_not_pushed_is_known_to_be_missing(machines: Machines) -> None:
    mirror = machines.begun("a")
    lacking = [mirror.lacks_result]
    mirror.folder.result.write_text("{}")
    lacking.append(mirror.lacks_result)
    mirror.push_files()
    lacking.append(mirror.lacks_result)
    assert lacking == [False, True, False]


def test_weights_in_s3_are_fetched_as_they_are_now(machines: Machines) -> None:
    machines.on("a")
    storage, location = open_storage(f"s3://{BUCKET}/weights"), f"s3://{BUCKET}/weights/resnet50.pth"
    for content in (b"first", b"again"):
        storage.write("resnet50.pth", content)
        file = find_weights(location)
        assert (file.name, file.read_bytes()) == ("resnet50.pth", content)
    with pytest.raises(UserError, match=f"there is no file at s3://{BUCKET}/weights/none.safetensors"):
        find_weights(f"s3://{BUCKET}/weights/none.safetensors")


def test_weights_may_be_those_of_a_run_in_s3(machines: Machines) -> None:
    save(machines.begun("a"), 3)
    machines.on("b")
    assert find_weights(LOCATION).read_bytes() == find_checkpoint(LOCATION).read_bytes()
