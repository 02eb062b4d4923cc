"""Hugging Face's parquet files: the tree's shards, labels compared with paths, and a local server as the hub."""

import errno
import hashlib
import http.server
import json
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources import open_source, parquet
from imagenet_mds_convert.sources.classes import imagenet_names
from imagenet_mds_convert.sources.gathered import Gathering
from imagenet_mds_convert.sources.parquet import ParquetSource
from tests.support.command import run
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, noise
from tests.support.running import convert_here
from tests.support.sources import Row, make_images, put_parquet, shards, write_parquet


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """The images of `make_images` in parquet files like the hub's."""
    return put_parquet(make_images(tmp_path / "tree"), tmp_path / "hf")


def same_as_the_tree(tmp_path: Path, out: Path) -> None:
    """Assert that the dataset at `out` has the shards of the tree."""
    assert convert_here(tmp_path / "tree", tmp_path / "a") == 0
    assert shards(tmp_path / "a") == shards(out) != {}
    for split in ("train", "val"):
        ours, theirs = manifest_at(out / split), manifest_at(tmp_path / "a" / split)
        assert (ours.fingerprint, ours.source.fingerprint) == (theirs.fingerprint, theirs.source.fingerprint)
        assert (ours.left_out, ours.source.kind) == (theirs.left_out, "parquet")


def test_they_give_the_same_shards_as_the_tree(hf: Path, tmp_path: Path, in_process: None) -> None:
    assert convert_here(hf, tmp_path / "b") == 0
    same_as_the_tree(tmp_path, tmp_path / "b")


def test_files_are_found_in_data_and_right_here(hf: Path) -> None:
    source = open_source(str(hf))
    assert isinstance(source, ParquetSource)
    assert (source.kind, source.splits, len(source.classes)) == ("parquet", ("train", "val"), 1000)
    test_files = f"{hf}/data has files that are not used: test-00000-of-00001.parquet"
    assert source.warnings == (test_files,)
    assert pickle.loads(pickle.dumps(source)) == source
    inner = open_source(str(hf / "data"))
    assert [sample.key for sample in inner.samples("val")] == [sample.key for sample in source.samples("val")]
    (hf / "data" / "train-00000-of-00002.parquet").unlink()
    assert open_source(str(hf)).warnings == ("1 of the 2 parquet files of train are here", test_files)
    (hf / "data" / "validation-00000-of-00001.parquet").unlink()
    assert open_source(str(hf)).splits == ("train",)


def _shape(root: Path, **options: Any) -> list[tuple[str, int]]:
    """How many images each split has."""
    source = open_source(str(root), **options)
    return [(split, len(source.samples(split))) for split in source.splits]


@pytest.mark.parametrize(
    "name",
    [
        "data/val-00000-of-00001.parquet",
        "data/valid-00000-of-00001.parquet",
        "validation-00000-of-00001.parquet",
        "val/0000.parquet",
        "default/validation/0000.parquet",
    ],
)
def test_each_split_is_found_by_the_name_of_its_files_or_folder(hf: Path, name: str) -> None:
    (hf / name).parent.mkdir(parents=True, exist_ok=True)
    (hf / "data" / "validation-00000-of-00001.parquet").rename(hf / name)
    assert _shape(hf) == [("train", 14), ("val", 6)]
    assert open_source(str(hf)).kind == "parquet"
    if name.startswith("default"):
        assert _shape(hf / "default", split="val") == [("val", 6)]


def test_files_of_two_sets_are_refused_by_both(hf: Path) -> None:
    data = hf / "data"
    second = data / "train-00001-of-00002-0a1b2c3d.parquet"
    for other, words in (
        (
            "data/train-00002-of-00003.parquet",
            r"for train, data/train-\*-of-00002\.parquet and data/train-\*-of-00003\.pa",
        ),
        ("train-00001-of-00002.parquet", r"for train, data/train-\*-of-00002\.parquet and train-\*-of-00002\.parquet"),
        ("data/train-00000-of-00002-ffff.parquet", r"has one file of train twice, .*00000-of-00002-ffff\.parquet and "),
        ("default/train/0000.parquet", r"for train, data/train-\*-of-00002\.parquet and default/train/\*\.parquet"),
    ):
        (hf / other).parent.mkdir(parents=True, exist_ok=True)
        second = second.rename(hf / other)
        with pytest.raises(UserError, match=words):
            open_source(str(hf))
        assert _shape(hf, split="val") == [("val", 6)]


