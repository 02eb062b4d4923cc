"""The official archives as downloaded, in one folder under their own names; nothing is unpacked.

`ILSVRC2012_img_train.tar` is a tar of 1,000 tars, one per class; each is walked by one thread, several at once. On a
disk, only headers are read to list it, 4 KiB per image. In S3 that would take a request per image, so the whole archive
is read there in large pieces. Images are then read by their offsets. Keys are those of the extracted tree, so the same
images give the same shards.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, OfficialFiles, Sample, SourceDefaults
from imagenet_mds_convert.sources.classes import imagenet_names, name_classes, number_classes
from imagenet_mds_convert.sources.devkit import DEVKIT_BASENAME, read_devkit
from imagenet_mds_convert.sources.folders import some, sorted_by_key
from imagenet_mds_convert.sources.names import NotTakenCount
from imagenet_mds_convert.sources.parallel import reads_at_once, run_ahead
from imagenet_mds_convert.sources.ranges import HEADER_AHEAD_BYTES
from imagenet_mds_convert.sources.tars import Member, Where, image_ahead_bytes, member_sample, read_member, walk_tar

TRAIN_BASENAME = "ILSVRC2012_img_train.tar"
VAL_BASENAME = "ILSVRC2012_img_val.tar"
TASK_3_BASENAME = "ILSVRC2012_img_train_t3.tar"
_ARCHIVES: dict[SplitName, str] = {"train": TRAIN_BASENAME, "val": VAL_BASENAME}

OFFICIAL_MD5 = {
    TRAIN_BASENAME: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_BASENAME: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_BASENAME: "fa75699e90414af021442c21a62c3abf",
}
TASK_3_MD5 = "ccaf1013018ac1037801578038d370da"
_READ_FROM: dict[SplitName, tuple[str, ...]] = {"train": (TRAIN_BASENAME,), "val": (DEVKIT_BASENAME, VAL_BASENAME)}

_CLASS_TAR = re.compile(r"(n\d{8})\.tar\Z")
_VAL_NUMBER = re.compile(r"_(\d{8})(?:\.|\Z)")
_LOCAL_THREADS = 4

TASK_3_MISTAKE = (
    "is the archive of task 3 (120 breeds of dogs), often mistaken for the whole: "
    f"download {TRAIN_BASENAME} (138 GB), the training images of tasks 1 and 2"
)


def find_archives(storage: Storage) -> dict[SplitName, str]:
    """The archives of images that are here, by split; the one of task 3 counts as train's, so that it is refused."""
    there = {split: name for split, name in _ARCHIVES.items() if storage.size_bytes(name) is not None}
    if "train" not in there and storage.size_bytes(TASK_3_BASENAME) is not None:
        there["train"] = TASK_3_BASENAME
    return there


