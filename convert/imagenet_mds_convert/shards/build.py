"""One shard as one atomic, repeatable task: it exists complete, under its final name and recorded, or not at all.

A task is independent of what runs it, a process pool or a cluster, and carries everything it needs.
"""

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import xxhash

from imagenet_mds.dataset.mds import Layout, Record, ShardEncoder, describe_shard, shard_basename
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, Writing
from imagenet_mds.vocabulary import CheckLevel, StoredForm
from imagenet_mds_convert.images.policy import Scaling, Stored, likely_bytes
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.shards.record import ShardRecord, record_name
from imagenet_mds_convert.sources.base import Reader, Sample, Unusable
from imagenet_mds_convert.sources.parallel import read_all

_ERRNOS_OF_ONE_IMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM})
"""Errors that concern one image, now and later: it is left out. Any other error is a failure of the storage, and
leaving images out because of it would give a different dataset each time."""


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides a shard's bytes, and its destination.

    `conversion` is the identity of the conversion, which the shard's record repeats. `samples` are (index in the sorted
    source, sample), in stored order. `compiled_check` changes how fast images are checked, and nothing else.
    """

    conversion: str
    shard: int
    samples: tuple[tuple[int, Sample], ...]
    source: Reader
    check: CheckLevel
    scaling: Scaling
    form: StoredForm
    tile_growth: float
    half_quality: int | None
    compiled_check: bool
    layout: Layout
    destination: Storage
    crashing: Mapping[str, str] = field(default_factory=dict)
    """Keys of images that crash the process that decodes them, each with the reason; they are left out unread."""


@dataclass
class Spent:
    """Seconds spent in one process: `read`ing the source; `decode`, which is all work on images (checking, scaling,
    encoding, adding restart tiles and half-size copies); `pack`, assembling and hashing the shard; `write`, waiting
    until it is written or uploaded."""

    read: float = 0.0
    decode: float = 0.0
    pack: float = 0.0
    write: float = 0.0

    def add(self, other: "Spent") -> None:
        """Add another's seconds to these."""
        for name, seconds in asdict(other).items():
            setattr(self, name, getattr(self, name) + seconds)


_WRITE_BYTES = 4 << 20
"""Bytes to write at once while a shard is made: enough for a disk, and little enough to leave a short rest."""


def build_shard(
    task: ShardTask, spent: Spent | None = None, *, buffer: bytearray | None = None, draft: Writing | None = None
) -> tuple[ShardRecord, memoryview]:
    """Read, check and encode the samples of a shard. The bytes depend on the task alone.

    Args:
        task: the task.
        spent: the seconds are added to it.
        buffer: memory to build the shard in; see `ShardEncoder`.
        draft: receives the shard's bytes while it is built, and the complete shard at the end, if it has any sample.

    Returns:
        The shard's record, and its bytes, which are in the buffer or, if that was too short, in a longer one.

    Raises:
        UserError: the images together are longer than a shard can be.
        WorldError: the source's storage failed.
    """
    spent = spent or Spent()
    likely = sum(
        likely_bytes(sample.size_bytes, task.scaling, task.form, half=task.layout.half) for _, sample in task.samples
    )
    encoder = ShardEncoder(
        len(task.samples),
        task.layout,
        buffer,
        images_bytes=min(likely, task.layout.size_limit_bytes),  # one image alone may be longer
    )
    record = ShardRecord(task.shard, None)
    written, _ = encoder.filled
    for index, sample, read in read_all(task.source, task.samples):
        try:
            if reason := task.crashing.get(sample.key):
                raise Unusable(reason)
            data, stored = _take(task, sample, read, spent)
        except Unusable as unusable:
            record.left_out.append((sample.key, str(unusable)))
            continue
        started = time.perf_counter()
        record.digests.append(xxhash.xxh3_64_hexdigest(data))
        if stored.change:
            record.changed.append((sample.key, stored.change))
        record.scaled += stored.scaled
        record.tiled += stored.tiled
        record.half_bytes += len(stored.half)
        record.source_bytes += len(data)
        try:
            encoder.add(Record(index, stored.image, sample.label, stored.half))
        except ValueError as error:
            raise UserError(
                f"{task.destination.location}/{shard_basename(task.shard)}: {error}. Its images up to {sample.key} "
                f"are far larger than estimated: give a smaller --shard-size"
            ) from None
        packed = time.perf_counter()
        spent.pack += packed - started
        _, end = encoder.filled
        # A sample that is left out moves all samples behind it, so nothing is written early from then on.
        if draft and end - written >= _WRITE_BYTES and not record.left_out:
            draft.write_behind(encoder.view(written, end), written)
            written = end
            spent.write += time.perf_counter() - packed
    started = time.perf_counter()
    if draft and not record.left_out:
        # Writing goes on while the shard is hashed.
        draft.write_behind(encoder.view(written, encoder.filled[1]), written)
    whole = encoder.finish()
    info = describe_shard(shard_basename(task.shard), whole, encoder.samples) if encoder.samples else None
    spent.pack += time.perf_counter() - started
    record.info = info
    if draft and info:
        started = time.perf_counter()
        draft.publish(whole, moved=bool(record.left_out))
        spent.write += time.perf_counter() - started
    return record, whole


