"""`imagenet-mds convert` and `verify`: what they say and how they end."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from imagenet_mds.cli.options import parse_size
from imagenet_mds.dataset.access import read_dataset
from imagenet_mds.dataset.manifest import (
    DEFAULT_QUALITY,
    MANIFEST_BASENAME,
    Manifest,
    Policy,
    read_manifest,
)
from imagenet_mds.dataset.subsets import parse_subset
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, UserError
from imagenet_mds.progress import ProgressLine
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.cost import Cost, estimate
from imagenet_mds_convert.destination import (
    clear_split,
    locked,
    refuse_foreign,
    refuse_inside,
    remove_leftovers,
)
from imagenet_mds_convert.run import convert_split, refuse_small_disk
from imagenet_mds_convert.shards.build import Spent
from imagenet_mds_convert.shards.pool import Engine
from imagenet_mds_convert.shards.ray import run_tasks_on_ray
from imagenet_mds_convert.shards.record import ShardRecord, recorded_shards
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.checksums import verify_source
from imagenet_mds_convert.verify import repair_split, verify_split

_MOST_SHOWN = 10
_ENGINES: dict[str, Engine | None] = {"local": None, "ray": run_tasks_on_ray}


@dataclass(frozen=True)
class ConvertOptions:
    """The options of `convert` as they were typed."""

    source: str
    dest: str
    splits: tuple[str, ...]
    split_given: bool
    subset: str | None
    workers: int | None
    check: str
    max_side: int | None
    min_side: int | None
    quality: int | None
    shard_size: str
    engine: str
    seed: int
    plan: bool
    strict: bool
    overwrite: bool
    log_json: bool
    tiles: bool = False
    raw: bool = False
    source_format: str = "auto"
    verify_source: bool = False


def run_convert(options: ConvertOptions) -> int:
    """Convert the splits one after the other; return the exit status."""
    _refuse_options(options)
    dest = open_storage(options.dest)
    refuse_inside(options.source, options.dest)
    source = open_source(options.source, options.source_format)
    for note in source.notes:
        print(_json("note", note=note) if options.log_json else f"note: {note}", file=sys.stderr)
    # Without --split, take what the source has.
    splits = options.splits if options.split_given else tuple(name for name in options.splits if name in source.splits)
    if options.verify_source:
        verify_source(source, [name for name in splits if name in source.splits], as_json=options.log_json)
    shard_size_bytes = parse_size(options.shard_size, "--shard-size")
    if not 1 << 12 <= shard_size_bytes <= 1 << 31:
        raise UserError(f"--shard-size {options.shard_size}: a shard has 4 KiB to 2 GiB; 64MiB suits most")
    conversions = [
        SplitConversion.plan_for(
            source,
            split,
            dest,
            Policy.model_validate(
                {
                    "check": options.check,
                    "seed": options.seed,
                    "shard_size_bytes": shard_size_bytes,
                    "max_side": options.max_side,
                    "min_side": options.min_side,
                    "quality": options.quality or DEFAULT_QUALITY,
                    "tiles": options.tiles,
                    "raw": options.raw,
                    "subset": parse_subset(options.subset) if split == "train" else None,
                }
            ),
        )
        for split in splits
    ]
    workers = options.workers or len(os.sched_getaffinity(0))
    if options.plan:
        _print_plan(conversions, workers, as_json=options.log_json)
        return EXIT_DONE
    for conversion in conversions:
        # All are asked before the first is begun: bad input is never half accepted.
        if options.overwrite:
            refuse_foreign(conversion.destination)
        elif not conversion.finished():
            refuse_small_disk(conversion, recorded_shards(conversion.destination))
    manifests = [_convert_one(conversion, workers, options) for conversion in conversions]
    left_out = sum(len(manifest.left_out) for manifest in manifests)
    if left_out and options.strict:
        words = f"{left_out} images were left out, and --strict was given"
        print(_json("strict", left_out=left_out) if options.log_json else f"imagenet-mds: {words}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _refuse_options(options: ConvertOptions) -> None:
    """Options that do not fit together, or would do nothing."""
    if options.max_side and options.min_side:
        raise UserError("give --max-side or --min-side, not both: each alone says how large an image may be")
    if options.raw and options.tiles:
        raise UserError("give --raw or --tiles, not both: raw samples are pixels, and tiles are of JPEG files")
    if options.raw and not (options.max_side or options.min_side):
        raise UserError(
            "--raw alone would take many times the disk, for it stores the pixels of whole photographs: "
            "give a side too, --min-side 256"
        )
    if options.quality is not None and (options.raw or not (options.max_side or options.min_side)):
        raise UserError(
            "--quality is of JPEG files that are scaled: give it with --max-side or --min-side, and not with --raw"
        )


def _convert_one(conversion: SplitConversion, workers: int, options: ConvertOptions) -> Manifest:
    with locked(conversion.destination):
        # Asked again: since the first look another process may have made something here.
        if options.overwrite:
            refuse_foreign(conversion.destination)
            clear_split(conversion.destination)
        elif manifest := conversion.finished():
            remove_leftovers(conversion.destination)
            if options.log_json:
                print(_json("complete", **_json_fields(conversion, manifest)))
            else:
                print(
                    f"{conversion.location} is complete already: {manifest.samples:,} images ({manifest.fingerprint})"
                )
            return manifest
        return _make_one(conversion, workers, options)


def _make_one(conversion: SplitConversion, workers: int, options: ConvertOptions) -> Manifest:
    started = time.monotonic()
    seen = kept = made_images = left_out = source_bytes = 0
    total = Spent()
    images = len(conversion.plan.order)
    with ProgressLine(conversion.split, images, "images", as_json=options.log_json) as progress:

        def on_shard(record: ShardRecord, spent: Spent | None) -> None:
            nonlocal seen, kept, made_images, left_out, source_bytes
            seen, left_out = seen + 1, left_out + len(record.left_out)
            done = (record.info.samples if record.info else 0) + len(record.left_out)
            if spent is None:
                kept += record.info is not None
                progress.resume_from(done)
                return
            made_images, source_bytes = made_images + done, source_bytes + record.source_bytes
            total.add(spent)
            rate = source_bytes / 1e6 / max(time.monotonic() - started, 1e-9)
            note = f"{rate:,.0f} MB/s, shard {seen} of {conversion.plan.shards}, {left_out} left out"
            progress.advance(done, note)

        manifest = convert_split(conversion, workers, on_shard, _ENGINES[options.engine])
    seconds, parts = time.monotonic() - started, _parts(total, conversion.destination)
    if options.log_json:
        took = {"seconds": round(seconds, 3), "workers": workers, "worker_seconds": parts}
        made = {"kept_shards": kept, "made_images": made_images}
        print(_json("done", **_json_fields(conversion, manifest), **made, **took))
        return manifest
    again = f" ({kept} of them from before)" if kept else ""
    print(
        f"{conversion.location}: {manifest.samples:,} images in {len(manifest.shards):,} shards{again}, "
        f"{manifest.size_bytes / 1e6:,.1f} MB, {manifest.fingerprint}"
    )
    rates = f"{made_images / seconds:,.0f} images/s, {source_bytes / 1e6 / seconds:,.0f} MB/s with {workers} workers"
    print(f"  {rates}; {_shares(parts)}")
    report_exceptions(manifest)
    return manifest


def _json(event: str, **fields: Any) -> str:
    """A line for programs."""
    return json.dumps({"event": event, **fields})


def _json_fields(conversion: SplitConversion, manifest: Manifest) -> dict[str, Any]:
    """What a line for programs says of a split that is complete."""
    return {
        "split": manifest.split,
        "location": conversion.location,
        "images": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.size_bytes,
        "fingerprint": manifest.fingerprint,
        "left_out": len(manifest.left_out),
    }


def _parts(spent: Spent, destination: Storage) -> dict[str, float]:
    """Where the workers' time went, the slowest part first: what is written to S3 is uploaded."""
    names = {"write": "upload"} if destination.remote else {}
    parts = sorted(asdict(spent).items(), key=lambda part: -part[1])
    return {names.get(name, name): seconds for name, seconds in parts}


