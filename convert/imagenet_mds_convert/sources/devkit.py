"""ImageNet's development kit, `ILSVRC2012_devkit_t12.tar.gz`: the labels of the validation images.

Both of its files use ILSVRC2012 ids, whose order is not that of the wnids. They are translated into wnids here and used
nowhere else.
"""

import io
import tarfile
from dataclasses import dataclass
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.classes import WNID

DEVKIT_BASENAME = "ILSVRC2012_devkit_t12.tar.gz"
_META = "data/meta.mat"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_MOST_BYTES = 1 << 26
"""Size limit of either file; they have 44 KB and 186 KB."""


@dataclass(frozen=True)
class Devkit:
    """`val_wnids[n - 1]` is the wnid of validation image n; `names` maps a wnid to its first lemma."""

    val_wnids: tuple[str, ...]
    names: dict[str, str]


def read_devkit(storage: Storage) -> Devkit:
    """Read the labels from the devkit beside the archives.

    Raises:
        UserError: it is missing or malformed.
    """
    where = f"{storage.location}/{DEVKIT_BASENAME}"
    try:
        archive = storage.read(DEVKIT_BASENAME)
        contents = _contents(archive)
        synsets = _leaves(contents[_META])
        ids = [int(line) for line in contents[_GROUND_TRUTH].decode("ascii").split()]
        wnids = {number: wnid for number, (wnid, _) in synsets.items()}
        return Devkit(tuple(wnids[number] for number in ids), dict(synsets.values()))
    except FileNotFoundError:
        raise UserError(
            f"{where} is missing, and val has no labels without it: download it, or pass `--split train`"
        ) from None
    except KeyError as error:
        raise UserError(f"{where} is not the official one, it has no {error}: download it again") from None
    except MemoryError:
        raise
    except Exception as error:  # scipy, tarfile and zlib each raise errors of their own
        raise UserError(f"{where} cannot be read ({error}): download it again") from None


def _contents(archive: bytes) -> dict[str, bytes]:
    """The content of the two files that are needed, by the ends of their paths."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for info in tar:
            for name in (_META, _GROUND_TRUTH):
                if info.name.endswith(f"/{name}") and info.isreg() and info.size <= _MOST_BYTES:
                    file = tar.extractfile(info)
                    assert file is not None  # it is a regular file
                    found[name] = file.read()
    return found


def _leaves(meta: bytes) -> dict[int, tuple[str, str]]:
    """ILSVRC2012 id to (wnid, first lemma) for each class, which is a synset without children."""
    import numpy as np
    from scipy.io import loadmat  # takes a tenth of a second, and only val needs it

    leaves: dict[int, tuple[str, str]] = {}
    synset: Any
    for synset in np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]):
        if int(synset["num_children"]) == 0:
            wnid = str(synset["WNID"])
            if not WNID.match(wnid):
                raise ValueError(f"{wnid!r} is not a wnid")
            leaves[int(synset["ILSVRC2012_ID"])] = (wnid, str(synset["words"]).split(",")[0].strip())
    return leaves