def test_what_lies_beside_the_files_is_counted_or_noted(hf: Path) -> None:
    for name in (
        "images/a.jpg",
        "data/loose.jpg",
        "data/train.parquet",
        "validation.zip",
        "README.md",
        "data/more/a.jpg",
    ):
        (hf / name).parent.mkdir(parents=True, exist_ok=True)
        (hf / name).write_bytes(b"x")
    source = open_source(str(hf))
    assert source.warnings == (
        f"{hf} has folders that are not used: images",
        f"{hf}/data has folders that are not used: more",
        f"{hf}/data has files that are not used: test-00000-of-00001.parquet",
    )
    found = {split: [entry.example for entry in source.find(split).not_taken] for split in source.splits}
    assert found == {"train": ["loose.jpg", "train.parquet"], "val": ["validation.zip"]}


@pytest.mark.parametrize(
    ("column", "kind", "value"),
    [
        ("label", pa.float64(), 0.0),
        ("label", pa.decimal128(5, 1), 0),
        ("label", pa.string(), "tench"),
        ("bytes", pa.null(), None),
        ("bytes", pa.list_(pa.uint8()), [1]),
        ("bytes", pa.int64(), 1),
        ("bytes", pa.struct([("x", pa.binary())]), {"x": b"x"}),
        ("bytes", pa.binary_view(), b"x"),
        ("bytes", pa.string(), "x"),
    ],
)
def test_columns_of_other_types_are_refused_by_name_and_type(
    hf: Path, column: str, kind: pa.DataType, value: object
) -> None:
    path = hf / "data" / "validation-00000-of-00001.parquet"
    fields = {"bytes": pa.array([b"x"]), "path": pa.array(["a_n01440764.JPEG"]), "label": pa.array([0])}
    fields[column] = pa.array([value], kind)
    image = pa.StructArray.from_arrays([fields["bytes"], fields["path"]], ["bytes", "path"])
    pq.write_table(pa.table({"image": image, "label": fields["label"]}), path)
    with pytest.raises(UserError, match=rf"of-00001\.parquet has column (image\.)?{column} of type \w.*, and needs "):
        open_source(str(hf)).samples("val")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("n01440764_1_n01440764.JPEG", 1),
        ("n01440764_1_n01440764.JPEG", None),
        ("n01440764_1_n01440764.JPEG", -1),
        ("n01440764_1_n99999999.JPEG", 0),
        ("n01440764_1.JPEG", 0),
        ("../../x\n_n01440764.JPEG", 0),
        ("n01440764_1_n01440764.exe", 0),
        (None, 1000),
        (None, None),
    ],
)
def test_a_label_that_does_not_fit_the_path_is_refused(hf: Path, path: str | None, label: int | None) -> None:
    good: Row = (b"x", "n01440764_0_n01440764.JPEG", 0)
    write_parquet(hf / "data" / "train-00000-of-00002.parquet", [good, good, good, good, (b"x", path, label)])
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet, row group 1, row 1: label .* does not match"):
        open_source(str(hf)).samples("train")


def test_a_path_that_stands_twice_is_refused(hf: Path) -> None:
    name = "n01440764_0_n01440764.JPEG"
    write_parquet(hf / "data" / "train-00000-of-00002.parquet", [(b"x", name, 0), (b"y", name, 0)])
    with pytest.raises(UserError, match=r"has n01440764/n01440764_0\.JPEG twice: .*row group 0, row 0 and .*"):
        open_source(str(hf)).samples("train")


def test_an_image_without_bytes_is_an_empty_one(hf: Path) -> None:
    write_parquet(
        hf / "data" / "validation-00000-of-00001.parquet", [(None, "ILSVRC2012_val_00000001_n01440764.JPEG", 0)]
    )
    source = open_source(str(hf))
    (sample,) = source.samples("val")
    assert (sample.key, sample.size_bytes) == ("n01440764/ILSVRC2012_val_00000001.JPEG", 0)
    assert source.read(sample.where) == b""


def test_a_null_image_and_a_path_that_is_null_stop_nothing(hf: Path, tmp_path: Path, in_process: None) -> None:
    """A null image is left out by name, and one path that fits says that the labels are ImageNet's."""
    rows: list[Row] = [(encoded(noise(seed=number)), None, number % 2) for number in range(5)]
    path = hf / "data" / "validation-00000-of-00001.parquet"
    write_parquet(path, [*rows, (None, None, 1), (encoded(noise()), "a_n01440764.JPEG", 0)])
    assert convert_here(hf, tmp_path / "mds", split="val") == 0
    manifest = manifest_at(tmp_path / "mds" / "val")
    assert manifest.samples == 6
    assert [(entry.key, entry.reason) for entry in manifest.left_out] == [
        ("n01443537/validation-00000-of-00001_0001_000002", "empty file")
    ]
    write_parquet(path, rows)
    with pytest.raises(
        UserError, match="has neither paths nor names of its labels, so nothing says that they are Imag"
    ):
        open_source(str(hf)).samples("val")


