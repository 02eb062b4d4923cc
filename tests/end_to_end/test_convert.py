"""A conversion as people run it: processes, kills, full disks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import WorldError
from imagenet_mds.process.signals import STOPPED_MESSAGE
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.shards.pool import run_tasks
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.tree import TreeSource
from imagenet_mds_convert.verify import repair_split, verify_split
from tests.support.command import HANG_SECONDS, PROGRAM, done, environment, run, start, wait_until
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, files, folders

OPTIONS = ("--shard-size", "4KiB")


def _recorded(dest: Path, split: str = "train") -> int:
    return len(list((dest / split / ".work").glob("shard.*.json")))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tree` converted by one undisturbed process, with about one image per shard."""
    dest = tmp_path_factory.mktemp("whole") / "mds"
    done("convert", tree, dest, *OPTIONS, "--workers", 1)
    return dest


def _slow_tree(root: Path) -> Path:
    """160 images that take 15 ms each to check, so that a test that polls late still finds shards missing."""
    jpeg = encoded(Image.new("RGB", (2500, 2500)), progressive=True)
    for number in range(160):
        path = root / "train" / f"n0000000{number % 4}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        comment = b"\xff\xfe\x00\x04" + number.to_bytes(2)  # makes every file unique
        path.write_bytes(jpeg[:2] + comment + jpeg[2:])
    return root


