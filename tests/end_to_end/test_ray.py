"""A conversion on Ray: the same plan, the same bytes, and shards of lost workers made again."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import WorldError
from imagenet_mds.process.signals import STOPPED_MESSAGE
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.shards.ray import run_tasks_on_ray
from imagenet_mds_convert.sources.tree import TreeSource
from tests.support.command import HANG_SECONDS, ROOTS, run, start, wait_until
from tests.support.drawing import files
from tests.support.running import convert_here


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """The address of a cluster of two workers. It is shared by the module, because starting one takes seconds."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(ROOTS))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@dataclass(frozen=True)
class OnceDeadly(TreeSource):
    """A tree that kills the first process that reads an image, as the kernel does when memory runs out."""

    mark: Path = Path()

    def read(self, where: str) -> bytes:
        """The bytes, unless this is the first reader."""
        if where.endswith("_2.JPEG"):
            try:
                (self.mark / where.replace("/", "_")).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read(where)


def test_ray_gives_the_bytes_of_processes(tree: Path, dataset: Path, tmp_path: Path) -> None:
    assert convert_here(tree, tmp_path, shard_size="64KiB", engine="ray", workers=2) == 0
    assert files(tmp_path) == files(dataset)


def test_lost_workers_shards_are_done_again(tree: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    source = OnceDeadly(**vars(TreeSource.open(LocalStorage(tree))), mark=tmp_path / "marks")
    conversion = SplitConversion.plan_for(
        source, "val", LocalStorage(tmp_path / "mds"), Policy(shard_size_bytes=1 << 16)
    )
    convert_split(conversion, 2, engine=run_tasks_on_ray)
    assert len(list((tmp_path / "marks").iterdir())) == 10
    assert files(tmp_path / "mds" / "val") == files(dataset / "val")


def test_what_ray_cannot_write_is_reported(tree: Path, tmp_path: Path) -> None:
    conversion = SplitConversion.plan_for(
        TreeSource.open(LocalStorage(tree)), "val", LocalStorage(tmp_path), Policy(shard_size_bytes=1 << 16)
    )
    conversion.mark_started()
    in_the_way = tmp_path / "val" / "shard.00001.mds"
    in_the_way.mkdir()
    with pytest.raises(WorldError, match=r"val cannot be written: .* Finished work is kept"):
        convert_split(conversion, 2, engine=run_tasks_on_ray)
    in_the_way.rmdir()
    assert convert_split(conversion, 2, engine=run_tasks_on_ray).samples == 50


def test_stopped_cleanly_or_killed_it_continues_to_the_same_bytes(
    cluster: str, tree: Path, tmp_path: Path, in_process: None
) -> None:
    convert_here(tree, tmp_path / "whole", shard_size="4KiB")
    dest, log = tmp_path / "mds", tmp_path / "log"
    command = ("convert", tree, dest, "--shard-size", "4KiB", "--engine", "ray", "--workers", 2)

    def recorded() -> int:
        return len(list((dest / "train" / ".work").glob("shard.*.json")))

    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(*command, log=log, RAY_ADDRESS=cluster)
        wanted = recorded() + 10
        wait_until(lambda wanted=wanted: recorded() >= wanted, "ten more shards", process)  # type: ignore[misc] # mypy infers no type for the loop's value
        process.send_signal(number)
        assert process.wait(HANG_SECONDS) == status, log.read_text()
        if status == 75:
            said = log.read_text()
            assert said.endswith(STOPPED_MESSAGE)
            assert "***" not in said  # how Ray's dump of stacks begins
        assert not (dest / "train" / "manifest.json").exists()
    outcome = run(*command, RAY_ADDRESS=cluster)
    assert outcome.status == 0, outcome.err
    assert files(dest) == files(tmp_path / "whole")
