"""One shard as one atomic, repeatable task: it either stands whole under its final name, recorded, or not at all.

The task does not know who runs it: a process pool here, anything else elsewhere. What it needs comes with it.
"""

import errno
import json
import re
import time
from dataclasses import asdict, dataclass, field

import xxhash

from imagenet_mds.files import json_bytes
from imagenet_mds.manifest import WORK_FOLDER
from imagenet_mds.mds import Record, ShardInfo, describe_shard, encode_shard, shard_basename
from imagenet_mds.storage import Storage
from imagenet_mds_convert.ahead import read_all
from imagenet_mds_convert.images import Scaling, Unusable, prepare
from imagenet_mds_convert.source import Sample, Source

_THE_IMAGES_OWN = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM})
"""What says that this one image cannot be read, now and later: it is left out. Anything else is the storage's failure,
and leaving images out for it would make another dataset each time."""


_RECORD = re.compile(r"shard\.(\d{5,})\.json")


class SourceFailed(Exception):  # noqa: N818 # it ends up as the message of a WorldError
    """The source's storage failed; the message names the image and the system's reason."""


@dataclass(frozen=True)
class ShardTask:
    """Everything that decides a shard's bytes, and where it goes.

    `samples` are (place in the sorted source, sample), in stored order.
    """

    shard: int
    samples: tuple[tuple[int, Sample], ...]
    source: Source
    check: str
    scaling: Scaling
    size_limit_bytes: int
    destination: Storage


@dataclass(frozen=True)
class ShardRecord:
    """What a finished shard task leaves behind: enough for index and manifest, without reading the shard again.

    `info` is None when no sample of the shard was usable; then there is no file. `left_out` and `changed` are (key,
    reason). `scaled` counts pictures that were made smaller; `digests` are the xxh64 of the source's bytes of each
    stored sample, in order, by which duplicates are found.
    """

    shard: int
    info: ShardInfo | None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    scaled: int = 0
    digests: list[str] = field(default_factory=list)
    source_bytes: int = 0


@dataclass
class Spent:
    """Seconds of one process: reading the source, checking (decoding, scaling), encoding and hashing the shard, writing
    or uploading it."""

    read: float = 0.0
    check: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def add(self, other: "Spent") -> None:
        """Count another's seconds too."""
        for name, seconds in asdict(other).items():
            setattr(self, name, getattr(self, name) + seconds)


def build_shard(task: ShardTask, spent: Spent | None = None) -> tuple[ShardRecord, bytes]:
    """Read, check and encode the samples of a shard: the same bytes, whoever does it, whenever.

    Args:
        task: what to do.
        spent: takes the seconds.
    """
    spent = spent or Spent()
    records, left_out, changed = [], [], []
    digests: list[str] = []
    scaled = source_bytes = 0
    for index, sample, read_image in read_all(task.source, task.samples):
        key = sample.key
        begun = read = time.perf_counter()
        try:
            data = read_image()
            read = time.perf_counter()
            source_bytes += len(data)
            stored = prepare(data, task.check, task.scaling)
        except Unusable as reason:
            left_out.append((key, str(reason)))
        except OSError as error:
            if error.errno not in _THE_IMAGES_OWN:
                raise SourceFailed(f"{key}: {error.strerror or error}") from error
            left_out.append((key, f"cannot be read ({error.strerror})"))
        else:
            records.append(Record(index, stored.jpeg, sample.label))
            digests.append(xxhash.xxh64_hexdigest(data))
            scaled += stored.scaled
            if stored.change:
                changed.append((key, stored.change))
        spent.read += read - begun
        spent.check += time.perf_counter() - read
    begun = time.perf_counter()
    data = encode_shard(records, task.size_limit_bytes) if records else b""
    info = describe_shard(shard_basename(task.shard), data, len(records)) if records else None
    spent.encode += time.perf_counter() - begun
    return ShardRecord(task.shard, info, left_out, changed, scaled, digests, source_bytes), data


def run_shard_task(task: ShardTask) -> tuple[ShardRecord, Spent]:
    """Make one shard durable, then record it; say what it took.

    Raises:
        OSError: the shard cannot be written (a full disk); nothing half done is left.
    """
    spent = Spent()
    record, data = build_shard(task, spent)
    begun = time.perf_counter()
    if record.info:
        task.destination.write(record.info.basename, data)
    task.destination.write(record_name(task.shard), json_bytes(asdict(record)))
    spent.write = time.perf_counter() - begun
    return record, spent


def record_name(shard: int) -> str:
    """Where the record of a finished shard lies while its split is being made."""
    return f"{WORK_FOLDER}/shard.{shard:05}.json"


def recorded_shards(destination: Storage) -> list[int]:
    """The shards that have a record, by one listing: in S3 a look at each would take longer than some conversions."""
    matches = (_RECORD.fullmatch(name) for name in destination.child(WORK_FOLDER).names())
    return sorted(int(match[1]) for match in matches if match)


def read_record(destination: Storage, shard: int) -> ShardRecord | None:
    """The record of a shard that is done, None where it is not: no record, or no file of the recorded size."""
    try:
        raw = json.loads(destination.read(record_name(shard)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    info = ShardInfo(**raw["info"]) if raw["info"] else None
    if info and destination.size_bytes(info.basename) != info.size_bytes:
        return None
    pairs = {name: [(key, why) for key, why in raw[name]] for name in ("left_out", "changed")}
    return ShardRecord(**(raw | pairs | {"info": info}))
