"""One shard as one atomic, repeatable task: it either stands whole under its final name, recorded, or not at all.

The task does not know who runs it: a process pool here, anything else elsewhere. What it needs comes with it.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import xxhash

from imagenet_mds.dataset.mds import Record, ShardEncoder, describe_shard, shard_basename
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, Writing
from imagenet_mds_convert.images.policy import Form, Scaling, Stored, likely_bytes
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.shards.record import ShardRecord, record_name
from imagenet_mds_convert.sources.base import Sample, Source, Unusable
from imagenet_mds_convert.sources.parallel import read_all

_THE_IMAGES_OWN = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM})
"""What says that this one image cannot be read, now and later: it is left out. Anything else is the storage's failure,
and leaving images out for it would make another dataset each time."""


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides a shard's bytes, and where it goes.

    `conversion` is the name of the conversion that the shard is of, and goes into its record. `samples` are (place in
    the sorted source, sample), in stored order.
    """

    conversion: str
    shard: int
    samples: tuple[tuple[int, Sample], ...]
    source: Source
    check: str
    scaling: Scaling
    form: Form
    size_limit_bytes: int
    destination: Storage


@dataclass
class Spent:
    """Seconds of one process: `read`, of reading the source; `decode`, of all that is done to a picture, which is to
    check it and, where it is asked for, to scale and encode it and to add restart tiles; `pack`, of putting the shard
    together and hashing it; `write`, of waiting until it is written or uploaded."""

    read: float = 0.0
    decode: float = 0.0
    pack: float = 0.0
    write: float = 0.0

    def add(self, other: "Spent") -> None:
        """Count another's seconds too."""
        for name, seconds in asdict(other).items():
            setattr(self, name, getattr(self, name) + seconds)


_AHEAD_BYTES = 4 << 20
"""Written at once while a shard is made: large enough for a disk, small enough that little is left at the end."""


def build_shard(
    task: ShardTask, spent: Spent | None = None, *, buffer: bytearray | None = None, draft: Writing | None = None
) -> tuple[ShardRecord, memoryview]:
    """Read, check and encode the samples of a shard: the same bytes, whoever does it, whenever.

    Args:
        task: what to do.
        spent: takes the seconds.
        buffer: memory to make the shard in; see `ShardEncoder`.
        draft: takes the shard's bytes while it is made, and the whole at the end, if it has any sample.

    Returns:
        What to record, and the shard's bytes, which lie in the buffer or, where that was short, in a longer one.

    Raises:
        UserError: the images together are longer than a shard can be.
        WorldError: the source's storage failed.
    """
    spent = spent or Spent()
    likely = sum(likely_bytes(sample.size_bytes, task.scaling, task.form) for _, sample in task.samples)
    encoder = ShardEncoder(
        len(task.samples),
        task.size_limit_bytes,
        buffer,
        images_bytes=min(likely, task.size_limit_bytes),  # more is of a single image, which may be none
        raw=task.form == "raw",
    )
    record = ShardRecord(task.shard, None)
    written, _ = encoder.filled
    for index, sample, read in read_all(task.source, task.samples):
        try:
            data, stored = _take(task, sample, read, spent)
        except Unusable as reason:
            record.left_out.append((sample.key, str(reason)))
            continue
        begun = time.perf_counter()
        record.digests.append(xxhash.xxh3_64_hexdigest(data))
        if stored.change:
            record.changed.append((sample.key, stored.change))
        record.scaled += stored.scaled
        record.tiled += stored.tiled
        record.source_bytes += len(data)
        try:
            encoder.add(Record(index, stored.image, sample.label))
        except ValueError as error:
            raise UserError(
                f"{task.destination.location}/{shard_basename(task.shard)}: {error}. Its images are far larger than "
                f"most are, up to {sample.key}: give a smaller --shard-size"
            ) from None
        packed = time.perf_counter()
        spent.pack += packed - begun
        _, end = encoder.filled
        # A sample that was left out moves all that follow: from then on nothing is written ahead.
        if draft and end - written >= _AHEAD_BYTES and not record.left_out:
            draft.write_behind(encoder.view(written, end), written)
            written = end
            spent.write += time.perf_counter() - packed
    begun = time.perf_counter()
    if draft and not record.left_out:
        # So that it is written while the shard is hashed.
        draft.write_behind(encoder.view(written, encoder.filled[1]), written)
    whole = encoder.finish()
    info = describe_shard(shard_basename(task.shard), whole, encoder.samples) if encoder.samples else None
    spent.pack += time.perf_counter() - begun
    record.info = info
    if draft and info:
        begun = time.perf_counter()
        draft.publish(whole, moved=bool(record.left_out))
        spent.write += time.perf_counter() - begun
    return record, whole


def _take(task: ShardTask, sample: Sample, read: Callable[[], bytes], spent: Spent) -> tuple[bytes, Stored]:
    """A sample's bytes as the source has them, and what to store.

    Raises:
        Unusable: the image is left out.
        WorldError: the storage failed.
    """
    begun = time.perf_counter()
    try:
        data = read()
    except OSError as error:
        if error.errno not in _THE_IMAGES_OWN:
            raise WorldError(
                f"the source cannot be read: {sample.key}: {error.strerror or error}. What is complete stays: "
                f"run the same command again"
            ) from error
        raise Unusable(f"cannot be read ({error.strerror})") from None
    finally:
        got = time.perf_counter()
        spent.read += got - begun
    try:
        return data, prepare(data, task.check, task.scaling, task.form)
    finally:
        spent.decode += time.perf_counter() - got


_buffers: list[bytearray] = []
"""Memory that this process has made shards in and does not use at the moment."""


def run_shard_task(task: ShardTask) -> tuple[ShardRecord, Spent]:
    """Make one shard durable, then record it; say what it took.

    Raises:
        OSError: the shard cannot be written (a full disk); nothing half done is left.
    """
    spent = Spent()
    buffer = _buffers.pop() if _buffers else bytearray()
    with task.destination.draft(shard_basename(task.shard)) as draft:
        record, whole = build_shard(task, spent, buffer=buffer, draft=draft)
    assert isinstance(whole.obj, bytearray)
    _buffers.append(whole.obj)
    begun = time.perf_counter()
    # A record that a power cut takes costs making its shard again; one that outlives its shard is not believed.
    task.destination.write_unsynced(
        record_name(task.shard), json_bytes(asdict(record) | {"conversion": task.conversion})
    )
    spent.write += time.perf_counter() - begun
    return record, spent
