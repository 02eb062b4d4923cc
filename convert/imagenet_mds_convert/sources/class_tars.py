"""A folder of class tars, `n01440764.tar` and so on: ImageNet-21k as it is distributed, or the archive of train after
its first unpacking. They lie in `train/` or `val/`, or in the folder itself, which is train then.

Nothing is unpacked: headers are walked, and images are read by their offsets. Keys are those of the extracted tree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, Sample, SourceDefaults
from imagenet_mds_convert.sources.beside import count_in_root, count_in_split, note_unused_folders
from imagenet_mds_convert.sources.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.sources.folders import find_listing, folders_in, some, sorted_by_key
from imagenet_mds_convert.sources.names import NotTakenCount
from imagenet_mds_convert.sources.parallel import reads_at_once, run_ahead
from imagenet_mds_convert.sources.tables import read_synset_names
from imagenet_mds_convert.sources.tars import Member, Where, image_ahead_bytes, member_sample, read_member, walk_tar
from imagenet_mds_convert.sources.tree import find_tree, needed_for_classes

_CLASS_TAR = re.compile(r"(n\d{8})\.tar\Z")
_LOCAL_THREADS = 4


def find_class_tars(storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> dict[SplitName, Storage]:
    """The folders that hold class tars of these splits, by split.

    Raises:
        UserError: a split has two folders, or a folder cannot be listed.
    """
    found = {split: folder for split, folder in find_tree(storage, splits).items() if _tars_in(folder)}
    if "train" in splits and "train" not in found and _tars_in(storage):
        found["train"] = storage
    return {split: found[split] for split in SPLITS if split in found}


def _tars_in(folder: Storage) -> list[str]:
    """The wnids of the class tars in a folder, sorted."""
    listing = find_listing(folder)
    names = (_CLASS_TAR.match(entry.name) for entry in listing.files) if listing else ()
    return sorted(match[1] for match in names if match)


@dataclass(frozen=True)
class ClassTarsSource(SourceDefaults):
    """Folders of class tars. A sample's `where` is (tar, offset, size) under the root, or the reason not to read it."""

    storage: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    wnids: Mapping[SplitName, tuple[str, ...]] = field(default_factory=dict, hash=False)
    prefixes: Mapping[SplitName, str] = field(default_factory=dict, hash=False)
    not_taken: Mapping[SplitName, NotTakenCount] = field(default_factory=dict, compare=False, repr=False)
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "class-tars"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "ClassTarsSource":
        """List the tars.

        Raises:
            UserError: there are none, some classes are unpacked already, there are fewer than two, or val has a class
                that train lacks.
        """
        folders = find_class_tars(storage, needed_for_classes(splits))
        if not folders:
            raise UserError(f"{storage.location} has no tars of classes (n########.tar), here or in train/ or val/")
        wnids = {split: tuple(_tars_in(folder)) for split, folder in folders.items()}
        wanted = tuple(split for split in splits if split in folders)
        for split in wanted:
            unpacked = sorted(name for name in folders_in(folders[split]) or () if WNID.match(name))
            if unpacked:
                raise UserError(
                    f"{folders[split].location} has {len(wnids[split]):,} classes as tars and {len(unpacked):,} as "
                    f"folders ({some(unpacked)}): unpack the rest and remove the tars, or remove the folders"
                )
        if len(wnids) == 2 and (strange := sorted(set(wnids["val"]) - set(wnids["train"]))):
            raise UserError(f"{folders['val'].location} has classes that train lacks: {some(strange)}")
        names = set().union(*wnids.values())
        if len(names) < 2:
            raise UserError(f"{storage.location} has fewer than two classes: a classifier needs two at least")
        classes = number_classes(names)
        prefixes = {split: "" if folder == storage else f"{folder.name}/" for split, folder in folders.items()}
        beside = {split: NotTakenCount() for split in wanted}
        notes = note_unused_folders(storage)
        in_root = {f"{wnid}.tar" for split in wanted if not prefixes[split] for wnid in wnids[split]}
        notes += count_in_root(storage, "./", in_root, beside, splits)
        for split, folder in find_tree(storage, wanted).items():
            count_in_split(folder, {f"{wnid}.tar" for wnid in wnids[split] if prefixes[split]}, beside[split])
        names_for_people, unread = read_synset_names(storage)
        return cls(
            storage,
            classes,
            name_classes(classes, names_for_people),
            wanted,
            wnids,
            prefixes,
            beside,
            tuple(notes + unread),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the counts of what is not taken, which a shard task does not need."""
        return vars(self) | {"not_taken": {}}

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.storage)

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key, including members that must not be read (links, devices).

        Raises:
            UserError: there is none, a tar is truncated or broken, or a name occurs twice in it.
        """
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        prefix, count = self.prefixes[split], NotTakenCount()
        count.add(self.not_taken[split])
        calls = (partial(self._list_class, f"{prefix}{wnid}.tar") for wnid in self.wnids[split])
        samples: list[Sample] = []
        for wnid, listed in zip(
            self.wnids[split], run_ahead(calls, max(_LOCAL_THREADS, self.reads_at_once)), strict=True
        ):
            tar = f"{prefix}{wnid}.tar"
            for member in listed():
                if member.is_image:
                    samples.append(member_sample(tar, wnid, numbers[wnid], member))
                else:
                    count.count("<class>.tar", member.basename, f"{wnid}/{member.name}")
        found = sorted_by_key(samples)
        if not found:
            raise UserError(f"{self.storage.location}: the tars of {split} have no images")
        for one, other in pairwise(found):
            if one.key == other.key:
                raise UserError(f"{self.storage.location} has {one.key} twice in one tar: unpack it and look")
        return Found(found, count.not_taken())

    def _list_class(self, name: str) -> list[Member]:
        size_bytes = self.storage.size_bytes(name)
        if size_bytes is None:
            raise UserError(f"{self.storage.location}/{name} no longer exists")
        return list(walk_tar(self.storage, name, 0, size_bytes, image_ahead_bytes(self.storage)))

    def read(self, where: Where) -> bytes:
        """The bytes of a member, by tar, offset and size.

        Raises:
            OSError: the tar cannot be read, or has become shorter.
            Unusable: `where` is the reason not to read it.
        """
        return read_member(self.storage, where)
