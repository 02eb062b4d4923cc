"""The numbers of classes, and their names for people.

The class number of an ImageNet image is the position of its wnid among the 1,000 sorted wnids of ILSVRC2012, even when
a source lacks some of them, so a model trained on some classes predicts the same numbers as one trained on all. Devkit
ids follow another order and are never used as class numbers. Two names stand for two wnids each (crane, maillot), so
nothing is keyed by name.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

WNID = re.compile(r"n\d{8}\Z")


@cache
def imagenet_names() -> dict[str, str]:
    """The 1,000 wnids in class order, each with its name (the first lemma of its WordNet synset)."""
    lines = (
        files("imagenet_mds_convert.sources").joinpath("imagenet_classes.txt").read_text(encoding="ascii").splitlines()
    )
    return {line[:9]: line[10:] for line in lines}


def number_classes(folders: Iterable[str]) -> tuple[str, ...]:
    """Class folder names in the order of their numbers.

    Args:
        folders: the names of the source's class folders.

    Returns:
        All 1,000 wnids if every folder is one of them, else the folders, sorted.
    """
    found = set(folders)
    wnids = imagenet_names()
    return tuple(wnids) if found <= wnids.keys() else tuple(sorted(found))


def name_classes(classes: Iterable[str], known: dict[str, str]) -> tuple[str, ...]:
    """Names for people: the source's own, else WordNet's, else the class itself."""
    return tuple(known.get(name) or imagenet_names().get(name, name) for name in classes)
