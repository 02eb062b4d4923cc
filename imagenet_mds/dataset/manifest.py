"""The manifest: what a split of a dataset holds, where it came from, and the fingerprint of its content.

`manifest.json` is beside `index.json` and is written last, so a split that has one is complete. It is the only contract
between converting and training. It records no time, rate, host or path, so that converting the same images twice gives
the same bytes.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from imagenet_mds.dataset.mds import INDEX_BASENAME, Count, Layout, ShardInfo
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.jpeg.tile_table import EARLIER_TILE_GROWTH
from imagenet_mds.storage.base import Readable, Storage
from imagenet_mds.vocabulary import SPLITS, CheckLevel, ClassNumbers, SplitName, StoredForm
from imagenet_mds.words import counted

MANIFEST_BASENAME = "manifest.json"
KEYS_BASENAME = "keys.txt"
WORK_FOLDER = ".work"
"""Folder beside the shards with the progress of a conversion. It is removed after the manifest is written."""

DEFAULT_QUALITY = 90
"""JPEG quality of images that are scaled."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ClassEntry(_Frozen):
    """A class: its folder name (ImageNet's wnid) and its readable name, which is the folder name if none is known."""

    wnid: str
    name: str
    samples: Count


class LeftOut(_Frozen):
    """A source image that is not in the dataset, and why."""

    key: str
    reason: str


class Changed(_Frozen):
    """A source image that was stored changed, and how."""

    key: str
    change: str


class NotTaken(_Frozen):
    """Files of the source that were not taken for images: how many, of which suffix, in which kind of folder, and the
    first of them."""

    place: str
    suffix: str
    files: Count
    example: str


class Policy(_Frozen):
    """Everything that decides the bytes of a split, given its source. Sides are in pixels; None keeps the original."""

    check: CheckLevel = "decode"
    seed: int = 0
    shard_size_bytes: int = 1 << 26
    subset: int | None = Field(default=None, ge=1)
    max_side: int | None = Field(default=None, ge=16)
    min_side: int | None = Field(default=None, ge=16)
    quality: int = Field(default=DEFAULT_QUALITY, ge=1, le=100)
    tiles: bool = False
    tile_growth: float | None = None
    """A file that tiles would make larger by a greater share is stored without them. None where there are no tiles, or
    where a version made them that did not record its limit; see `tile_growth_limit`."""
    raw: bool = False
    half_quality: int | None = Field(default=None, ge=1, le=100)
    """JPEG quality of the half-size copies; None where there are none."""
    classes: ClassNumbers = "imagenet"
    val_fraction: float | None = None

    @field_validator("shard_size_bytes")
    @classmethod
    def _within_limits(cls, size_bytes: int) -> int:
        if not 1 << 12 <= size_bytes <= 1 << 31:
            raise ValueError(f"--shard-size {size_bytes:,}: choose 4 KiB to 2 GiB; 64MiB suits most")
        return size_bytes

    @model_validator(mode="after")
    def _fits_together(self) -> "Policy":
        if self.max_side is not None and self.min_side is not None:
            raise ValueError("give --max-side or --min-side, not both: each alone limits the size of an image")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction {self.val_fraction:g}: choose a share between 0 and 1, such as 0.1")
        if self.raw and self.tiles:
            raise ValueError("give --raw or --tiles, not both: raw samples are pixels, and tiles need JPEG files")
        if self.raw and self.half_quality is not None:
            raise ValueError("give --raw or --half, not both: nothing is decoded of raw samples")
        if self.raw and not self.scaled:
            raise ValueError(
                "--raw stores pixels, which takes many times the disk for whole photographs: "
                "give a side too, --min-side 256"
            )
        return self

    def read_from(self, split: SplitName) -> SplitName:
        """The split of the source that a split is made of: train for both if val is held out of it."""
        return split if self.val_fraction is None else "train"

    @property
    def scaled(self) -> bool:
        """Whether larger images are scaled down."""
        return self.max_side is not None or self.min_side is not None

    @property
    def tile_growth_limit(self) -> float:
        """The share by which tiles may make a file larger."""
        return EARLIER_TILE_GROWTH if self.tile_growth is None else self.tile_growth

    @property
    def layout(self) -> Layout:
        """How the samples of a shard are laid out."""
        return Layout(self.shard_size_bytes, raw=self.raw, half=self.half_quality is not None)

    @property
    def form(self) -> StoredForm:
        """How images are stored."""
        return "raw" if self.raw else "tiles" if self.tiles else "file"


_ADDED_LATER = ("classes", "val_fraction", "tile_growth", "half_quality")
"""Keys of `Policy` that datasets of earlier versions do not have."""


class Duplicate(_Frozen):
    """A stored image whose file is identical to that of an earlier image of the split, of any class."""

    key: str
    of: str


class SourceEntry(_Frozen):
    """Where the images came from: the kind of source, its number of images in this split, and the fingerprint of their
    classes, keys and sizes."""

    kind: str
    samples: Count
    fingerprint: str


