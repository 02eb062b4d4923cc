"""`imagenet-mds verify`: its options and what it prints."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import DatasetArgument
from imagenet_mds.cli.tables import print_line, progress_tracker
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds.dataset.manifest import Manifest
    from imagenet_mds.storage.base import Storage
    from imagenet_mds_convert.verify import BadImage, Fault


def verify(
    dataset: DatasetArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image as well.")] = False,
    repair: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Source from which broken files are rebuilt.")
    ] = None,
) -> int:
    """Check every shard against the manifest. List what is broken, or repair it."""
    from imagenet_mds_convert.sources import refuse_no_folder, reopen_source
    from imagenet_mds_convert.verify import verify_dataset

    if repair is not None:
        refuse_no_folder(repair)
    broken = verify_dataset(
        dataset,
        deep=deep,
        source=None if repair is None else partial(reopen_source, repair),
        threads=usable_processors(),
        track=progress_tracker(),
        on_split=_print_split,
        on_repair=lambda split, name: print_line(f"repaired: {split.location}/{name}"),
    )
    if broken.files:
        how = "" if repair else f"; `imagenet-mds verify {dataset} --repair SOURCE` rebuilds just those"
        print_line(f"imagenet-mds: {counted(broken.files, 'broken file')}{how}", to_stderr=True)
    if broken.images:
        print(
            f"imagenet-mds: {counted(broken.images, 'image')} of intact shards cannot be decoded: the source has "
            f"them like that. To leave them out, convert again with `--check decode --overwrite`; to have them, "
            f"replace them in the source first; to train without them as it is, pass data.damaged=black",
            file=sys.stderr,
        )
    return EXIT_FAILED if broken.files or broken.images else EXIT_DONE


def _print_split(split: "Storage", manifest: "Manifest", faults: "list[Fault]", bad: "list[BadImage]") -> None:
    if not faults:
        counts = f"{counted(len(manifest.shards), 'shard')}, {counted(manifest.samples, 'image')}"
        print_line(f"{split.location}: {counts}, all as the manifest has it")
    for fault in faults:
        print_line(f"broken: {split.location}/{fault.name}: {fault.reason}")
    for image in bad:
        print_line(f"does not decode: {image.key} ({split.location}/{image.shard}): {image.reason}")
