"""What a source of images is to the converter."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One source image: its key within the split (`<class>/<file>`), its class number, its size in bytes."""

    key: str
    label: int
    size_bytes: int


class Source(Protocol):
    """Lists its samples without reading a pixel, and reads any one of them by its key.

    It is pickled into the workers, so it holds no open file.
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

    def samples(self, split: str) -> list[Sample]:
        """Every image of the split, sorted by key.

        Raises:
            UserError: there is none.
        """

    def read(self, split: str, key: str) -> bytes:
        """The bytes of one image.

        Raises:
            OSError: it cannot be read; the converter leaves the image out and says why.
        """
