"""Writes the drawn images in the format of every side, once, before anything is measured.

`python benchmarks/formats.py NAME FOLDER` runs one of `WRITERS`, from FOLDER/tree to FOLDER/NAME. The writer of a peer
runs in the peer's environment, so each function imports what it needs. An epoch has every image `REPEATS` times,
because every loader loses time at the end of an epoch, and ImageNet's epochs are long.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPEATS = 64
"""Repetitions of each image in an epoch, if a format can refer to the same bytes several times."""

_LITDATA_REPEATS = 8
"""Repetitions of each image if the format cannot: its bytes are then written several times."""


def files_of(folder: Path, tree: str = "tree") -> list[Path]:
    """Return the image files of a tree, sorted."""
    return sorted(folder.glob(f"{tree}/train/*/*.JPEG"))


def mds(name: str, *options: object, tree: str = "tree") -> Callable[[Path], None]:
    """Return a writer that runs `imagenet-mds convert` as a user does, and then repeats each shard in the index."""

    def write(folder: Path) -> None:
        command = [sys.executable, "-m", "imagenet_mds", "convert", folder / tree, folder / name]
        subprocess.run([*command, "--split", "train", *map(str, options)], check=True, capture_output=True)
        path = folder / name / "train" / "index.json"
        index = json.loads(path.read_bytes())
        path.write_text(json.dumps(index | {"shards": index["shards"] * REPEATS}), encoding="utf-8")

    return write


def reencode(folder: Path) -> None:
    """Encode every image again as in ffcv's published setting: quality 90, the longer side at most 500 pixels."""
    from PIL import Image

    for path in files_of(folder):
        target = folder / "reencoded_tree" / path.relative_to(folder / "tree")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.thumbnail((500, 500), Image.Resampling.LANCZOS)
            image.save(target, "JPEG", quality=90)


def reencoded(name: str, *options: str) -> Callable[[Path], None]:
    """Return a writer of the images of `reencode`."""

    def write(folder: Path) -> None:
        reencode(folder)
        mds(name, *options, tree="reencoded_tree")(folder)

    return write


class _Images:
    """The images for ffcv's writer, each with its class, the shorter side at most `min_side` pixels."""

    def __init__(self, files: list[Path], min_side: int | None) -> None:
        self.files, self.min_side = files, min_side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.open(self.files[place]).convert("RGB")
        if self.min_side and (shorter := min(image.size)) > self.min_side:
            width, height = (round(side * self.min_side / shorter) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        return image, int(self.files[place].parent.name[1:])


def ffcv_jpeg(folder: Path) -> None:
    """Write ffcv's published setting."""
    _write_ffcv(folder, "ffcv_jpeg", None, {"write_mode": "jpg", "max_resolution": 500, "jpeg_quality": 90})


def ffcv_raw(folder: Path) -> None:
    """Write the same number of pixels as `--raw --min-side 256` stores."""
    _write_ffcv(folder, "ffcv_raw", 256, {"write_mode": "raw"})


def _write_ffcv(folder: Path, name: str, min_side: int | None, options: dict[str, Any]) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    (folder / name).mkdir()
    fields = {"image": RGBImageField(**options), "label": IntField()}
    writer = DatasetWriter(str(folder / name / "train.beton"), fields, num_workers=2)
    writer.from_indexed_dataset(_Images(files_of(folder), min_side))


def tfrecord(folder: Path) -> None:
    """Write one file of JPEGs."""
    import tensorflow

    (folder / "tfrecord").mkdir()
    with tensorflow.io.TFRecordWriter(str(folder / "tfrecord" / "train.tfrecord")) as writer:
        for path in files_of(folder):
            writer.write(path.read_bytes())


def webdataset(folder: Path) -> None:
    """Write tar files of 64 MiB."""
    from webdataset import ShardWriter

    (folder / "webdataset").mkdir()
    with ShardWriter(f"{folder}/webdataset/%06d.tar", maxsize=1 << 26, verbose=0) as writer:
        for path in files_of(folder):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": int(path.parent.name[1:])})


def _litdata_sample(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(io.BytesIO(Path(path).read_bytes())), "class": int(Path(path).parent.name[1:])}


def litdata(folder: Path) -> None:
    """Write chunks of 64 MB of JPEGs."""
    from litdata import optimize

    files = [str(path) for path in files_of(folder)] * _LITDATA_REPEATS
    optimize(fn=_litdata_sample, inputs=files, output_dir=str(folder / "litdata"), num_workers=1, chunk_bytes="64MB")


WRITERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "ordinary": (mds("ordinary"), None),
    "tiles": (mds("tiles", "--tiles"), None),
    "max_side": (mds("max_side", "--max-side", 500, "--quality", 90, "--tiles"), None),
    "half": (mds("half", "--tiles", "--half"), None),
    "reencoded": (reencoded("reencoded", "--tiles"), None),
    "reencoded_half": (reencoded("reencoded_half", "--tiles", "--half"), None),
    "raw": (mds("raw", "--raw", "--min-side", 256), None),
    "ffcv_jpeg": (ffcv_jpeg, "ffcv"),
    "ffcv_raw": (ffcv_raw, "ffcv"),
    "tfrecord": (tfrecord, "tensorflow"),
    "webdataset": (webdataset, "webdataset"),
    "litdata": (litdata, "litdata"),
}
"""By folder: the function that writes it, and the peer in whose environment it runs, None for ours."""


if __name__ == "__main__":
    WRITERS[sys.argv[1]][0](Path(sys.argv[2]))