@dataclass(frozen=True)
class ArchivesSource(SourceDefaults):
    """A folder of the official archives. A sample's `where` is (archive, offset, size) or the reason not to read it."""

    storage: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "archives"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "ArchivesSource":
        """Read the list of classes from the archive of train, and the labels of val, for the splits that are wanted.

        Raises:
            UserError: an archive or the devkit is missing, wrong or broken, or their classes do not match.
        """
        there = find_archives(storage)
        if not there:
            raise UserError(f"{storage.location} holds neither {TRAIN_BASENAME} nor {VAL_BASENAME}")
        if "train" in splits and there.get("train") == TASK_3_BASENAME:
            raise UserError(f"{storage.location}/{TASK_3_BASENAME} {TASK_3_MISTAKE}")
        splits = tuple(split for split in splits if split in there)
        train = set(_class_tars(storage)) if "train" in splits else set()
        devkit = read_devkit(storage) if "val" in splits else None
        val = set(devkit.val_wnids) if devkit else set()
        if train and (strange := sorted(val - train)):
            raise UserError(
                f"{storage.location}/{TRAIN_BASENAME} lacks classes that val has: {some(strange)}; "
                f"it is not the whole archive: download it again"
            )
        if len(train | val) < 2:
            raise UserError(f"{storage.location} has fewer than two classes: a classifier needs two at least")
        classes = number_classes(train | val)
        # ImageNet's own names take precedence, so that every source gives the same names.
        known = {} if devkit is None else {w: name for w, name in devkit.names.items() if w not in imagenet_names()}
        return cls(storage, classes, name_classes(classes, known), splits)

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.storage)

    def official_files(self, splits: Iterable[SplitName]) -> OfficialFiles:
        """The archives of these splits, and the devkit for val."""
        md5 = {name: OFFICIAL_MD5[name] for split in splits for name in _READ_FROM[split]}
        return OfficialFiles(self.storage, md5, {TASK_3_MD5: TASK_3_MISTAKE})

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key, including members that must not be read (links, devices).

        Raises:
            UserError: there is none, an archive is truncated or broken, or a name occurs twice or has no label.
        """
        count = NotTakenCount()
        found = sorted_by_key(self._train(count) if split == "train" else self._val(count))
        if not found:
            raise UserError(f"{self.storage.location}/{_ARCHIVES[split]} has no images")
        for one, other in pairwise(found):
            if one.key == other.key:
                raise UserError(
                    f"{self.storage.location}/{_ARCHIVES[split]} has {one.key} twice: it is not the official one; "
                    f"download it again, or unpack it and convert the folders"
                )
        return Found(found, count.not_taken())

    def read(self, where: Where) -> bytes:
        """The bytes of a member, by archive, offset and size.

        Raises:
            OSError: the archive cannot be read, or has become shorter.
            Unusable: `where` is the reason not to read it.
        """
        return read_member(self.storage, where)

    def _train(self, count: NotTakenCount) -> Iterator[Sample]:
        tars = _class_tars(self.storage)

        def list_class(label: int, wnid: str) -> tuple[list[Sample], list[Member]]:
            tar = tars[wnid]
            ahead_bytes = image_ahead_bytes(self.storage)
            samples, others = [], []
            for one in walk_tar(self.storage, TRAIN_BASENAME, tar.offset, tar.size_bytes, ahead_bytes, official=True):
                if one.is_image:
                    samples.append(member_sample(TRAIN_BASENAME, wnid, label, one))
                else:
                    others.append(one)
            return samples, others

        calls = (partial(list_class, label, wnid) for label, wnid in enumerate(self.classes) if wnid in tars)
        for listed in run_ahead(calls, max(_LOCAL_THREADS, self.reads_at_once)):
            samples, others = listed()
            for member in others:
                count.count(f"{TRAIN_BASENAME}, in the tar of a class", member.basename, member.name)
            yield from samples

    def _val(self, count: NotTakenCount) -> Iterator[Sample]:
        wnids = read_devkit(self.storage).val_wnids
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        for member in _walk_whole(self.storage, VAL_BASENAME, image_ahead_bytes(self.storage)):
            if not member.is_image:
                count.count(VAL_BASENAME, member.basename, member.name)
                continue
            match = _VAL_NUMBER.search(member.basename)
            number = int(match[1]) if match else 0
            if not 1 <= number <= len(wnids):
                raise UserError(
                    f"{self.storage.location}/{VAL_BASENAME} has {member.name}, and the devkit has labels only "
                    f"for images 1 to {len(wnids):,}: one of the two is not the official one"
                )
            wnid = wnids[number - 1]
            yield member_sample(VAL_BASENAME, wnid, numbers[wnid], member)


def _walk_whole(storage: Storage, name: str, ahead_bytes: int = HEADER_AHEAD_BYTES) -> Iterable[Member]:
    size_bytes = storage.size_bytes(name)
    if size_bytes is None:
        raise UserError(f"{storage.location}/{name} no longer exists")
    return walk_tar(storage, name, 0, size_bytes, ahead_bytes, official=True)


def _class_tars(storage: Storage) -> dict[str, Member]:
    """The tars in the archive of train, by wnid. They are 138 MB apart, so reading ahead gains nothing."""
    where = f"{storage.location}/{TRAIN_BASENAME}"
    found: dict[str, Member] = {}
    for member in _walk_whole(storage, TRAIN_BASENAME):
        match = _CLASS_TAR.match(member.basename)
        if not match:
            raise UserError(f"{where} holds {member.name} where n########.tar should be: it is not the official one")
        if member.refused:
            raise UserError(f"{where} holds {member.name}, {member.refused}: it is not the official one")
        if match[1] in found:
            raise UserError(f"{where} holds {member.name} twice: it is not the official one")
        found[match[1]] = member
    return found
