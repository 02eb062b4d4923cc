"""Everything that touches the inside of mosaicml-streaming 0.13.0, each with the defect that it works around.

The library decides the sample order and keeps the place to resume at. Samples are read and shards fetched here, because
the library's own threads wait for each other in steps of 7 ms, end an epoch early and silently after an error, hang all
processes where a shard is unavailable, and keep the numbers of every epoch's samples in memory.

Private names used here and nowhere else: `shared.prefix._each_prefix_int`; of `StreamingDataset`, `_get_work`,
`_resume_incr_epoch`, `_unique_rank_world`, `_parallel_rank_world` and what an iteration makes of these two. Tests fail
when their behaviour changes.
"""

import bisect
import contextlib
import multiprocessing.util
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import streaming.base.shared.prefix as streaming_prefix
from numpy.typing import NDArray
from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.format import Reader
from streaming.base.format.mds.reader import MDSReader
from streaming.base.world import World

from imagenet_mds.dataset.manifest import read_keys
from imagenet_mds.dataset.mds import (
    HALF_COLUMN,
    IMAGE_COLUMN,
    LABEL_COLUMN,
    ShardInfo,
    read_cells,
)
from imagenet_mds.dataset.prefetch import Need, Prefetcher
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.dataset.stock_shards import decode_label
from imagenet_mds.errors import CommandError, UserError, WorldError
from imagenet_mds.jpeg.decoder_messages import decoder_reason
from imagenet_mds.process.attempt import BASE_VARIABLE, SHARED_MEMORY, attempt
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.storage.retry import EVICTED_SHARD_DOWNLOADS
from imagenet_mds_train.config.data import OrderConfig


def use_own_blocks() -> None:
    """Number this process's shared memory blocks from the base of its attempt, so that they never collide with another
    job's.

    The library counts from 0 in every job; blocks of a killed job stay, and two jobs that start together share them.
    It opens each block that exists to find a free number, and keeps it open until the process ends: the hundredth
    dataset of a process would take four hundred files. So numbers in use are left out.
    """
    base = int(os.environ[BASE_VARIABLE])

    def each_prefix() -> Iterator[int]:
        number = base
        while True:
            if not any(SHARED_MEMORY.glob(f"{number}_*")):
                yield number
            number += 1

    streaming_prefix._each_prefix_int = each_prefix


@contextlib.contextmanager
def own_resources() -> Iterator[None]:
    """Let this process use streaming datasets with shared memory and lock files of its own, removed at the end."""
    # multiprocessing keeps a folder until the process ends, which must not lie in one that is removed earlier.
    multiprocessing.util.get_temp_dir()
    before, folder_before = os.environ.copy(), tempfile.tempdir
    with attempt() as mine:
        os.environ.update(mine.environment())
        tempfile.tempdir = str(mine.temporary)
        use_own_blocks()
        try:
            yield
        finally:
            tempfile.tempdir = folder_before
            for name in mine.environment():
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]


_View = TypeVar("_View")


class Undecodable(WorldError):  # noqa: N818 # what the sample is
    """A stored sample does not decode. The message carries everything, because a worker passes it to its rank as
    text."""


FETCHES_ON_A_HOST = 16
"""Shards that all processes of a machine together fetch at once: one connection to S3 brings some 80 MB/s, and an
instance's network more than ten times that."""


class StoredImage(NamedTuple):
    """The stored bytes of a sample's image, and of its half-size copy, which are empty if it has none."""

    image: bytes
    half: bytes = b""


