"""All that touches the inside of mosaicml-streaming 0.13.0, each with the defect it mends.

Private names used here and nowhere else: `shared.prefix._each_prefix_int`, `StreamingDataset._get_work` and
`._iterator`. Tests fail when their behaviour changes.
"""

import contextlib
import multiprocessing.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import streaming.base.shared.prefix as streaming_prefix
from numpy.typing import NDArray
from PIL import Image
from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.format import Reader
from streaming.base.format.mds.reader import MDSReader
from streaming.base.world import World

from imagenet_mds.config import OrderConfig
from imagenet_mds.errors import UserError
from imagenet_mds.manifest import read_keys
from imagenet_mds_train.attempt import BASE_VARIABLE, attempt
from imagenet_mds_train.augment import decode


def use_own_blocks() -> None:
    """Number this process's shared memory blocks from its attempt's own base, so that no other job's are met.

    The library counts from 0 in every job; blocks of a killed job stay, and two jobs that start at once take the same.
    """
    base = int(os.environ[BASE_VARIABLE])

    def each_prefix() -> Iterator[int]:
        number = base
        while True:
            yield number
            number += 1

    streaming_prefix._each_prefix_int = each_prefix


@contextlib.contextmanager
def own_resources() -> Iterator[None]:
    """Streaming datasets in this process, with shared memory and lock files of its own, removed at the end."""
    # It keeps a folder till the process ends, which must not lie in one that goes before.
    multiprocessing.util.get_temp_dir()
    with attempt() as mine:
        os.environ.update(mine.environment())
        tempfile.tempdir = str(mine.temporary)
        use_own_blocks()
        try:
            yield
        finally:
            tempfile.tempdir = None
            for name in mine.environment():
                os.environ.pop(name)


class Undecodable(RuntimeError):  # noqa: N818 # what the sample is
    """A stored sample does not decode. The message is all: it crosses from a worker to its rank as text."""


class PrefixStream(Stream):
    """The first `samples` samples of a dataset: the shards that hold them, the last one in part, images as bytes."""

    def __init__(self, *, local: Path, samples: int) -> None:
        super().__init__(local=str(local))
        self.samples = samples

    def get_shards(self, world: World, allow_unsafe_types: bool) -> list[Reader]:
        """The shard readers of the prefix."""
        kept: list[Reader] = []
        left = self.samples
        for reader in super().get_shards(world, allow_unsafe_types):
            if left <= 0:
                break
            assert isinstance(reader, MDSReader)
            # Files are decoded here, not by the library, whose pictures stay grayscale or CMYK.
            reader.column_encodings = ["bytes" if name in ("jpeg", "pil") else name for name in reader.column_encodings]
            reader.samples = min(reader.samples, left)
            left -= reader.samples
            kept.append(reader)
        return kept


class ImageStream(StreamingDataset):
    """A StreamingDataset of images that resumes exactly and knows its epoch.

    Args:
        local: the folder of a split.
        samples: how many of its samples, from the first on.
        device_batch_size: images of one rank's batch; the order depends on it only through the global batch.
        order: every ordering knob; none is left to the library.
        predownload: samples to fetch ahead.
    """

    def __init__(
        self, *, local: Path, samples: int, device_batch_size: int, order: OrderConfig, predownload: int
    ) -> None:
        super().__init__(
            streams=[PrefixStream(local=local, samples=samples)],
            batch_size=device_batch_size,
            predownload=max(predownload, device_batch_size),
            **order.model_dump(),
        )
        self.local = local
        self.epoch = 0
        self.device_batch_size = device_batch_size
        self.batches_per_epoch = samples // (device_batch_size * World.detect().num_ranks)
        # The library pads to even out the ranks, which may add a batch; the epoch's length must not depend on them.
        self.length = self.batches_per_epoch * device_batch_size

    def __iter__(self) -> Iterator[Any]:
        """An epoch's samples, from where it is to go on.

        The library registers each epoch's iterator to be ended at exit, and so keeps it, with the numbers of all its
        samples, as long as the process lives: 5 MB an epoch of ImageNet. They are let go here.
        """
        before = getattr(self, "_iterator", None)
        if before is not None:  # an epoch that was not gone through to its end
            before.exit()
            before.sample_ids = before.sample_ids[:0].copy()
        yield from super().__iter__()
        if (ended := getattr(self, "_iterator", None)) is not None:
            ended.sample_ids = ended.sample_ids[:0].copy()

    def read(self, sample: int) -> tuple[bytes, int]:
        """The stored bytes and the class of sample number `sample`."""
        record: dict[str, Any] = self.get_item(sample)
        return record["x"], int(record["y"])

    def picture(self, sample: int) -> tuple[Image.Image, int]:
        """The RGB picture and the class of sample number `sample`.

        Raises:
            Undecodable: the stored bytes do not decode; the sample is named.
        """
        data, label = self.read(sample)
        try:
            return decode(data), label
        except Exception as error:  # Pillow's plugins raise what they like on broken files
            raise self.undecodable(sample, error) from error

    def undecodable(self, sample: int, error: Exception) -> "Undecodable":
        """What to raise of a sample whose stored bytes do not decode."""
        shard, place = self.spanner[sample]
        reader = self.shards[shard]
        name = reader.raw_data.basename if isinstance(reader, MDSReader) else f"shard {shard}"
        return Undecodable(
            f"sample {sample} of {self.local} ({self._key(sample)}{name}, place {place}) does not decode: {error}; "
            f"see `imagenet-mds verify {self.local.parent} --deep`"
        )

    def _key(self, sample: int) -> str:
        try:
            return f"{read_keys(self.local)[sample]}, "
        except (OSError, UserError):  # a dataset of stock tools has none
            return ""

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the stream stands.

        At an epoch's end the library names the epoch that ended, and a run resumed there repeats its order; the epoch
        that comes next is `next_epoch`.
        """
        state: dict[str, Any] = super().state_dict(num_samples, from_beginning)
        if from_beginning and num_samples == 0 and self.next_epoch > 0:
            state["epoch"] = self.next_epoch
        return state

    def arrangement(self, epoch: int, ranks: int, workers: int) -> NDArray[np.int64]:
        """Which sample stands where in an epoch, on any number of ranks, whatever this process is one of.

        Args:
            epoch: from 0.
            ranks: that share a global batch out, all on one node.
            workers: of each rank.

        Returns:
            (ranks, batches, device batch) numbers of samples.
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
        """This worker's samples of the rest of an epoch, in order; called in each worker when it starts.

        It is the one place where a worker learns which epoch it is. Whole batches only, dealt to the workers in turn,
        and no more of them than `batches_per_epoch` on any number of ranks.
        """
        self.epoch = epoch
        world = World.detect()
        batches_done = sample_in_epoch // (self.device_batch_size * world.num_ranks)
        batches = len(range(world.worker_of_rank, self.batches_per_epoch - batches_done, world.workers_per_rank))
        sample_ids: NDArray[np.int64] = super()._get_work(epoch, sample_in_epoch)
        return sample_ids[: batches * self.device_batch_size]
