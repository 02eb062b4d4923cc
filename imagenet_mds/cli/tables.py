"""What several commands print: lines of JSON, lines of progress, and the images that were left out or changed."""

import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from imagenet_mds.words import one_line

if TYPE_CHECKING:
    from imagenet_mds.dataset.manifest import Manifest
    from imagenet_mds_convert.sources.base import Track

_MOST_SHOWN = 10


def json_line(event: str, **fields: Any) -> str:
    """One event as a line of JSON."""
    return json.dumps({"event": event, **fields})


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Print one line, whatever the names in it."""
    print(one_line(text), file=sys.stderr if to_stderr else sys.stdout)


def print_note(text: str) -> None:
    """Print one line that needs no action at once, on standard error."""
    print_line(f"note: {text}", to_stderr=True)


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print a table, a line per row whatever the width of the terminal.

    Args:
        header: the names of the columns.
        rows: their cells; control characters are escaped.
        right: the columns that are aligned to the right.
    """
    from rich.cells import cell_len

    lines = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = []
        for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if place in right else cell + padding)
        print("  ".join(cells).rstrip())


def split_fields(location: str, manifest: "Manifest") -> dict[str, Any]:
    """The fields of a JSON line about a complete split."""
    return {
        "split": manifest.split,
        "location": location,
        "images": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": manifest.size_bytes,
        "fingerprint": manifest.fingerprint,
        "left_out": len(manifest.left_out),
        "not_taken": [entry.model_dump() for entry in manifest.not_taken],
    }


def progress_tracker(*, as_json: bool = False) -> "Track":
    """A callback for library functions that take long: it shows a `ProgressLine` while they work."""
    from imagenet_mds.progress import ProgressLine

    @contextmanager
    def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with ProgressLine(what, total, unit, as_json=as_json) as line:
            yield line.advance

    return track


def report_exceptions(manifest: "Manifest") -> None:
    """Print what was scaled, left out or changed, with reasons: the first few of each, the rest is in the manifest."""
    from imagenet_mds.dataset.manifest import MANIFEST_BASENAME

    if manifest.scaled:
        print_line(f"  scaled down: {manifest.scaled:,} images")
    if manifest.policy.tiles:
        untiled = manifest.samples - manifest.tiled
        print_line(
            f"  with restart tiles: {manifest.tiled:,} images; {untiled:,} cannot have them and are stored unchanged"
        )
    if manifest.policy.half_quality is not None:
        share = manifest.half_bytes / manifest.size_bytes
        print_line(f"  with half-size copies: {manifest.half_bytes / 1e6:,.1f} MB, {share:.0%} of all")
    for group in manifest.not_taken:
        what = f"{group.suffix} files" if group.suffix else "files without a suffix"
        print_line(f"  not taken: {group.files:,} {what} in {group.place}, such as {group.example}")
    for verb, entries in (
        ("duplicate", [(entry.key, f"the same file as {entry.of}") for entry in manifest.duplicates]),
        ("left out", [(entry.key, entry.reason) for entry in manifest.left_out]),
        ("changed", [(entry.key, entry.change) for entry in manifest.changed]),
    ):
        for key, reason in entries[:_MOST_SHOWN]:
            print_line(f"  {verb}: {key}: {reason}")
        if len(entries) > _MOST_SHOWN:
            more = len(entries) - _MOST_SHOWN
            print_line(f"  {verb}: {more:,} more, all in {manifest.split}/{MANIFEST_BASENAME}")