@pytest.mark.parametrize("wnids", [True, False])
def test_without_paths_the_names_of_the_labels_say_whose_they_are(hf: Path, wnids: bool) -> None:
    path = hf / "data" / "validation-00000-of-00001.parquet"

    def named(names: list[str]) -> None:
        write_parquet(path, [(b"x", None, 3), (b"y", None, 1)])
        table = pq.read_table(path)
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), path)

    ours = imagenet_names()
    named(list(ours) if wnids else [f"{name}, another name" for name in ours.values()])
    assert [sample.label for sample in open_source(str(hf)).samples("val")] == [1, 3]
    for others in (["n02099601", "n01440764", "n01443537"], ["cat", "dog"], list(reversed(ours))):
        named(others)
        with pytest.raises(UserError, match=r"says that its labels are [0-9,]+ other classes than ImageNet's \("):
            open_source(str(hf)).samples("val")


@pytest.mark.parametrize("most_bytes", [1, 20_000, 1 << 40])
@pytest.mark.parametrize("row_group", [1, 5, 1000])
def test_each_row_group_is_read_once_in_a_pass(
    hf: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch, row_group: int, most_bytes: int
) -> None:
    tree = tmp_path / "tree"
    numbers = {wnid: number for number, wnid in enumerate(imagenet_names())}
    paths = sorted((tree / "train").glob("*/*"), key=lambda path: path.name[::-1])
    rows: list[Row] = [(p.read_bytes(), f"{p.stem}_{p.parent.name}{p.suffix}", numbers[p.parent.name]) for p in paths]
    (hf / "data" / "train-00001-of-00002-0a1b2c3d.parquet").unlink()
    write_parquet(hf / "data" / "train-00000-of-00002.parquet", rows, row_group)
    reads: list[tuple[str, int]] = []
    whole = parquet._batches

    def counted(storage: Storage, name: str, file: Any, group: int, columns: list[str]) -> Iterator[Any]:
        if columns == ["image.bytes"]:
            reads.append((name, group))
        return whole(storage, name, file, group, columns)

    monkeypatch.setattr(parquet, "_batches", counted)
    monkeypatch.setattr("imagenet_mds_convert.conversion.GATHERED_BYTES", most_bytes)
    assert convert_here(hf, tmp_path / "b", split="train") == convert_here(tree, tmp_path / "a", split="train") == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    passes = len(manifest_at(tmp_path / "b" / "train").shards) if most_bytes == 1 else 2 if most_bytes == 20_000 else 1
    groups = -(-len(rows) // row_group)
    assert groups <= len(reads) <= passes * groups
    assert max(reads.count(read) for read in reads) <= passes


def test_the_plan_says_how_often_the_source_is_read_and_the_disk_that_takes(hf: Path, tmp_path: Path) -> None:
    outcome = run("convert", hf, tmp_path / "mds", "--plan")
    assert outcome.status == 0, outcome.err
    assert "train: the source is read 1 time, with 0.0 GB of it on disk meanwhile\n" in outcome.out
    assert not (tmp_path / "mds").exists()


def test_a_full_disk_while_gathering_is_said_and_leaves_nothing(
    hf: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Gathering, data: bytes) -> tuple[int, int]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Gathering, "put", full)
        with pytest.raises(
            WorldError,
            match=r"images cannot be gathered in .*/b/train: No space left on device\. Finished .*: make room and run",
        ):
            convert_here(hf, tmp_path / "b")
    assert convert_here(hf, tmp_path / "b") == 0
    same_as_the_tree(tmp_path, tmp_path / "b")


def test_broken_files_and_other_columns_are_refused(hf: Path, tmp_path: Path) -> None:
    path = hf / "data" / "validation-00000-of-00001.parquet"
    source, whole = open_source(str(hf)), path.read_bytes()
    where = source.samples("val")[0].where
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:2000] + bytes(2000) + whole[4000:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"validation-00000-of-00001\.parquet cannot be read, it is truncated or"):
            source.samples("val")
    path.write_bytes(b"")
    with pytest.raises(OSError, match=r"validation-00000-of-00001\.parquet, row group") as caught:
        open_source(str(hf)).read((where[0], where[1] + 1000, 0))
    assert caught.value.errno == errno.EIO
    pq.write_table(pa.table({"picture": [1], "label": [0]}), path)
    with pytest.raises(UserError, match=r"has columns picture, label, and needs image\{bytes, path\} and label"):
        source.samples("val")
    write_parquet(path, [])
    with pytest.raises(UserError, match="the parquet files of val have no rows"):
        source.samples("val")
    path.unlink()
    with pytest.raises(UserError, match=r"validation-00000-of-00001\.parquet cannot be read"):
        source.samples("val")
    with pytest.raises(UserError, match=r"tree has no train-\*-of-\*\.parquet or"):
        open_source(str(tmp_path / "tree"), "parquet")


