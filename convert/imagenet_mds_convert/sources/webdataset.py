"""WebDataset's tars, such as `timm/imagenet-1k-wds`: `imagenet1k-train-0000.tar`, `imagenet1k-validation-00.tar`, or
any tars in `train/` and `val/`. A sample is the members with one name up to the first dot: `n01440764_10026.jpg` and
`n01440764_10026.cls`, the class number or name as text.

Nothing is unpacked: headers and labels are read, and images by their offsets.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, Sample, SourceDefaults
from imagenet_mds_convert.sources.beside import count_in_root, count_in_split, note_unused_folders
from imagenet_mds_convert.sources.classes import imagenet_names, name_classes
from imagenet_mds_convert.sources.folders import find_listing, folders_in, some, sorted_by_key
from imagenet_mds_convert.sources.names import SPLIT_OF, NotTakenCount, is_image_name
from imagenet_mds_convert.sources.parallel import reads_at_once, run_ahead
from imagenet_mds_convert.sources.tars import Member, Where, image_ahead_bytes, read_member, walk_tar
from imagenet_mds_convert.sources.tree import find_tree

_TAR = re.compile(rf"(?:.*[-_.])?({'|'.join(SPLIT_OF)})[-_.]?\d+\.tar\Z", re.IGNORECASE)
_ANY_TAR = re.compile(r"(?!n\d{8}\.tar).*\d\.tar\Z")
_IMAGENET_BASE = re.compile(r"(n\d{8})_\d+\Z")
_IMAGENET_VAL = re.compile(r"ILSVRC2012_val_\d{8}\Z")
_LABEL_SUFFIX = ".cls"
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_MOST_CLASSES = 1_000_000
"""Class numbers are below this; ImageNet-21k has 21,841 classes."""
_COMPANIONS = frozenset(("cls", "json", "txt", "key", "__key__", "id", "wnid"))
_LOCAL_THREADS = 4


def find_webdataset(storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> dict[SplitName, Storage]:
    """Where the tars of each of these splits are: the folder itself, or its `train/` and `val/`.

    Raises:
        UserError: a split has two folders, or a folder cannot be listed.
    """
    return {split: folder for split, (folder, _) in _find(storage, splits).items()}


def _find(storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> dict[SplitName, tuple[Storage, tuple[str, ...]]]:
    """The folder and the names, under the root, of the tars of each split."""
    here: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    listing = find_listing(storage)
    for entry in listing.files if listing else ():
        if match := _TAR.match(entry.name):
            here[SPLIT_OF[match[1].lower()]].append(entry.name)
    found: dict[SplitName, tuple[Storage, tuple[str, ...]]] = {
        split: (storage, tuple(sorted(names))) for split, names in here.items() if names and split in splits
    }
    for split, folder in find_tree(storage, splits).items():
        below = find_listing(folder)
        names = sorted(entry.name for entry in below.files if _ANY_TAR.match(entry.name)) if below else []
        # Beside class folders, a tar is somebody's backup.
        if names and split not in found and not folders_in(folder):
            found[split] = (folder, tuple(f"{folder.name}/{name}" for name in names))
    return found


@dataclass(frozen=True)
class _Image:
    """An image in a tar: its name up to the first dot, its label as text, and its member."""

    tar: str
    base: str
    label: str
    member: Member


@dataclass(frozen=True)
class WebDatasetSource(SourceDefaults):
    """Tars of images and labels. A sample's `where` is (tar, offset, size) under the root, or why not to read it."""

    storage: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "webdataset"
    drawn: bool = False
    found: Mapping[SplitName, Found] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "WebDatasetSource":
        """Walk the tars of the splits. The other split is walked too, if classes are not ImageNet's, to number them.

        Raises:
            UserError: there are none, a tar is broken, an image has no label, its name and label contradict each other,
                or a name occurs twice.
        """
        tars = {split: names for split, (_, names) in _find(storage, splits).items()}
        if not tars:
            raise UserError(f"{storage.location} has no tars of train or val, such as imagenet1k-train-0000.tar")
        wanted = tuple(split for split in splits if split in tars)
        counts = {split: NotTakenCount() for split in tars}
        images = {split: _list(storage, tars[split], counts[split]) for split in wanted}
        classes = _imagenet_classes(storage, [one for listed in images.values() for one in listed])
        if classes is None:
            unasked = [names for split, (_, names) in _find(storage).items() if split not in images]
            others = [_list(storage, names, NotTakenCount()) for names in unasked]
            classes = _own_classes(storage, [one for listed in (*images.values(), *others) for one in listed])
        if len(images) == 2:
            train, val = ({one.label for one in images[split]} for split in SPLITS)
            # A number says which class it is even if train has no image of it.
            if (strange := sorted(val - train)) and not all(label.isdecimal() for label in train | val):
                raise UserError(
                    f"{storage.location} has classes in val that train lacks: {some(strange)}; a class number would be "
                    f"ambiguous, so make the labels agree"
                )
        if len(classes) < 2:
            raise UserError(f"{storage.location} has fewer than two classes: a classifier needs two at least")
        notes = note_unused_folders(storage)
        opened = {split: counts[split] for split in wanted}
        notes += count_in_root(storage, "./", {name for names in tars.values() for name in names}, opened, splits)
        for split, folder in find_tree(storage, wanted).items():
            taken = {name.removeprefix(f"{folder.name}/") for name in tars[split] if "/" in name}
            count_in_split(folder, taken, counts[split])
        found = {split: _number(storage, images[split], classes, counts[split]) for split in wanted}
        return cls(storage, classes, name_classes(classes, {}), wanted, tuple(notes), found=found)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the listing: a shard task carries the samples that it needs."""
        return vars(self) | {"found": {}}

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.storage)

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key, as `open` found it."""
        return self.found[split]

    def read(self, where: Where) -> bytes:
        """The bytes of a member, by tar, offset and size.

        Raises:
            OSError: the tar cannot be read, or has become shorter.
            Unusable: `where` is the reason not to read it.
        """
        return read_member(self.storage, where)


