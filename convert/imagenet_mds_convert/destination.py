"""The place of a split: whose it is, what in it is ours, and how it is locked and emptied."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from imagenet_mds.dataset.manifest import KEYS_BASENAME, MANIFEST_BASENAME, WORK_FOLDER
from imagenet_mds.dataset.mds import INDEX_BASENAME
from imagenet_mds.errors import UserError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage, writing_to


@contextmanager
def locked(destination: Storage) -> Iterator[None]:
    """Hold a split's place against other conversions: what is seen, removed and written there, from the look at what it
    holds to the manifest, is under one hold. S3 cannot be locked.

    Raises:
        UserError: another process is converting to it.
        WorldError: the storage refuses.
    """
    with ExitStack() as stack:
        try:
            with writing_to(destination, but=BlockingIOError):
                stack.enter_context(destination.lock())
        except BlockingIOError:
            raise UserError(
                f"{destination.location} is being converted to by another process: wait for it, or give another "
                f"destination"
            ) from None
        yield


def clear_split(destination: Storage) -> None:
    """Empty a split's folder, which must be `locked`. The manifest goes first, so that a half removed split is never
    taken for a whole one, and the work folder last, so that the folder is known as ours until it is empty.

    Raises:
        WorldError: the storage refuses.
    """
    names = destination.list_names()
    if not names:
        return
    with writing_to(destination):
        destination.write(f"{WORK_FOLDER}/clearing", b"")
        for name in (MANIFEST_BASENAME, INDEX_BASENAME, *(name for name in names if name != WORK_FOLDER), WORK_FOLDER):
            destination.delete(name)


def is_ours(basename: str) -> bool:
    """Whether a conversion writes files of this name into a split's place."""
    ours = {MANIFEST_BASENAME, INDEX_BASENAME, KEYS_BASENAME, WORK_FOLDER}
    return basename in ours or re.fullmatch(r"shard\.\d{5,}\.mds|\..+\.tmp", basename) is not None


def remove_leftovers(destination: Storage) -> None:
    """Remove what this run and killed ones have left beside a complete split. If that fails, nothing is lost."""
    with suppress(OSError, UserError):
        destination.delete(WORK_FOLDER)
        remove_partials(destination, complete=True)


def remove_partials(destination: Storage, *, complete: bool) -> None:
    """Remove what a killed run left half written; see `Storage.remove_partials`."""
    for folder in ("", WORK_FOLDER):
        destination.remove_partials(folder, complete=complete)


def refuse_inside(source: str, dest: str) -> None:
    """A dataset inside its own source would be part of the source from then on."""
    if source.startswith("s3://") and dest.startswith("s3://"):
        inside = f"{open_storage(dest).location}/".startswith(f"{open_storage(source).location}/")
    elif "://" in source or "://" in dest:
        return
    else:
        inside = Path(dest).resolve().is_relative_to(Path(source).resolve())
    if inside:
        raise UserError(f"{dest} lies inside the source {source}: give a destination outside of it")


def refuse_foreign(destination: Storage) -> None:
    """--overwrite removes datasets of ours, never anything else."""
    try:
        names = destination.list_names()
    except NotADirectoryError:
        raise UserError(f"{destination.location} is a file: remove it yourself") from None
    strange = [name for name in names if not is_ours(name)]
    if names and not strange and not {MANIFEST_BASENAME, KEYS_BASENAME, WORK_FOLDER} & set(names):
        strange = names
    if strange:
        raise UserError(
            f"{destination.location} holds something that imagenet-mds did not write ({strange[0]}): empty it yourself"
        )