@pytest.mark.parametrize("module", ["pyarrow", "huggingface_hub"])
def test_the_missing_extra_is_named(hf: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"{module}.parquet", raising=False)
    for location in ["hf://imagenet-1k", *([str(hf)] if module == "pyarrow" else [])]:
        with pytest.raises(UserError, match=r"needs pyarrow and huggingface_hub: pip install 'imagenet-mds\[hf\]'"):
            open_source(location)


class Hub:
    """A hub with one dataset, and a log of the requests to it."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.refusal = root, list[str](), (0, "")
        self.said_bytes: int | None = None
        """The size of each file, as it says; None for the true one."""
        self.sha = "0123456789abcdef0123456789abcdef01234567"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        self.asked.append(request.path)
        body, headers, status = b"", {}, 200
        name = request.path.partition(f"/resolve/{self.sha}/")[2]
        if request.headers.get("Authorization") != "Bearer hf_good":
            status, headers = 401, {"X-Error-Code": "RepoNotFound"}
        elif re.fullmatch(r"/api/datasets/ILSVRC/imagenet-1k(/revision/\w+)?(\?.*)?", request.path):
            files = [
                {"rfilename": str(path.relative_to(self.root)), "size": self.said_bytes or path.stat().st_size}
                for path in self.root.rglob("*.parquet")
            ]
            body = json.dumps({"id": "ILSVRC/imagenet-1k", "sha": self.sha, "siblings": files}).encode()
        elif self.refusal[0]:
            status, headers = self.refusal[0], {"X-Error-Code": self.refusal[1]}
        elif name:
            body = (self.root / name).read_bytes()
            headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "X-Repo-Commit": self.sha}
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        request.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(header, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The dataset on a local hub, and a token that gives access to it."""
    hub = Hub(hf)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_gives_the_same_shards_and_only_the_files_asked_for(hub: Hub, tmp_path: Path, in_process: None) -> None:
    here: Callable[..., int] = lambda where, **options: convert_here(where, tmp_path / "b", **options)  # noqa: E731 # a def takes four lines
    location: Any = "hf://imagenet-1k"
    assert here(location, split="val") == 0
    names = {path.partition("?")[0].rpartition("/")[2] for path in hub.asked}
    assert names == {"imagenet-1k", hub.sha, "validation-00000-of-00001.parquet"}
    assert here(location) == 0
    assert not [path for path in hub.asked if "test-" in path]
    same_as_the_tree(tmp_path, tmp_path / "b")
    files = open_source("huggingface:ILSVRC/imagenet-1k")
    assert files == open_source("hf://datasets/ILSVRC/imagenet-1k")
    assert pickle.loads(pickle.dumps(files)) == files


def test_files_that_the_disk_has_no_room_for_are_not_fetched(hub: Hub) -> None:
    hub.said_bytes = 1 << 60
    with pytest.raises(UserError, match=r"would take 1,152,921,504\.6 GB more in .*cache, .* set HF_HOME to a folder"):
        open_source("hf://imagenet-1k").fetch("val")
    assert not [path for path in hub.asked if ".parquet" in path]


def test_what_the_hub_refuses_is_reported_with_the_way_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("hf://imagenet-1k")
    hub.refusal = (403, "GatedRepo")
    with pytest.raises(UserError, match="is gated and the token in HF_TOKEN gives no access: accept its terms at"):
        source.fetch("val")
    hub.refusal = (400, "")
    with pytest.raises(WorldError, match=r"ILSVRC/imagenet-1k cannot be fetched: .*the same command again"):
        source.fetch("val")
    hub.refusal = (0, "")
    with pytest.raises(UserError, match="the hub has no dataset some/other, or the token in HF_TOKEN is invalid"):
        open_source("hf://some/other")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(UserError, match="the hub has no dataset ILSVRC/imagenet-1k, or the token"):
        open_source("hf://imagenet-1k")
    for path in hub.root.rglob("*.parquet"):
        path.unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    with pytest.raises(UserError, match=r"hf://imagenet-1k has no train-\*-of-\*\.parquet"):
        open_source("hf://imagenet-1k")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorldError, match="cannot be fetched"):
        open_source("hf://imagenet-1k")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"hf://imagenet-1k is gated: accept its terms at .* and set HF_TOKEN to it"):
        open_source("hf://imagenet-1k")