def _list(storage: Storage, tars: Iterable[str], count: NotTakenCount) -> list[_Image]:
    """The images of tars, in stored order."""
    images: list[_Image] = []
    calls = (partial(_list_tar, storage, tar) for tar in tars)
    for listed in run_ahead(calls, max(_LOCAL_THREADS, reads_at_once(storage))):
        found, others = listed()
        images += found
        for tar, name in others:
            folder, slash, _ = tar.rpartition("/")
            count.count(f"{folder}{slash}*.tar", name.rpartition("/")[2], name)
    return images


def _list_tar(storage: Storage, tar: str) -> tuple[list[_Image], list[tuple[str, str]]]:
    """The images of a tar, and (tar, name) of the members that belong to none."""
    size_bytes = storage.size_bytes(tar)
    if size_bytes is None:
        raise UserError(f"{storage.location}/{tar} no longer exists")
    where = f"{storage.location}/{tar}"
    pictures: dict[str, Member] = {}
    labels: dict[str, str] = {}
    others: list[tuple[str, Member]] = []
    for member in walk_tar(storage, tar, 0, size_bytes, image_ahead_bytes(storage), contents_of=_LABEL_SUFFIX):
        folder, slash, basename = member.name.removeprefix("./").rpartition("/")
        stem, _, suffix = basename.partition(".")
        base = f"{folder}{slash}{stem}"
        if suffix.lower() == "cls":
            label = _label(where, member)
            if labels.setdefault(base, label) != label:
                raise UserError(f"{where} has two labels of {base}, {labels[base]!r} and {label!r}: which is wrong?")
        elif _is_image(member, suffix):
            if base in pictures:
                raise UserError(f"{where} has {member.name} and {pictures[base].name}: keep one")
            pictures[base] = member
        else:
            others.append((base, member))
    for base in pictures.keys() - labels.keys():
        raise UserError(
            f"{where} has {pictures[base].name} without a label ({base}.cls): only tars with class labels can be "
            f"converted"
        )
    images = [_Image(tar, base, labels[base], member) for base, member in pictures.items()]
    strays = [
        (tar, member.name)
        for base, member in others
        if base not in pictures or member.basename.partition(".")[2].lower() not in _COMPANIONS
    ]
    return images, strays


