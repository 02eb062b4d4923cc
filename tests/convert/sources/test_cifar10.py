"""CIFAR-10's python batches: unchanged images, and no execution of what a pickle names."""

import hashlib
import importlib.util
import io
import os
import pickle
import re
import struct
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from imagenet_mds.errors import UserError
from imagenet_mds.vocabulary import SPLITS
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.checksums import verify_checksums
from imagenet_mds_convert.sources.cifar10 import OFFICIAL_MD5, Cifar10Source
from tests.support.datasets import manifest_at
from tests.support.running import convert_here
from tests.support.shards import read_shard

NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
PER_BATCH = 20


PythonPickler: Any = pickle._Pickler
"""The one that is written in Python and can be changed."""


class Python2Pickler(PythonPickler):  # type: ignore[misc] # the base is Any
    """Writes bytes and module names as Python 2 with an old numpy did when CIFAR-10 was made."""

    dispatch: ClassVar[dict[type, Any]] = dict(PythonPickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        """Write bytes as a string of Python 2."""
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        """Write a global by its old name."""
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(value, name)

    dispatch[bytes] = save_bytes
    dispatch[type(len)] = save_global


def pickled(value: Any, protocol: int) -> bytes:
    """A pickle as Python 2 wrote it (protocol 0), or as Python 3 does."""
    if protocol:
        return pickle.dumps(value, protocol)
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def pictures(batch: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]:
    """The content of a batch."""
    generator = np.random.Generator(np.random.PCG64(sum(batch.encode())))
    return generator.integers(0, 256, (PER_BATCH, 3072), np.uint8), generator.integers(0, 10, PER_BATCH).tolist()


def put_cifar10(root: Path, protocol: int = 0, fortran: bool = False) -> Path:
    """Write a small CIFAR-10 into its folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for batch in ["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]:
        pixels, labels = pictures(batch)
        pixels = np.asfortranarray(pixels) if fortran else pixels
        content = {b"batch_label": b"a batch", b"labels": labels, b"data": pixels, b"filenames": [b"x.png"] * PER_BATCH}
        (folder / batch).write_bytes(pickled(content, protocol))
    meta = {b"num_cases_per_batch": PER_BATCH, b"label_names": NAMES, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickled(meta, protocol))
    return folder


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_image_is_read_as_it_is(tmp_path: Path, protocol: int, fortran: bool) -> None:
    folder = put_cifar10(tmp_path, protocol, fortran)
    if not protocol:
        assert b"cnumpy.core.multiarray\n_reconstruct\n" in (folder / "test_batch").read_bytes()
    source = open_source(str(tmp_path))
    assert isinstance(source, Cifar10Source)
    assert source == open_source(str(folder)) == open_source(str(folder), "cifar10")
    assert (source.kind, source.splits) == ("cifar10", ("train", "val"))
    assert source.classes == source.class_names == tuple(name.decode() for name in NAMES)
    assert pickle.loads(pickle.dumps(source)) == source
    for split, count in zip(SPLITS, (5 * PER_BATCH, PER_BATCH), strict=True):
        samples = source.samples(split)
        assert len(samples) == count
        assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
        for sample in samples:
            batch, index = sample.where
            pixels, labels = pictures(batch)
            name = NAMES[labels[index]].decode()
            assert (sample.key, sample.size_bytes) == (f"{name}/{batch}_{index:05}.png", 3072)
            assert sample.label == labels[index]
            image = np.asarray(Image.open(io.BytesIO(source.read(sample.where))))
            assert image.shape == (32, 32, 3)
            assert np.array_equal(image.transpose(2, 0, 1).ravel(), pixels[index])


def test_the_dataset_has_rgb_jpegs_near_the_pixels_and_says_so_once(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "source"
    root.mkdir()
    put_cifar10(root)
    assert convert_here(root, tmp_path / "out", split="val") == 0
    manifest = manifest_at(tmp_path / "out" / "val")
    assert manifest.changed == []
    captured = capsys.readouterr()
    assert captured.err.count("note: CIFAR-10's images are pixels, not files: each is turned into RGB JPEG\n") == 1
    assert "changed" not in captured.out
    assert (manifest.samples, manifest.source.kind, len(manifest.classes)) == (PER_BATCH, "cifar10", 10)
    source = open_source(str(root))
    samples = source.samples("val")
    for shard in manifest.shards:
        for record in read_shard(tmp_path / "out" / "val" / shard.basename):
            stored = np.asarray(Image.open(io.BytesIO(record.image))).astype(int)
            read = np.asarray(Image.open(io.BytesIO(source.read(samples[record.index].where)))).astype(int)
            assert record.label == samples[record.index].label
            assert np.abs(stored - read).mean() < 6  # noise is the worst case for JPEG


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("evil", "words"),
    [
        (Evil(os.system, "touch run"), "it asks for posix.system"),
        (Evil(subprocess.Popen, ["touch", "run"]), r"it asks for (subprocess|commands)\.Popen"),
        (Evil(eval, "open('run', 'w')"), r"it asks for (builtins|__builtin__)\.eval"),
        (Evil(np.ndarray, (1 << 40,)), "it asks for an array without content"),
        (Evil(np.load, "x", None, True), r"it asks for numpy\.load"),
        (np.zeros(3, np.float64), "it has an array of 'f8', not of bytes"),
        (np.array([None]), "it has an array of 'O8', not of bytes"),
    ],
)
@pytest.mark.parametrize("name", ["batches.meta", "test_batch"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_asks_for_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, evil: Any, words: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = put_cifar10(tmp_path / "root")
    (folder / name).write_bytes(pickle.dumps({b"label_names": NAMES, b"x": evil}, protocol))
    with pytest.raises(UserError, match=rf"{name} cannot be read \({words}"):
        open_source(str(folder)).samples("val")
    assert not (tmp_path / "run").exists()


PIXELS, LABELS = pictures("test_batch")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("batches.meta", b"", "cannot be read"),
        ("batches.meta", pickle.dumps([1]), "is no batch of CIFAR-10"),
        ("batches.meta", pickle.dumps({b"label_names": "cat"}), "has no label_names"),
        ("batches.meta", pickle.dumps({b"label_names": [b"../cat", b"dog"]}), "has no label_names"),
        ("batches.meta", pickle.dumps({b"label_names": [b"cat", b"cat"]}), "has 1 names for 2 classes"),
        ("test_batch", pickle.dumps({b"data": PIXELS, b"labels": LABELS})[:500], "cannot be read"),
        ("test_batch", pickle.dumps({b"data": PIXELS}), "has no images of 3,072 bytes with labels"),
        ("test_batch", pickle.dumps({b"data": PIXELS, b"labels": LABELS[1:]}), "has no images of"),
        ("test_batch", pickle.dumps({b"data": PIXELS[:, 1:], b"labels": LABELS}), "has no images of"),
        ("test_batch", pickle.dumps({b"data": PIXELS, b"labels": [10] * PER_BATCH}), "has no images of"),
        ("test_batch", pickle.dumps({b"data": PIXELS, b"fine_labels": LABELS}), "has no images of"),
    ],
)
def test_a_broken_batch_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    folder = put_cifar10(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{folder}/{name} {words}"):
        open_source(str(folder)).samples("val")


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    folder = put_cifar10(tmp_path)
    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py lacks data_batch_3: download it again"):
        open_source(str(folder))
    for number in (1, 2, 4, 5):
        (folder / f"data_batch_{number}").unlink()
    source = open_source(str(folder))
    assert source.splits == ("val",)
    (folder / "test_batch").unlink()
    with pytest.raises(UserError, match=r"test_batch cannot be read: No such file"):
        source.samples("val")
    with pytest.raises(UserError, match=r"has batches\.meta but no batches"):
        open_source(str(folder))
    (folder / "batches.meta").unlink()
    with pytest.raises(UserError, match=r"has no batches\.meta, here or in cifar-10-batches-py/: it is not CIFAR-10"):
        open_source(str(folder), "cifar10")


def test_sums_are_compared_with_the_official_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put_cifar10(tmp_path)
    source = open_source(str(tmp_path))
    with pytest.raises(UserError, match=rf"{folder}/batches\.meta has MD5 [0-9a-f]{{32}}, and the official one has 5f"):
        verify_checksums(source, ["val"])
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert sorted(sums) == sorted(OFFICIAL_MD5)
    monkeypatch.setattr("imagenet_mds_convert.sources.cifar10.OFFICIAL_MD5", sums)
    verify_checksums(source, ["train", "val"])
    for name, split, other in zip(("data_batch_5", "test_batch"), SPLITS, reversed(SPLITS), strict=True):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + b"x")
        with pytest.raises(UserError, match=rf"{name} has MD5 .* has {sums[name]}: download it again"):
            verify_checksums(source, ["train", "val"])
        with pytest.raises(UserError, match=rf"{name} has MD5"):
            verify_checksums(source, [split])
        verify_checksums(source, [other])
        (folder / name).write_bytes(data)


def test_the_sums_are_those_of_torchvision() -> None:
    """Its source is read, because importing it takes seconds."""
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    text = (Path(found.origin).parent / "datasets" / "cifar.py").read_text(encoding="utf-8")
    for name, md5 in OFFICIAL_MD5.items():
        pair = rf'"{name}",\s+("key": "label_names",\s+"md5": )?"{md5}"'
        assert re.search(pair, text), name
