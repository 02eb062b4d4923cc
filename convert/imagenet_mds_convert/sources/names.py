"""Which files of a source are images, and which files and folders are the system's own."""

import re
from collections import Counter
from collections.abc import Callable

from imagenet_mds.dataset.manifest import NotTaken
from imagenet_mds.vocabulary import SplitName
from imagenet_mds.words import one_line

SPLIT_OF: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
"""The splits by what people call them, in lower case."""

IMAGE_SUFFIXES = frozenset(
    (
        ".apng",
        ".avif",
        ".avifs",
        ".blp",
        ".bmp",
        ".bw",
        ".cur",
        ".dcx",
        ".dds",
        ".dib",
        ".eps",
        ".fit",
        ".fits",
        ".flc",
        ".fli",
        ".ftc",
        ".ftu",
        ".gbr",
        ".gif",
        ".icb",
        ".icns",
        ".ico",
        ".im",
        ".j2c",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpc",
        ".jpe",
        ".jpeg",
        ".jpf",
        ".jpg",
        ".jpx",
        ".mpo",
        ".msp",
        ".pbm",
        ".pcd",
        ".pcx",
        ".pfm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".ps",
        ".psd",
        ".pxr",
        ".qoi",
        ".ras",
        ".rgb",
        ".rgba",
        ".sgi",
        ".tga",
        ".tif",
        ".tiff",
        ".vda",
        ".vst",
        ".webp",
        ".xbm",
        ".xpm",
    )
)
"""The suffixes of the formats that Pillow reads, written out so that no version of it decides what a dataset holds.
Formats that it only names (GRIB, HDF5, MPEG) or reads on another system (WMF) are missing."""

SYSTEM_FOLDERS = frozenset(
    ("lost+found", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX")
)
"""Folders that file systems, NAS devices and archivers put among the user's. Some hold thumbnails."""

_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "icon\r"))

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
MAGIC_BYTES = 12
"""Bytes at the start of a file that tell whether it is an image."""

_TABLES = re.compile(r"(val_annotations|wnids|words|n\d{8}_boxes|LOC_\w+)\.(txt|csv)")
"""Files that come with Tiny-ImageNet and Kaggle's download."""


def is_system_file(name: str) -> bool:
    """Whether a file is hidden or the system's own; it is neither taken nor counted."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden or the system's own; it is not looked into."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot; empty if the name has none."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem and suffix else ""


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image by its suffix."""
    return suffix_of(name) in IMAGE_SUFFIXES and not is_system_file(name)


def is_image(name: str, read_start: Callable[[int], bytes]) -> bool:
    """Whether a file is taken for an image: by its suffix, or by its first bytes if it has none.

    Args:
        name: the file's name.
        read_start: reads that many bytes of it; only called for a name without a suffix.
    """
    if is_system_file(name):
        return False
    if suffix := suffix_of(name):
        return suffix in IMAGE_SUFFIXES
    try:
        start = read_start(MAGIC_BYTES)
    except OSError:
        return True  # so that it is left out by name when it is read, with the reason
    return start.startswith(_MAGIC) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


class NotTakenCount:
    """Counts files that are not taken, by place and suffix."""

    def __init__(self) -> None:
        self._files: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def count(self, place: str, name: str, path: str) -> None:
        """Count a file.

        Args:
            place: the kind of folder that it lies in, such as `train/<class>/`.
            name: its name.
            path: its path within the split, which may serve as the example; of several the first in order does.
        """
        if is_system_file(name) or _TABLES.fullmatch(name):
            return
        key = (place, suffix_of(name))
        self._files[key] += 1
        self._examples[key] = min(path, self._examples.get(key, path))

    def add(self, other: "NotTakenCount") -> None:
        """Add what another one counted."""
        self._files += other._files
        for key, path in other._examples.items():
            self._examples[key] = min(path, self._examples.get(key, path))

    def not_taken(self) -> tuple[NotTaken, ...]:
        """What was counted, sorted by place and suffix."""
        return tuple(
            NotTaken(place=place, suffix=suffix, files=files, example=_printable(self._examples[place, suffix]))
            for (place, suffix), files in sorted(self._files.items())
        )


def _printable(path: str) -> str:
    return one_line(path.encode("utf-8", "backslashreplace").decode())