class Manifest(_Frozen):
    """One split of a dataset."""

    format: Literal[1] = 1
    split: SplitName
    samples: Count
    classes: list[ClassEntry]
    shards: list[ShardInfo]
    left_out: list[LeftOut]
    not_taken: list[NotTaken] = []
    changed: list[Changed]
    scaled: Count
    tiled: Count = 0
    half_bytes: Count = 0
    """Bytes of all half-size copies together."""
    duplicates: list[Duplicate]
    policy: Policy
    source: SourceEntry
    conversion: str
    keys_xxh64: str
    versions: dict[str, str]
    fingerprint: str

    @model_validator(mode="after")
    def _holds_together(self) -> "Manifest":
        if self.fingerprint != content_fingerprint(self.classes, self.shards):
            raise ValueError("its fingerprint does not fit its shards")
        if self.conversion != conversion_fingerprint(self.split, self.source, self.policy):
            raise ValueError("its conversion does not fit its source and policy")
        for what, entries in (("shards", self.shards), ("classes", self.classes)):
            if sum(entry.samples for entry in entries) != self.samples:
                raise ValueError(f"its {what} do not add up to {self.samples} samples")
        return self

    @property
    def classes_fingerprint(self) -> str:
        """Identifies the classes and their order. A model fits every dataset with the same one."""
        return fingerprint([entry.wnid for entry in self.classes])

    @property
    def size_bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.size_bytes for shard in self.shards)


def content_fingerprint(classes: Sequence[ClassEntry], shards: Sequence[ShardInfo]) -> str:
    """Fingerprint the content of a split: its classes in order, and the samples and hash of each shard.

    How the split was made is not part of it.
    """
    return fingerprint(
        {
            "classes": [entry.wnid for entry in classes],
            "shards": [[shard.samples, shard.xxh64] for shard in shards],
        }
    )


def conversion_fingerprint(split: str, source: SourceEntry, policy: Policy) -> str:
    """Fingerprint a conversion. The same split, source and policy always give the same bytes.

    A key that a later version added counts only where it differs from its default, so that a conversion keeps its
    fingerprint from one version to the next.
    """
    added = {name for name in _ADDED_LATER if getattr(policy, name) == Policy.model_fields[name].default}
    policy_fields = policy.model_dump(exclude=added)
    return fingerprint({"split": split, "source": source.model_dump(), "policy": policy_fields})


def read_manifest(split: Storage) -> Manifest:
    """Read the manifest of a complete split.

    Args:
        split: `DATASET/train` or `DATASET/val`.

    Raises:
        UserError: there is no dataset, it is incomplete, or this version cannot read its manifest.
    """
    path, dataset = f"{split.location}/{MANIFEST_BASENAME}", split.parent.location
    try:
        text = split.read(MANIFEST_BASENAME)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(why_no_manifest(split)) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        inside = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path} cannot be read ({inside}: {first['msg']}): "
            f"restore it, or convert again with `imagenet-mds convert SOURCE {dataset} --overwrite`"
        ) from None


def why_no_manifest(split: Storage) -> str:
    """Say why a split has no manifest, and what to do about it."""
    dataset, names = split.parent, split.list_names()
    if KEYS_BASENAME in names and WORK_FOLDER not in names:
        return (
            f"{split.location} has lost its {MANIFEST_BASENAME}: restore it, or convert again with "
            f"`imagenet-mds convert SOURCE {dataset.location} --overwrite`"
        )
    if INDEX_BASENAME in names and WORK_FOLDER not in names:
        return (
            f"{split.location} was not written by imagenet-mds: it has an {INDEX_BASENAME} and no {MANIFEST_BASENAME}; "
            f"convert it with `imagenet-mds convert SOURCE DEST`"
        )
    if MANIFEST_BASENAME in dataset.list_names():
        return f"{dataset.location} is one split: pass the dataset, {dataset.parent.location}"
    if INDEX_BASENAME in dataset.list_names():
        return (
            f"{dataset.location} holds the shards of one split itself: move them into {dataset.location}/train/, and "
            f"those of the other one into {dataset.location}/val/"
        )
    if names and WORK_FOLDER not in names and not any(name.endswith(".mds") for name in names):
        return (
            f"{split.location} is not a converted dataset, it holds {names[0]}: pass the DEST of "
            f"`imagenet-mds convert SOURCE DEST`"
        )
    if names or split.name in dataset.list_names():
        return f"{split.location} is not complete: run the same `imagenet-mds convert` again to finish it"
    make = f"`imagenet-mds convert SOURCE {dataset.location}`"
    if not dataset.list_names() and dataset.name not in dataset.parent.list_names():
        return f"there is no dataset at {dataset.location}: make one with {make}"
    there = [name for name in SPLITS if dataset.child(name).size_bytes(MANIFEST_BASENAME) is not None]
    held = f"it holds {' and '.join(there)}" if there else "it holds no split"
    alone = (
        "; from a source without val, `--val-fraction 0.1` holds a tenth of train out, or train without "
        "validation (evaluation.every_epochs=null)"
        if split.name == "val"
        else ""
    )
    return f"{dataset.location} has no {split.name}/ ({held}): convert it with {make}{alone}"


def read_keys(split: Readable, samples: int | None = None) -> list[str]:
    """Return the source key of each sample of a split, in stored order.

    Args:
        split: a split with a manifest.
        samples: number of samples that its manifest has, to compare the number of keys with; None skips that.

    Raises:
        WorldError: the keys cannot be read, are not UTF-8, or have another number.
    """
    keys: list[str] = []
    try:
        # Not splitlines(), which also splits at other characters than a line feed.
        keys = split.read(KEYS_BASENAME).decode("utf-8").split("\n")[:-1]
        reason = "" if samples in (None, len(keys)) else f"it has {counted(len(keys), 'line')} for {samples:,} samples"
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    if reason:
        raise WorldError(
            f"{split.location}/{KEYS_BASENAME} cannot be used ({reason}): rebuild it with "
            f"`imagenet-mds verify {split.parent.location} --repair SOURCE`"
        )
    return keys