def _shares(parts: dict[str, float]) -> str:
    whole = sum(parts.values()) or 1.0
    return "of the workers' time " + ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items())


def report_exceptions(manifest: Manifest) -> None:
    """List what was left out and what was changed, with reasons; the manifest has the whole list."""
    if manifest.scaled:
        print(f"  scaled down: {manifest.scaled:,} images")
    if manifest.policy.tiles:
        rest = manifest.samples - manifest.tiled
        print(f"  with restart tiles: {manifest.tiled:,} images; {rest:,} cannot have them and are as they were")
    for verb, entries in (
        ("duplicate", [(entry.key, f"the same file as {entry.of}") for entry in manifest.duplicates]),
        ("left out", [(entry.key, entry.reason) for entry in manifest.left_out]),
        ("changed", [(entry.key, entry.change) for entry in manifest.changed]),
    ):
        for key, reason in entries[:_MOST_SHOWN]:
            print(f"  {verb}: {key}: {reason}")
        if len(entries) > _MOST_SHOWN:
            more = len(entries) - _MOST_SHOWN
            print(f"  {verb}: {more:,} more, all in {manifest.split}/{MANIFEST_BASENAME}")


def _print_plan(conversions: Sequence[SplitConversion], workers: int, *, as_json: bool) -> None:
    """What the conversion will be and take; nothing is written."""
    costs = [estimate(conversion, workers) for conversion in conversions]
    free = conversions[0].destination.free_bytes()
    if as_json:
        for conversion, cost in zip(conversions, costs, strict=True):
            _print_json_plan(conversion, cost, free)
        return
    table = Table(
        "split", "images", "classes", "shards", "bytes", "minutes here", "conversion", box=None, header_style=""
    )
    for conversion, cost in zip(conversions, costs, strict=True):
        table.add_row(
            conversion.split,
            f"{cost.images:,}",
            f"{len(conversion.source.classes):,}",
            f"{cost.shards:,}",
            f"{cost.size_bytes:,}",
            f"{cost.minutes:,.1f}",
            conversion.fingerprint,
        )
    Console(width=120, highlight=False).print(table)
    size_gb = sum(cost.size_bytes for cost in costs) / 1e9
    print(f"minutes: with {workers} workers, at the rate of the first images in one process here")
    if free is None:
        requests = sum(cost.s3_requests for cost in costs)
        once, monthly = sum(cost.s3_dollars_once for cost in costs), sum(cost.s3_dollars_monthly for cost in costs)
        print(f"S3: {requests:,} requests, ${once:,.2f} once, and ${monthly:,.2f} a month to keep it")
    else:
        print(f"disk: {size_gb:,.1f} GB needed, {free / 1e9:,.1f} GB free")


