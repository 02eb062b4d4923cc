"""The record of a finished shard, in the work folder of its split."""

import json
import re
from dataclasses import dataclass, field

from imagenet_mds.dataset.manifest import WORK_FOLDER
from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.storage.base import Storage

_RECORD = re.compile(r"shard\.(\d{5,})\.json")


@dataclass
class ShardRecord:
    """The result of a shard task: enough to write index and manifest without reading the shard again.

    `info` is None if no sample of the shard was usable; then there is no file. `left_out` and `changed` are (key,
    reason). `scaled` counts images that were scaled down, `tiled` those stored with restart tiles. `half_bytes` are
    those of all half-size copies. `digests` are the
    xxh3-64 of the source bytes of each stored sample, in order; duplicates are found by them.
    """

    shard: int
    info: ShardInfo | None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    scaled: int = 0
    tiled: int = 0
    half_bytes: int = 0
    digests: list[str] = field(default_factory=list)
    source_bytes: int = 0

    @property
    def images(self) -> int:
        """Number of images that the shard was made from, stored or left out."""
        return (self.info.samples if self.info else 0) + len(self.left_out)


def record_name(shard: int) -> str:
    """Name of the record of a shard, within its split."""
    return f"{WORK_FOLDER}/shard.{shard:05}.json"


def recorded_shards(destination: Storage) -> list[int]:
    """The shards that have a record, by one listing; in S3, a request per shard could outlast the conversion."""
    matches = (_RECORD.fullmatch(name) for name in destination.child(WORK_FOLDER).list_names())
    return sorted(int(match[1]) for match in matches if match)


def read_record(destination: Storage, shard: int, conversion: str) -> ShardRecord | None:
    """The record of a finished shard, else None: there is no record, it was cut short by a power failure, it belongs to
    another conversion (S3 has no locks against that), or there is no shard of the recorded size."""
    try:
        raw = json.loads(destination.read(record_name(shard)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if raw.pop("conversion", None) != conversion:
        return None
    info = ShardInfo(**raw["info"]) if raw["info"] else None
    if info and destination.size_bytes(info.basename) != info.size_bytes:
        return None
    pairs = {name: [(key, why) for key, why in raw[name]] for name in ("left_out", "changed")}
    return ShardRecord(**(raw | pairs | {"info": info}))
