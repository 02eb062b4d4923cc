"""`imagenet-mds convert`: its options and what it prints."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagenet_mds.cli.tables import json_line, print_line, progress_tracker, report_exceptions, split_fields
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, UserError
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.vocabulary import CheckLevel, ClassNumbers, EngineName, SourceKind, SplitName
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds.dataset.manifest import Manifest
    from imagenet_mds_convert.conversion import SplitConversion
    from imagenet_mds_convert.cost import Cost
    from imagenet_mds_convert.run import OnShard, Tally
    from imagenet_mds_convert.shards.build import Spent
    from imagenet_mds_convert.shards.record import ShardRecord

_MOST_SIDE_PX = 65_500
"""Longest side that libjpeg stores."""

_MOST_WORKERS = 1 << 16
"""More processes than a machine or a cluster has room for."""


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Source images: class folders, archives or parquet files, in a folder or at an s3:// or hf:// address."
        ),
    ],
    dest: Annotated[
        str, typer.Argument(help="Destination of the dataset (DEST/train, DEST/val): a folder or s3:// address.")
    ],
    split: Annotated[
        Literal[SplitName, "both"], typer.Option(help="Split to convert; both takes those that the source has.")
    ] = "both",
    source_format: Annotated[
        Literal["auto", SourceKind], typer.Option(help="Layout of SOURCE; auto detects it.")
    ] = "auto",
    verify_source: Annotated[
        bool, typer.Option("--verify-source", help="Compare the official files with their MD5 sums first.")
    ] = False,
    subset: Annotated[
        str | None,
        typer.Option(help="Number of training images to keep, or tiny, small, medium or large; all if not given."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST_WORKERS, help="Worker processes; one per processor if not given. S3 gains from more."
        ),
    ] = None,
    check: Annotated[CheckLevel, typer.Option(help="Check applied to each image.")] = "decode",
    max_side: Annotated[
        int | None,
        typer.Option(min=16, max=_MOST_SIDE_PX, help="Longer side, in pixels, to which larger images are scaled down."),
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(
            min=16, max=_MOST_SIDE_PX, help="Shorter side, in pixels, to which larger images are scaled down."
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality of scaled images; 90 if not given.")
    ] = None,
    classes: Annotated[
        ClassNumbers,
        typer.Option(
            help="Class numbers of a part of ImageNet: those of the 1,000, or of the classes that are present."
        ),
    ] = "imagenet",
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of train to hold out as val, class by class, where SOURCE has no val.")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Add restart markers, losslessly, so that training decodes only its crops.")
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store a half-size copy of each training image beside it, for large crops."),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Store the pixels of scaled images, so that training decodes nothing.")
    ] = False,
    shard_size: Annotated[
        str, typer.Option(help="Size of images per shard, in bytes or with a unit: 64MB, 16MiB.")
    ] = "64MiB",
    engine: Annotated[
        EngineName, typer.Option(help="Processes on this machine, or a Ray cluster (RAY_ADDRESS).")
    ] = "local",
    seed: Annotated[int, typer.Option(min=0, help="Seed for the sample order.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and its cost, and write nothing.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if any image was left out, or any file not taken.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another dataset at DEST first.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write progress, plan and summary as JSON lines.")
    ] = False,
) -> int:
    """Convert images to MDS shards. Run it again to resume."""
    from pydantic import ValidationError

    from imagenet_mds.cli.options import parse_size
    from imagenet_mds.dataset.manifest import DEFAULT_QUALITY, Policy
    from imagenet_mds.dataset.subsets import parse_subset
    from imagenet_mds.jpeg.tile_table import TILE_GROWTH
    from imagenet_mds.storage import open_storage
    from imagenet_mds_convert.destination import refuse_inside
    from imagenet_mds_convert.images.policy import HALF_QUALITY
    from imagenet_mds_convert.run import class_notes, convert_splits, plan_splits
    from imagenet_mds_convert.sources import open_source
    from imagenet_mds_convert.sources.checksums import verify_checksums

    try:
        policy = Policy(
            check=check,
            seed=seed,
            shard_size_bytes=parse_size(shard_size, "--shard-size"),
            subset=parse_subset(subset),
            max_side=max_side,
            min_side=min_side,
            quality=DEFAULT_QUALITY if quality is None else quality,
            tiles=tiles,
            tile_growth=TILE_GROWTH if tiles else None,
            raw=raw,
            half_quality=HALF_QUALITY if half else None,
            classes=classes,
            val_fraction=val_fraction,
        )
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    if quality is not None and (raw or not policy.scaled):
        raise UserError("--quality is for scaled JPEG files: add --max-side or --min-side, and remove --raw")
    output = _Output(workers or usable_processors(), as_json=log_json)
    track = progress_tracker(as_json=log_json)
    dataset = open_storage(dest)
    refuse_inside(source, dest)
    # Which classes are present depends on both splits; otherwise a split that is not asked for is not looked at.
    alone = None if split == "both" or classes == "present" or val_fraction is not None else split
    opened = open_source(source, source_format, alone)
    output.print_warnings(opened.warnings)
    there = opened.splits if val_fraction is None else _with_held_out(opened.splits)
    splits = there if split == "both" else (split,)
    if verify_source:
        verify_checksums(opened, dict.fromkeys(map(policy.read_from, splits)), track)
    conversions = plan_splits(opened, splits, dataset, policy, track)
    output.print_warnings(class_notes(conversions))
    if plan:
        output.print_plan(conversions)
        return EXIT_DONE
    manifests = convert_splits(
        conversions,
        output.workers,
        show_progress=output.show_progress,
        on_converted=output.print_converted,
        engine=engine,
        overwrite=overwrite,
        track=track,
    )
    left_out = sum(len(manifest.left_out) for manifest in manifests)
    not_taken = sum(entry.files for manifest in manifests for entry in manifest.not_taken)
    if not strict or not left_out + not_taken:
        return EXIT_DONE
    output.print_refusal(left_out, not_taken)
    return EXIT_FAILED


def _with_held_out(there: "tuple[SplitName, ...]") -> "tuple[SplitName, ...]":
    """The splits of a conversion that holds val out of train."""
    if there != ("train",):
        raise UserError(f"--val-fraction is for a source with train alone, and this one has {' and '.join(there)}")
    return ("train", "val")


@dataclass(frozen=True)
class _Output:
    """Prints what a conversion reports, as text or as JSON lines."""

    workers: int
    as_json: bool

    def print_warnings(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            print_line(json_line("note", note=warning) if self.as_json else f"note: {warning}", to_stderr=True)

    @contextmanager
    def show_progress(self, conversion: "SplitConversion", tally: "Tally") -> "Iterator[OnShard]":
        from imagenet_mds.progress import ProgressLine

        with ProgressLine(conversion.split, len(conversion.plan.order), "images", as_json=self.as_json) as line:

            def on_shard(record: "ShardRecord", spent: "Spent | None") -> None:
                if spent is None:
                    line.resume_from(record.images)
                    return
                rate = tally.source_bytes / 1e6 / tally.seconds
                shards = f"shard {tally.shards} of {conversion.plan.shards}"
                line.advance(record.images, f"{rate:,.0f} MB/s, {shards}, {tally.left_out} left out")

            yield on_shard

    def print_converted(self, conversion: "SplitConversion", manifest: "Manifest", tally: "Tally | None") -> None:
        if tally:
            self._print_summary(conversion, manifest, tally)
        elif self.as_json:
            print(json_line("complete", **split_fields(conversion.location, manifest)))
        else:
            counts = f"{manifest.samples:,} images ({manifest.fingerprint})"
            print_line(f"{conversion.location} is complete already: {counts}")

    def print_refusal(self, left_out: int, not_taken: int) -> None:
        both = [f"{left_out:,} images were left out"] if left_out else []
        both += [f"{not_taken:,} files were not taken"] if not_taken else []
        complaint = f"imagenet-mds: {' and '.join(both)}, and --strict was given"
        as_json = json_line("strict", left_out=left_out, not_taken=not_taken)
        print(as_json if self.as_json else complaint, file=sys.stderr)

    def _print_summary(self, conversion: "SplitConversion", manifest: "Manifest", tally: "Tally") -> None:
        seconds = tally.seconds
        # Writing to S3 means uploading. The slowest part comes first.
        names = {"write": "upload"} if conversion.destination.remote else {}
        slowest_first = sorted(asdict(tally.spent).items(), key=lambda part: -part[1])
        parts = {names.get(name, name): spent for name, spent in slowest_first}
        if self.as_json:
            took = {"seconds": round(seconds, 3), "workers": self.workers, "worker_seconds": parts}
            made = {"kept_shards": tally.kept_shards, "made_images": tally.made_images}
            print(json_line("done", **split_fields(conversion.location, manifest), **made, **took))
            return
        kept = f" ({tally.kept_shards} of them from before)" if tally.kept_shards else ""
        print_line(
            f"{conversion.location}: {counted(manifest.samples, 'image')} in {counted(len(manifest.shards), 'shard')}"
            f"{kept}, "
            f"{manifest.size_bytes / 1e6:,.1f} MB, {manifest.fingerprint}"
        )
        if tally.also_elsewhere:
            print(f"  duplicate: {counted(tally.also_elsewhere, 'file')} of {manifest.split} in the other split too")
        if not tally.made_images:
            report_exceptions(manifest)
            return
        rates = f"{tally.made_images / seconds:,.0f} images/s, {tally.source_bytes / 1e6 / seconds:,.0f} MB/s"
        total = sum(parts.values()) or 1.0
        shares = ", ".join(f"{name} {spent / total:.0%}" for name, spent in parts.items())
        print(f"  {rates} with {counted(self.workers, 'worker')}; of the workers' time {shares}")
        report_exceptions(manifest)

    def print_plan(self, conversions: "Sequence[SplitConversion]") -> None:
        from rich.console import Console
        from rich.table import Table

        from imagenet_mds_convert.cost import estimate

        costs = [estimate(conversion, self.workers) for conversion in conversions]
        free = conversions[0].destination.free_bytes()
        if self.as_json:
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
                f"{len(conversion.classes):,}",
                f"{cost.shards:,}",
                f"{cost.size_bytes:,}",
                f"{cost.minutes:,.1f}",
                conversion.fingerprint,
            )
        Console(width=120, highlight=False).print(table)
        print(f"minutes: with {counted(self.workers, 'worker')}, at the rate of the first images in one process here")
        for conversion, cost in zip(conversions, costs, strict=True):
            if cost.reads:
                times, size_gb = counted(cost.reads, "time"), cost.gathered_bytes / 1e9
                print(f"{conversion.split}: the source is read {times}, with {size_gb:,.1f} GB of it on disk meanwhile")
            if cost.half_bytes:
                share = cost.half_bytes / cost.size_bytes
                print(f"{conversion.split}: half-size copies take {cost.half_bytes:,} of the bytes ({share:.0%})")
        if free is None:
            requests = sum(cost.s3_requests for cost in costs)
            once, monthly = sum(cost.s3_dollars_once for cost in costs), sum(cost.s3_dollars_monthly for cost in costs)
            print(f"S3: {requests:,} requests, ${once:,.2f} once, and ${monthly:,.2f} a month to keep it")
        else:
            size_gb = sum(cost.size_bytes for cost in costs) / 1e9
            print(f"disk: {size_gb:,.1f} GB needed, {free / 1e9:,.1f} GB free")


def _print_json_plan(conversion: "SplitConversion", cost: "Cost", free_bytes: int | None) -> None:
    dollars = {"s3_dollars_once": cost.s3_dollars_once, "s3_dollars_monthly": cost.s3_dollars_monthly}
    print(
        json_line(
            "plan",
            split=conversion.split,
            location=conversion.location,
            images=cost.images,
            classes=len(conversion.classes),
            shards=cost.shards,
            bytes=cost.size_bytes,
            minutes=round(cost.minutes, 3),
            conversion=conversion.fingerprint,
            **({"half_bytes": cost.half_bytes} if cost.half_bytes else {}),
            **({"gathered_bytes": cost.gathered_bytes, "source_reads": cost.reads} if cost.reads else {}),
            **({"s3_requests": cost.s3_requests, **dollars} if free_bytes is None else {"free_bytes": free_bytes}),
        )
    )
