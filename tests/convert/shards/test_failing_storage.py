"""Failures of the machine, unlike those of an image, never change the content of a dataset."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imagenet_mds.cli.verify import verify
from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.images import prepare as prepare_module
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.shards.build import build_shard, run_shard_task
from imagenet_mds_convert.sources.tree import TreeSource
from imagenet_mds_convert.verify import verify_split
from tests.support.datasets import manifest_at
from tests.support.drawing import files
from tests.support.running import convert_here, run_tasks_here


class FailingTree(TreeSource):
    """A tree whose disk fails at one image."""

    def read(self, where: str) -> bytes:
        """The bytes of every image but one."""
        if where.endswith("_3.JPEG"):
            raise OSError(errno.EIO, "Input/output error")
        return super().read(where)


def conversion(source: TreeSource, destination: Path) -> SplitConversion:
    """A conversion of the validation split into small shards."""
    return SplitConversion.plan_for(source, "val", LocalStorage(destination), Policy(shard_size_bytes=1 << 15))


def test_a_failing_disk_leaves_no_image_out(tree: Path, tmp_path: Path) -> None:
    whole = conversion(TreeSource.open(LocalStorage(tree)), tmp_path)
    failing = replace(whole, source=FailingTree(**vars(whole.source)))
    first = next(
        shard
        for shard in range(failing.plan.shards)
        if any(sample.key.endswith("_3.JPEG") for _, sample in failing.task(shard).samples)
    )
    with pytest.raises(WorldError, match=r"the source cannot be read: .*_3\.JPEG: Input/output error"):
        build_shard(failing.task(first))
    with pytest.raises(WorldError, match=r"the source cannot be read: .*_3\.JPEG: Input/output error"):
        convert_split(failing, workers=1)
    manifest = convert_split(whole, workers=1)
    assert manifest.left_out == []


def test_a_failing_disk_is_reported_by_the_plan_and_by_repairing_too(
    tree: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset, tmp_path / "mds")
    for shard in (tmp_path / "mds" / "val").glob("*.mds"):
        shard.unlink()

    def fail(self: TreeSource, where: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(TreeSource, "read", fail)
    words = r"^the source cannot be read: n\d+/\S+: Input/output error\. Finished shards are kept: run the same command"
    with pytest.raises(WorldError, match=words):
        convert_here(tree, tmp_path / "other", plan=True)
    with pytest.raises(WorldError, match=words):
        verify(str(tmp_path / "mds"), repair=str(tree))
    assert not list((tmp_path / "mds" / "val").glob("*.mds"))


def test_short_memory_leaves_no_image_out(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    data = next((tree / "val").glob("*/*_1.JPEG")).read_bytes()
    monkeypatch.setattr("imagenet_mds_convert.images.prepare.simplejpeg.decode_jpeg", no_memory)
    with pytest.raises(MemoryError):
        prepare_module.prepare(data, "decode")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("overwrite", [True, False])
def test_two_conversions_to_one_folder_do_not_meet(tree: Path, tmp_path: Path, overwrite: bool) -> None:
    mine = conversion(TreeSource.open(LocalStorage(tree)), tmp_path)
    mine.mark_started()
    run_shard_task(mine.task(0))
    before = files(tmp_path)
    options = {"shard_size": "32KiB", "split": "val", "overwrite": overwrite}
    with (
        locked_folder(tmp_path / "val"),
        pytest.raises(UserError, match="val is being converted to by another process: wait"),
    ):
        convert_here(tree, tmp_path, **options)
    assert files(tmp_path) == before
    assert convert_here(tree, tmp_path, **options) == 0


@pytest.mark.usefixtures("in_process")
def test_what_another_process_has_made_since_the_first_look_is_seen(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"split": "val", "shard_size": "32KiB"}

    @contextmanager
    def after_another(storage: LocalStorage) -> Iterator[None]:
        """Take the lock only after another process has converted and released it."""
        monkeypatch.undo()
        monkeypatch.setattr("imagenet_mds_convert.run.run_tasks", run_tasks_here)
        convert_here(tree, tmp_path, **options)
        with storage.lock():
            yield

    monkeypatch.setattr(LocalStorage, "lock", after_another)
    with pytest.raises(UserError, match=r"another seed \(0, now 1\)"):
        convert_here(tree, tmp_path, **options, seed=1)
    assert verify_split(LocalStorage(tmp_path / "val"), manifest_at(tmp_path / "val"), threads=1) == []
