"""Two splits from two layouts in one folder: an extracted `train/` beside the archive of val, for example."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imagenet_mds.errors import UserError
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, Gatherer, OfficialFiles, Sample, Source, Track, untracked


@dataclass(frozen=True)
class MixedSource:
    """A source for each split. Shard tasks get that of their split."""

    parts: Mapping[SplitName, Source]

    @classmethod
    def of_parts(cls, location: str, parts: Mapping[SplitName, Source]) -> "MixedSource":
        """Put the parts together.

        Args:
            location: what the user typed.
            parts: a source for each split, each opened for that split alone.

        Raises:
            UserError: their classes differ.
        """
        kinds = {source.classes: split for split, source in parts.items()}
        if len(kinds) > 1:
            described = " and ".join(
                f"{split} ({source.kind}) {len(source.classes):,}" for split, source in parts.items()
            )
            raise UserError(
                f"{location} has its splits in two layouts whose classes differ: {described}; convert each with "
                f"`--split` into a dataset of its own, or make the classes agree"
            )
        return cls(parts)

    @property
    def _first(self) -> Source:
        return next(iter(self.parts.values()))

    @property
    def kind(self) -> SourceKind:
        """The layout of the first split; a manifest records that of its own."""
        return self._first.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, which all parts have."""
        return self._first.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names for people."""
        return self._first.class_names

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits."""
        return tuple(split for split in SPLITS if split in self.parts)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of each part, and where each split comes from."""
        kinds = ", ".join(f"{split} from {source.kind}" for split, source in self.parts.items())
        notes = [f"the splits come from two layouts: {kinds}"]
        return tuple(dict.fromkeys(notes + [note for source in self.parts.values() for note in source.warnings]))

    @property
    def drawn(self) -> bool:
        """Whether any part is drawn; a shard task asks its own part."""
        return any(source.drawn for source in self.parts.values())

    @property
    def gatherer(self) -> Gatherer | None:
        """None: `of` gives the part, which may have one."""
        return None

    @property
    def reads_at_once(self) -> int:
        """That of the first part; a shard task asks its own part."""
        return self._first.reads_at_once

    def of(self, split: SplitName) -> Source:
        """The source of a split."""
        return self.parts[split]

    def fetch(self, split: SplitName, track: Track = untracked) -> None:
        """See `Source.fetch`."""
        self.parts[split].fetch(split, track)

    def find(self, split: SplitName) -> Found:
        """See `Source.find`."""
        return self.parts[split].find(split)

    def samples(self, split: SplitName) -> list[Sample]:
        """See `Source.samples`."""
        return self.parts[split].samples(split)

    def read(self, where: object) -> bytes:
        """Refuse, because a place does not say which part it is in; `of` gives the part, which reads.

        Raises:
            TypeError: always.
        """
        raise TypeError("a place does not say which part it is in: read from `of(split)`")

    def official_files(self, splits: Iterable[SplitName]) -> OfficialFiles | None:
        """The files of the parts that have official checksums; None if no part has."""
        files = [found for split in splits if (found := self.parts[split].official_files([split]))]
        if not files:
            return None
        md5 = {name: wanted for one in files for name, wanted in one.md5.items()}
        return OfficialFiles(files[0].storage, md5, {key: text for one in files for key, text in one.mistaken.items()})
