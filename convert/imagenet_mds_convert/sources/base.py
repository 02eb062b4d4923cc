"""What a source of images is to the converter."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """One source image: its key within the split (`<class>/<file>`), its class number, its size in bytes, and where its
    bytes are, in plain values that the source's `read` takes."""

    key: str
    label: int
    size_bytes: int
    where: Any = None


class Source(Protocol):
    """Lists its samples without reading a pixel, and reads any one of them at random.

    It is pickled with every shard task, so it holds no open file and no list of samples.
    """

    @property
    def kind(self) -> str:
        """The layout's name, as the manifest has it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class folder names (wnids) in the order of their numbers."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names for people, in the same order."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that this source has."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of this source, a line each."""

    @property
    def drawn(self) -> bool:
        """Whether its pictures are no files but drawn by `read`: all are turned into JPEG, which the notes say once,
        and none is listed as an exception."""

    @property
    def reads_at_once(self) -> int:
        """How many reads are under way at once, in threads, while a shard is made: 1 where none waits for a network."""

    def samples(self, split: str) -> list[Sample]:
        """Every image of the split, sorted by key.

        Raises:
            UserError: there is none.
        """

    def read(self, where: Any) -> bytes:
        """The bytes of the image at a sample's `where`.

        Raises:
            OSError: it cannot be read; with an errno of the image's own it is left out, else the conversion stops.
            Unusable: it is not to be read (a link in an archive); it is left out with the message as the reason.
        """


MAX_FILE_BYTES = 1 << 28
"""Longer files are left out without reading them: as many pixels as are kept are 400 MB before any compression, and no
JPEG of them is near this."""


class Unusable(Exception):  # noqa: N818 # it says what the image is, not what the program did wrong
    """An image that is left out; the message is the reason, as the report gives it."""