def _is_image(member: Member, suffix: str) -> bool:
    """Whether a member is taken for an image, by what its name has behind the first dot, or by its first bytes."""
    if member.basename.startswith("."):
        return False
    return is_image_name(f"x.{suffix}") if suffix else member.is_image


def _label(tar: str, member: Member) -> str:
    """The text of a label; a class number that was written with a decimal point without it.

    Raises:
        UserError: it is no number in the range of class numbers, and no name that could be a folder's.
    """
    text = member.content.decode("utf-8", "replace").strip()
    is_number = _NUMBER.fullmatch(text) is not None
    if is_number and 0 <= (number := float(text)) < _MOST_CLASSES and number.is_integer():
        return str(int(number))
    if is_number or not text or not text.isprintable() or "/" in text or "\ufffd" in text or text in (".", ".."):
        raise UserError(f"{tar}: {member.name} holds {text[:40]!r}, which is no class number or name")
    return text


def _imagenet_classes(storage: Storage, images: Iterable[_Image]) -> tuple[str, ...] | None:
    """ImageNet's 1,000 wnids if the images' names are ImageNet's, else None.

    Raises:
        UserError: a name and its label contradict each other.
    """
    wnids = tuple(imagenet_names())
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    any_image = False
    for image in images:
        any_image = True
        match = _IMAGENET_BASE.match(image.base.rpartition("/")[2])
        if match is None and not _IMAGENET_VAL.match(image.base.rpartition("/")[2]):
            return None
        if match and match[1] not in numbers:
            return None
        number = numbers.get(image.label, int(image.label) if image.label.isdecimal() else -1)
        if not 0 <= number < len(wnids) or (match and numbers[match[1]] != number):
            raise UserError(
                f"{storage.location}/{image.tar}: {image.base} has label {image.label!r}, which is not ImageNet's "
                f"class of that image"
            )
    return wnids if any_image else None


def _own_classes(storage: Storage, images: Iterable[_Image]) -> tuple[str, ...]:
    """The classes of other labels: all numbers up to the largest, or the names, sorted.

    Raises:
        UserError: some are numbers, and some are not.
    """
    first = {image.label: image for image in images}
    found = set(first)
    names = sorted(label for label in found if not (label.isascii() and label.isdecimal()))
    if names and len(names) < len(found):
        strange = first[names[0]]
        raise UserError(
            f"{storage.location}/{strange.tar}: {strange.base} has label {strange.label!r}, and others have numbers: "
            f"which is wrong?"
        )
    if not names:
        return tuple(str(number) for number in range(max(map(int, found), default=-1) + 1))
    return tuple(sorted(found))


def _number(storage: Storage, images: Sequence[_Image], classes: tuple[str, ...], count: NotTakenCount) -> Found:
    """The images as samples, sorted by key."""
    numbers = {name: number for number, name in enumerate(classes)}
    samples = []
    for image in images:
        label = numbers[image.label] if image.label in numbers else int(image.label)
        key, member = f"{classes[label]}/{image.member.name.removeprefix('./')}", image.member
        where = member.refused or (image.tar, member.offset, member.size_bytes)
        samples.append(Sample(key, label, 0 if member.refused else member.size_bytes, where))
    found = sorted_by_key(samples)
    if not found:
        raise UserError(f"{storage.location}: its tars have no images")
    for one, other in pairwise(found):
        if one.key == other.key:
            base = one.key.partition("/")[2].partition(".")[0]
            tars = " and in ".join(image.tar for image in images if image.base == base)
            raise UserError(f"{storage.location} has {one.key} twice, in {tars}")
    return Found(found, count.not_taken())