class PrefixStream(Stream):
    """The first `samples` samples of a dataset: the shards that hold them, the last one only in part."""

    def __init__(self, *, shard_cache: ShardCache, samples: int) -> None:
        super().__init__(local=str(shard_cache.folder))
        self.samples = samples

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shard readers of the prefix."""
        kept: list[Reader] = []
        left = self.samples
        for reader in super().get_shards(world, allow_unsafe_types):
            if left <= 0:
                break
            assert isinstance(reader, MDSReader)
            reader.samples = min(reader.samples, left)
            left -= reader.samples
            kept.append(reader)
        return kept


class ImageStream(StreamingDataset):
    """A StreamingDataset of images that resumes exactly and knows its epoch.

    Args:
        shard_cache: the shards of a split.
        samples: how many of its samples to use, from the first one.
        device_batch_size: images of one rank's batch; the order depends on it only through the global batch.
        order: every ordering knob; none is left to the library.
        predownload: samples of the whole stream, over all ranks and workers, whose shards are fetched ahead.
    """

    def __init__(
        self, *, shard_cache: ShardCache, samples: int, device_batch_size: int, order: OrderConfig, predownload: int
    ) -> None:
        super().__init__(
            streams=[PrefixStream(shard_cache=shard_cache, samples=samples)],
            batch_size=device_batch_size,
            **order.model_dump(),
        )
        world = self._unique_rank_world
        if order.num_canonical_nodes == 1 or order.num_canonical_nodes % world.num_nodes:
            # Samples are dealt as to as many ranks of one machine. The library deals them to machines first, which
            # gives each its own shards if there are canonical nodes for it; otherwise it only changes what a rank gets.
            self._parallel_rank_world = World(1, world.num_ranks, world.workers_per_rank, world.worker)
        self.shard_cache = shard_cache
        self._starts: list[int] = self.sample_offset_per_shard.tolist()
        self._known: dict[int, _Columns] = {}
        self.epoch = 0
        self.ahead_samples = predownload
        self.device_batch_size = device_batch_size
        self.batches_per_epoch = samples // (device_batch_size * World.detect().num_ranks)
        # The library pads to make the ranks even, which may add a batch; the length must not depend on the ranks.
        self.length = self.batches_per_epoch * device_batch_size
        self._ahead: Prefetcher | None = None

    def __iter__(self) -> Iterator[Any]:
        """This worker's samples of an epoch, from the place to resume at."""
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        epoch, sample_in_epoch = self._resume_incr_epoch()
        yield from map(self.__getitem__, self.each(self._get_work(epoch, sample_in_epoch)))

    def each(self, samples: NDArray[np.int64]) -> Iterator[int]:
        """The numbers of the samples in the order in which this worker reads them, with their shards fetched ahead."""
        if self.shard_cache.remote is None:
            yield from map(int, samples)
            return
        with self._fetching(samples) as self._ahead:
            for place, sample in enumerate(samples):
                self._ahead.reach(place)
                yield int(sample)

    def _fetching(self, samples: NDArray[np.int64]) -> Prefetcher:
        world = World.detect()
        processes = world.ranks_per_node * world.workers_per_rank
        # (samples): which shard each is in; (shards): where each of those comes first, and last
        of_samples = np.searchsorted(self.sample_offset_per_shard, samples, side="right") - 1
        shards, first = np.unique(of_samples, return_index=True)
        last = len(samples) - 1 - np.unique(of_samples[::-1], return_index=True)[1]
        needs = [Need(self._info(shard), int(first[at]), int(last[at])) for at, shard in enumerate(shards.tolist())]
        return Prefetcher(
            self.shard_cache,
            sorted(needs, key=lambda need: need.first),
            distance=self.ahead_samples // (world.num_ranks * world.workers_per_rank),
            threads=max(1, FETCHES_ON_A_HOST // processes),
        )

    def _info(self, shard: int) -> ShardInfo:
        reader = self.shards[shard]
        assert isinstance(reader, MDSReader)
        file = reader.raw_data
        return ShardInfo(file.basename, file.bytes, file.hashes.get("xxh64", ""), reader.samples)

    def read(self, sample: int) -> tuple[StoredImage, int]:
        """The image and the class of sample number `sample`. Its shard is fetched if it is not here.

        Raises:
            UserError: the label is not a class number.
            WorldError: the shard is not available.
            OSError: the disk fails.
        """
        shard, place = self._place(sample)
        columns = self._columns(shard)
        for _ in range(EVICTED_SHARD_DOWNLOADS):
            try:
                cells = read_cells(columns.path, place, columns.sizes, columns.wanted)
            except FileNotFoundError:
                self.shard_cache.fetch(self._info(shard), protect=self._ahead.in_use if self._ahead else frozenset)
                continue
            except ValueError as error:
                raise UserError(f"sample {sample} of {self._dataset} is damaged: {error}") from None
            break
        else:
            raise WorldError(f"{columns.path} is evicted as soon as it is fetched: raise --cache-limit")
        label, *images = cells
        try:
            return StoredImage(*images), decode_label(columns.label_encoding, label)
        except ValueError as error:
            raise UserError(f"sample {sample} of {self._dataset} has no class number in y: {error}") from None

    def _place(self, sample: int) -> tuple[int, int]:
        """The number of a sample's shard, and the sample's index in it."""
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"there is no sample {sample}: the split has {self.num_samples:,}")
        shard = bisect.bisect_right(self._starts, sample) - 1
        return shard, sample - self._starts[shard]

    def _columns(self, shard: int) -> "_Columns":
        if (known := self._known.get(shard)) is None:
            reader = self.shards[shard]
            assert isinstance(reader, MDSReader)
            known = self._known[shard] = _Columns.of(reader, str(self.shard_cache.path(reader.raw_data.basename)))
        return known

    def seen(self, sample: int, view: Callable[[StoredImage], _View]) -> tuple[_View, int]:
        """What `view` makes of a sample's image, and the sample's class.

        Raises:
            Undecodable: the stored bytes do not decode; the sample is named.
            WorldError, OSError: see `read`.
        """
        stored, label = self.read(sample)
        try:
            return view(stored), label
        except Exception as error:  # Pillow's plugins raise any kind of error on broken files
            raise self._undecodable(sample, error) from error

    def seen_if_whole(self, sample: int, view: Callable[[StoredImage], _View]) -> tuple[_View, int] | None:
        """Like `seen`, but None where the stored bytes do not decode. That saves reading all keys to name the
        sample."""
        stored, label = self.read(sample)
        try:
            return view(stored), label
        except Exception:  # see `seen`
            return None

    def _undecodable(self, sample: int, error: Exception) -> "Undecodable":
        """The error for a sample whose stored bytes do not decode."""
        shard, place = self._place(sample)
        reader = self.shards[shard]
        name = reader.raw_data.basename if isinstance(reader, MDSReader) else f"shard {shard}"
        where = f"{self._key(sample)}{name}, place {place}"
        return Undecodable(
            f"sample {sample} of {self.shard_cache.folder} ({where}) does not decode: {decoder_reason(error)}. Repair "
            f"it with `imagenet-mds verify {self._dataset} --deep --repair SOURCE`, or train without it: "
            f"data.damaged=black"
        )

    @property
    def _dataset(self) -> str:
        """The location of the shards' dataset."""
        return (
            self.shard_cache.remote.parent.location if self.shard_cache.remote else str(self.shard_cache.folder.parent)
        )

    def _key(self, sample: int) -> str:
        try:
            return f"{read_keys(self.shard_cache.remote or LocalStorage(self.shard_cache.folder))[sample]}, "
        except (CommandError, IndexError):  # a dataset of stock tools has no keys
            return ""

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The place of the stream, to resume at.

        At the end of an epoch the library names the epoch that ended, and a run resumed there repeats its order. The
        epoch that comes next is `next_epoch`.
        """
        state: dict[str, Any] = super().state_dict(num_samples, from_beginning)
        if from_beginning and num_samples == 0 and self.next_epoch > 0:
            state["epoch"] = self.next_epoch
        return state

    def arrangement(self, epoch: int, ranks: int, workers: int) -> NDArray[np.int64]:
        """The sample order of an epoch on any number of ranks, whatever the number of ranks of this process.

        Args:
            epoch: from 0.
            ranks: that share a global batch, all on one node.
            workers: of each rank.

        Returns:
            (ranks, batches, device batch) sample numbers.
        """
        global_batch_size = self.device_batch_size * World.detect().num_ranks
        known, self.batch_size = self.batch_size, global_batch_size // ranks
        try:
            work = generate_work(self.batching_method, self, World(1, ranks, max(1, workers), 0), epoch, 0)
        finally:
            self.batch_size = known
        # (1, ranks, workers, batches of a worker, device batch); batches are dealt to the workers in turn
        dealt = work[0].transpose(0, 2, 1, 3)
        ordered: NDArray[np.int64] = dealt.reshape(ranks, -1, work.shape[-1])
        return ordered[:, : self.batches_per_epoch]

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        """This worker's samples of the rest of an epoch, in order. Called in each worker when it starts.

        This is the only place where a worker learns which epoch it is. Only whole batches count, dealt to the workers
        in turn, and no more than `batches_per_epoch` of them on any number of ranks.
        """
        self.epoch = epoch
        world = World.detect()
        batches_done = sample_in_epoch // (self.device_batch_size * world.num_ranks)
        batches = len(range(world.worker_of_rank, self.batches_per_epoch - batches_done, world.workers_per_rank))
        sample_ids: NDArray[np.int64] = super()._get_work(epoch, sample_in_epoch)
        return sample_ids[: batches * self.device_batch_size]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where the image and the class of a shard's samples are, whatever other columns it has. The image stays a file:
    the library's decoded pictures stay gray or CMYK.

    path: of the shard's file.
    sizes: of all columns in bytes, None where it varies.
    wanted: the numbers of the label's column, the image's and, if there is one, the half-size copy's.
    label_encoding: see `decode_label`.
    """

    path: str
    sizes: list[int | None]
    wanted: list[int]
    label_encoding: str

    @classmethod
    def of(cls, reader: MDSReader, path: str) -> "_Columns":
        """Describe the columns of a shard."""
        names = reader.column_names
        wanted = [names.index(name) for name in (LABEL_COLUMN, IMAGE_COLUMN, HALF_COLUMN) if name in names]
        return cls(path, reader.column_sizes, wanted, reader.column_encodings[wanted[0]])
