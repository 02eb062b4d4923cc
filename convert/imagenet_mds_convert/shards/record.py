"""The record that a finished shard leaves behind, in the work folder of its split."""

import json
import re
from dataclasses import dataclass, field

from imagenet_mds.dataset.manifest import WORK_FOLDER
from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.storage.base import Storage

_RECORD = re.compile(r"shard\.(\d{5,})\.json")


@dataclass
class ShardRecord:
    """What a finished shard task leaves behind: enough for index and manifest, without reading the shard again.

    `info` is None when no sample of the shard was usable; then there is no file. `left_out` and `changed` are (key,
    reason). `scaled` counts pictures that were made smaller, `tiled` those stored with restart tiles; `digests` are the
    xxh3-64 of the source's bytes of each stored sample, in order, by which duplicates are found.
    """

    shard: int
    info: ShardInfo | None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    scaled: int = 0
    tiled: int = 0
    digests: list[str] = field(default_factory=list)
    source_bytes: int = 0


def record_name(shard: int) -> str:
    """Where the record of a finished shard lies while its split is being made."""
    return f"{WORK_FOLDER}/shard.{shard:05}.json"


def recorded_shards(destination: Storage) -> list[int]:
    """The shards that have a record, by one listing: in S3 a look at each would take longer than some conversions."""
    matches = (_RECORD.fullmatch(name) for name in destination.child(WORK_FOLDER).list_names())
    return sorted(int(match[1]) for match in matches if match)


def read_record(destination: Storage, shard: int, conversion: str) -> ShardRecord | None:
    """The record of a shard that is done, None where it is not: no record, half of one (a power cut leaves that), one
    of another conversion (S3 cannot be locked against it), or no file of the recorded size."""
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