def test_killed_at_ten_random_moments_and_continued_by_other_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    tree, whole, dest, dice = _slow_tree(tmp_path / "tree"), tmp_path / "whole", tmp_path / "mds", random.Random(0)
    done("convert", tree, whole, *OPTIONS)
    shards = len(manifest_at(whole / "train").shards)
    for workers in (2, 1, 4, 2, 1, 4, 2, 1, 4, 2):
        process = start("convert", tree, dest, *OPTIONS, "--workers", workers, log=tmp_path / "log")
        wanted = _recorded(dest) + dice.randint(1, shards // 32)
        wait_until(lambda wanted=wanted: _recorded(dest) >= wanted, f"{wanted} shards")  # type: ignore[misc] # mypy infers no type for the loop's value
        time.sleep(dice.uniform(0, 0.003))
        family = _children(process.pid)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (dest / "train" / "manifest.json").exists()
        # The workers end with the run, so none writes into the next one.
        wait_until(lambda family=family: not any(map(_running, family)), "the workers' end")  # type: ignore[misc] # mypy infers no type for the loop's value
        kept = _recorded(dest)
        assert wanted <= kept < shards
    outcome = done("convert", tree, dest, *OPTIONS, "--workers", 2)
    assert f": {shards} images in {shards} shards ({kept} of them from before), " in outcome.out
    assert files(dest) == files(whole)
    assert folders(dest) == folders(whole) == ["train"]


def test_interrupted_from_the_keyboard_it_says_so_and_continues(tree: Path, whole: Path, tmp_path: Path) -> None:
    dest, log = tmp_path / "mds", tmp_path / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagenet_mds", "convert", str(tree), str(dest), *OPTIONS, "--workers", "2"],
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_until(lambda: _recorded(dest) >= 20, "20 shards")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(HANG_SECONDS) == 75
    assert log.read_text() == STOPPED_MESSAGE
    assert not list(dest.rglob("*.tmp"))
    done("convert", tree, dest, *OPTIONS)
    assert files(dest) == files(whole)


@pytest.mark.parametrize("times", [2, 3])
def test_interrupted_again_it_ends_at_once(tmp_path: Path, times: int) -> None:
    # Large images, all in one shard, keep a worker busy for seconds.
    source, dest, log = tmp_path / "tree", tmp_path / "mds", tmp_path / "log"
    large = tmp_path / "large.JPEG"
    Image.new("RGB", (9000, 9000)).save(large)
    for wnid in ("n00000000", "n00000001"):
        (source / "train" / wnid).mkdir(parents=True)
        for number in range(25):
            (source / "train" / wnid / f"{number}.JPEG").hardlink_to(large)
    process = start("convert", source, dest, "--workers", 1, log=log)
    wait_until(lambda: any((dest / "train").glob(".shard.*.tmp")), "the shard's first bytes")
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(HANG_SECONDS) == 75
    assert not list((dest / "train").glob("shard.*")), "it does not wait for the shard"
    assert log.read_text() == STOPPED_MESSAGE


def test_a_signal_that_it_was_started_to_ignore_does_not_stop_it(tree: Path, whole: Path, tmp_path: Path) -> None:
    dest, ignoring = tmp_path / "mds", "trap '' HUP TERM; exec \"$@\""  # as nohup does with HUP
    command = [*PROGRAM, "convert", str(tree), str(dest), *OPTIONS, "--workers", "2"]
    process = subprocess.Popen(["sh", "-c", ignoring, "sh", *command], env=environment())
    wait_until(lambda: _recorded(dest) >= 10, "10 shards")
    for number in (signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    assert process.wait(HANG_SECONDS) == 0
    assert files(dest) == files(whole)


LIMITED = """
import resource, sys
from imagenet_mds.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


def test_a_disk_that_refuses_is_reported_and_finished_shards_are_kept(tree: Path, whole: Path, tmp_path: Path) -> None:
    dest = tmp_path / "mds"
    sizes = sorted(shard.size_bytes for shard in manifest_at(whole / "train").shards)
    limit = sizes[len(sizes) * 9 // 10]
    outcome = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "convert", str(tree), str(dest), *OPTIONS, "--workers", "2"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        f"imagenet-mds: {dest}/train cannot be written: File too large. Finished work is kept: make room ("
    )
    assert lines[0].endswith(" GB are free) and run the same command again")
    complete = files(dest / "train")
    assert not [name for name in complete if name.endswith(".tmp")]
    shards = {name: data for name, data in complete.items() if name.endswith(".mds")}
    assert shards
    assert shards.items() <= files(whole / "train").items()
    before = {name: (dest / "train" / name).stat().st_mtime_ns for name in shards}
    assert f"({len(shards)} of them from before)" in done("convert", tree, dest, *OPTIONS).out
    assert files(dest) == files(whole)
    assert {name: (dest / "train" / name).stat().st_mtime_ns for name in shards} == before


@dataclass(frozen=True)
class DeadlySource(TreeSource):
    """A source of which some images end the process that reads them by a signal: SIGKILL as the kernel does when memory
    runs out, SIGSEGV as a broken decoder does."""

    number: int = signal.SIGKILL

    def read(self, where: str) -> bytes:
        if where.endswith(("_2.JPEG", "_3.JPEG")):
            os.kill(os.getpid(), self.number)
        return super().read(where)


def test_a_lost_worker_is_reported_and_finished_shards_are_kept(small_tree: Path, tmp_path: Path) -> None:
    source = DeadlySource(**vars(open_source(str(small_tree))))
    conversion = SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096))
    conversion.mark_started()
    tasks = [conversion.task(shard) for shard in range(conversion.plan.shards)]
    with pytest.raises(WorldError, match=r"a worker process was lost \(killed, or out of memory\)\. Finished shards"):
        list(run_tasks(iter(tasks), 1, conversion.destination))
    assert not (tmp_path / "train" / "manifest.json").exists()
    assert not list((tmp_path / "train").rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_an_image_that_crashes_its_decoder_is_left_out_by_name(
    small_tree: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source = DeadlySource(**vars(open_source(str(small_tree))), number=number)
    policy = Policy(shard_size_bytes=1 << 12)
    conversion = SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), policy)
    assert conversion.plan.shards > 1
    manifest = convert_split(conversion, workers=2)
    deadly = sorted(sample.key for sample in conversion.samples if sample.key.endswith(("_2.JPEG", "_3.JPEG")))
    assert len(deadly) > 1
    assert sorted(entry.key for entry in manifest.left_out) == deadly
    assert {entry.reason for entry in manifest.left_out} == {f"crashes the process that decodes it ({number.name})"}
    assert manifest.samples == len(conversion.samples) - len(deadly)
    # A repair leaves them out as well, unread.
    shard = tmp_path / "train" / manifest.shards[-1].basename
    before = shard.read_bytes()
    shard.write_bytes(b"x")
    faults = verify_split(conversion.destination, manifest, threads=1)
    assert repair_split(conversion.destination, manifest, faults, source) == [shard.name]
    assert shard.read_bytes() == before


def test_tasks_come_back_once_each_however_many_are_in_flight(small_tree: Path, tmp_path: Path) -> None:
    source = open_source(str(small_tree))
    conversion = SplitConversion.plan_for(source, "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096))
    conversion.mark_started()
    shards = conversion.plan.shards
    for workers in (1, shards + 3):
        records = list(run_tasks((conversion.task(shard) for shard in range(shards)), workers, conversion.destination))
        assert sorted(record.shard for record, _ in records) == list(range(shards))


def test_refusals_have_status_2_and_one_line(tree: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, dest, options, words in [
        (tmp_path / "none", tmp_path / "mds", [], f"there is no source at {tmp_path}/none"),
        (tmp_path / "empty", tmp_path / "mds", [], f"{tmp_path}/empty has no folders"),
        (tree, dataset, ["--shard-size", "64KiB", "--seed", 1], "another seed (0, now 1)"),
    ]:
        outcome = run("convert", source, dest, *options)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert outcome.err.startswith("imagenet-mds: ")
        assert words in outcome.err
    assert not (tmp_path / "mds").exists()


def test_the_number_of_workers_does_not_change_a_byte(tree: Path, dataset: Path, tmp_path: Path) -> None:
    # Two workers made `dataset`.
    outcome = done("convert", tree, tmp_path / "mds", "--shard-size", "64KiB", "--workers", 1)
    assert files(tmp_path / "mds") == files(dataset)
    # A slow machine is shown how far it is.
    assert all(line.startswith(("train: ", "val: ")) for line in outcome.err.splitlines())
    assert "/train: 158 images in 19 shards, 1.1 MB, " in outcome.out


def test_a_moved_source_and_dataset_are_the_same_still(tree: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "elsewhere")
    shutil.copytree(dataset, tmp_path / "mds")
    outcome = done("convert", tmp_path / "elsewhere", tmp_path / "mds", "--shard-size", "64KiB")
    assert outcome.out.count(" is complete already: ") == 2
