"""What a source of images is to the converter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from imagenet_mds.dataset.manifest import NotTaken
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SourceKind, SplitName

Track = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of one activity. Takes what is done, the number of units and the unit's plural; the context
manager yields a function to call with the number of units done since the last call."""


@contextmanager
def untracked(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A `Track` that shows nothing."""
    yield lambda units: None


@dataclass(frozen=True, slots=True)
class Sample:
    """One source image: its key within the split (`<class>/<file>`), its class number, its size in bytes, and `where`
    its bytes are, in plain values that the source's `read` takes."""

    key: str
    label: int
    size_bytes: int
    where: Any = None


@dataclass(frozen=True)
class Found:
    """What a source has of a split: its images, sorted by key, and the files beside them that are not taken."""

    samples: list[Sample]
    not_taken: tuple[NotTaken, ...] = ()


class ImageFile(Protocol):
    """Where a `Gatherer` puts images; see `gathered.Gathering`."""

    def put(self, data: bytes | memoryview) -> tuple[int, int]:
        """Write an image and return its place."""


class Gatherer(Protocol):
    """Copies many images at once, for a source in which reading one costs reading its whole group."""

    def group_of(self, sample: Sample) -> Hashable:
        """The group that a sample is in."""

    def gather(self, samples: Sequence[Sample], file: ImageFile, track: Track) -> Mapping[Any, tuple[int, int]]:
        """Copy the images of these samples into a file. Each group that has one is read once.

        Returns:
            The new place of each image by its `where`.

        Raises:
            UserError: the source cannot be read.
            OSError: the file cannot be written.
        """


class Reader(Protocol):
    """The part of a source that a shard task needs."""

    @property
    def reads_at_once(self) -> int:
        """Number of concurrent reads, in threads, while a shard is made: 1 where no read waits for a network."""

    def read(self, where: Any) -> bytes:
        """The bytes of the image at a sample's `where`.

        Raises:
            OSError: it cannot be read. If the errno concerns this image alone, the image is left out; any other errno
                stops the conversion.
            Unusable: it must not be read (a link in an archive); it is left out with the message as the reason.
        """


class Source(Reader, Protocol):
    """Lists its samples without reading a pixel, and reads any one of them at random.

    It is pickled with every shard task, so it holds no open file and no list of samples. `SourceDefaults` has the
    methods that most sources do not need.
    """

    @property
    def kind(self) -> SourceKind:
        """The layout, as recorded in the manifest."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class folder names (wnids) in the order of their numbers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names for people, in the same order."""

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that were asked for and are here."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about this source, one line each."""

    @property
    def drawn(self) -> bool:
        """Whether its images are not files but are drawn by `read`. All of them become JPEG; `warnings` says so once,
        and none is listed as an exception."""

    @property
    def gatherer(self) -> Gatherer | None:
        """Copies many images at once, where reading one costs reading many; None where single reads are cheap."""

    def fetch(self, split: SplitName, track: Track = untracked) -> None:
        """Download what `samples` and `read` need of a split, where files are not read in place.

        Raises:
            UserError: the user's access or disk does not suffice.
            WorldError: a file cannot be downloaded.
        """

    def find(self, split: SplitName) -> Found:
        """What there is of the split, which must have been fetched.

        Raises:
            UserError: it has no image.
        """

    def samples(self, split: SplitName) -> list[Sample]:
        """The images of `find`."""

    def of(self, split: SplitName) -> "Source":
        """The source of this split alone, for its shard tasks; another object only where two layouts are mixed."""

    def official_files(self, splits: Iterable[SplitName]) -> "OfficialFiles | None":
        """The files that these splits are read from, with their official checksums; None where none are known."""


@dataclass(frozen=True)
class OfficialFiles:
    """Files whose official content is known: where they are, and the MD5 sum of each, by name. `mistaken` maps the MD5
    sums of files that are often taken for them to the rest of a message about it."""

    storage: Storage
    md5: Mapping[str, str]
    mistaken: Mapping[str, str] = field(default_factory=dict)


_Self = TypeVar("_Self")


class SourceDefaults(ABC):
    """The methods of a source that is read in place, has one layout and no official checksums."""

    @property
    def gatherer(self) -> Gatherer | None:
        """None: single reads are cheap."""
        return None

    @abstractmethod
    def find(self, split: SplitName) -> Found:
        """See `Source.find`."""

    def samples(self, split: SplitName) -> list[Sample]:
        """The images of `find`."""
        return self.find(split).samples

    def of(self: _Self, split: SplitName) -> _Self:
        """The source itself."""
        return self

    def fetch(self, split: SplitName, track: Track = untracked) -> None:  # noqa: B027 # most need nothing else
        """Do nothing: files are read in place."""

    def official_files(self, splits: Iterable[SplitName]) -> OfficialFiles | None:
        """None: no official checksums are known."""
        return None


MAX_FILE_BYTES = 1 << 28
"""Longer files are left out unread. The largest image kept is 400 MB before compression, and no JPEG of that many
pixels comes near this size."""


class Unusable(Exception):  # noqa: N818 # it describes the image, not an error of the program
    """An image that is left out. The message is the reason that the report gives."""