def _take(task: ShardTask, sample: Sample, read: Callable[[], bytes], spent: Spent) -> tuple[bytes, Stored]:
    """A sample's bytes in the source, and what to store.

    Raises:
        Unusable: the image is left out.
        WorldError: the storage failed.
    """
    started = time.perf_counter()
    try:
        data = read()
    except OSError as error:
        if error.errno not in _ERRNOS_OF_ONE_IMAGE:
            raise WorldError(
                f"the source cannot be read: {sample.key}: {error.strerror or error}. Finished shards are kept: "
                f"run the same command again"
            ) from error
        raise Unusable(f"cannot be read ({error.strerror})") from None
    finally:
        got = time.perf_counter()
        spent.read += got - started
    try:
        return data, prepare(
            data, task.check, task.scaling, task.form, task.tile_growth, task.compiled_check, task.half_quality
        )
    finally:
        spent.decode += time.perf_counter() - got


def images_of(task: ShardTask) -> Sequence[Callable[[], object]]:
    """The images of a task as calls that read and prepare one each, to find out which of them crash."""
    return [
        partial(_take, task, sample, partial(task.source.read, sample.where), Spent()) for _, sample in task.samples
    ]


def without_crashing(task: ShardTask, crashing: Mapping[int, str]) -> ShardTask:
    """The task, with the images at these positions left out for these reasons."""
    found = {task.samples[position][1].key: reason for position, reason in crashing.items()}
    return replace(task, crashing={**task.crashing, **found})


_buffers: list[bytearray] = []
"""Buffers in which this process has built shards, free for the next one."""


def run_shard_task(task: ShardTask) -> tuple[ShardRecord, Spent]:
    """Build one shard and write it durably, then its record.

    Returns:
        The record, and the seconds spent.

    Raises:
        OSError: the shard cannot be written (a full disk); no partial file is left.
        UserError, WorldError: as `build_shard`.
    """
    spent = Spent()
    buffer = _buffers.pop() if _buffers else bytearray()
    with task.destination.draft(shard_basename(task.shard)) as draft:
        record, whole = build_shard(task, spent, buffer=buffer, draft=draft)
    assert isinstance(whole.obj, bytearray)
    _buffers.append(whole.obj)
    started = time.perf_counter()
    # Losing a record in a power failure costs building its shard again, and a record without its shard is ignored.
    task.destination.write_unsynced(
        record_name(task.shard), json_bytes(asdict(record) | {"conversion": task.conversion})
    )
    spent.write += time.perf_counter() - started
    return record, spent