def _print_json_plan(conversion: SplitConversion, cost: Cost, free_bytes: int | None) -> None:
    dollars = {"s3_dollars_once": cost.s3_dollars_once, "s3_dollars_monthly": cost.s3_dollars_monthly}
    print(
        _json(
            "plan",
            split=conversion.split,
            location=conversion.location,
            images=cost.images,
            classes=len(conversion.source.classes),
            shards=cost.shards,
            bytes=cost.size_bytes,
            minutes=round(cost.minutes, 3),
            conversion=conversion.fingerprint,
            **({"s3_requests": cost.s3_requests, **dollars} if free_bytes is None else {"free_bytes": free_bytes}),
        )
    )


def run_verify(dataset: str, *, deep: bool, repair: str | None) -> int:
    """Check every split that is there; repair if a source is given. Return the exit status."""
    manifests = read_dataset(dataset)
    source = open_source(repair) if repair else None
    broken = 0
    for split, manifest in manifests:
        with ProgressLine(f"verify {split.name}", len(manifest.shards), "shards") as progress:
            threads = len(os.sched_getaffinity(0))
            faults = verify_split(split, manifest, deep=deep, threads=threads, on_shard=lambda: progress.advance(1))
        if not faults:
            whole = f"{len(manifest.shards):,} shards, {manifest.samples:,} images"
            print(f"{split.location}: {whole}, all as the manifest has it")
            continue
        for fault in faults:
            print(f"broken: {split.location}/{fault.name}: {fault.reason}")
        if source is None:
            broken += len(faults)
            continue
        with locked(split):
            if read_manifest(split) != manifest:
                raise UserError(f"{split.location} has been converted anew meanwhile: verify it again")
            repaired = repair_split(split, manifest, faults, source)
        for name in repaired:
            print(f"repaired: {split.location}/{name}")
        # An image that does not decode in a whole shard came so from the source: nothing to rebuild.
        broken += len({fault.name for fault in faults} - set(repaired))
    if broken:
        how = "" if source else f"; `imagenet-mds verify {dataset} --repair SOURCE` rebuilds just that"
        print(f"imagenet-mds: {broken} files are broken{how}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE
