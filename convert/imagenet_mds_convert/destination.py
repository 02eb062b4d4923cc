"""The destination of a split: locking it, clearing it, and recognising what in it was written by a conversion."""

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
    """Lock a split's destination against other conversions, from the first look at its content until the manifest is
    written. S3 cannot be locked.

    Raises:
        UserError: another process is converting to it.
        WorldError: the storage cannot be written.
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
    """Empty a split's folder, which must be `locked`.

    The manifest is removed first, so that a partly removed split never looks complete, and the work folder last, so
    that the folder is recognised as ours until it is empty.

    Raises:
        WorldError: the storage cannot be written.
    """
    names = destination.list_names()
    if not names:
        return
    with writing_to(destination):
        destination.write(f"{WORK_FOLDER}/clearing", b"")
        for name in (MANIFEST_BASENAME, INDEX_BASENAME, *(name for name in names if name != WORK_FOLDER), WORK_FOLDER):
            destination.delete(name)


def is_ours(basename: str) -> bool:
    """Whether a conversion writes files of this name into a split's folder."""
    ours = {MANIFEST_BASENAME, INDEX_BASENAME, KEYS_BASENAME, WORK_FOLDER}
    return basename in ours or re.fullmatch(r"shard\.\d{5,}\.mds|\..+\.tmp", basename) is not None


def remove_leftovers(destination: Storage) -> None:
    """Remove leftovers of this run and of killed ones from a complete split. Failures are ignored."""
    with suppress(OSError, UserError):
        destination.delete(WORK_FOLDER)
        remove_partials(destination, complete=True)


def remove_partials(destination: Storage, *, complete: bool) -> None:
    """Remove partly written files of a killed run; see `Storage.remove_partials`.

    Raises:
        OSError: the storage cannot be written.
    """
    for folder in ("", WORK_FOLDER):
        destination.remove_partials(folder, complete=complete)


def refuse_inside(source: str, dest: str) -> None:
    """Refuse a destination inside the source, where the dataset would become part of the source.

    Raises:
        UserError: it is inside.
    """
    if source.startswith("s3://") and dest.startswith("s3://"):
        inside = f"{open_storage(dest).location}/".startswith(f"{open_storage(source).location}/")
    elif "://" in source or "://" in dest:
        return
    else:
        inside = Path(dest).resolve().is_relative_to(Path(source).resolve())
    if inside:
        raise UserError(f"{dest} lies inside the source {source}: give a destination outside it")


def refuse_foreign(destination: Storage) -> None:
    """Refuse to overwrite anything that imagenet-mds did not write.

    Raises:
        UserError: the destination holds something else.
    """
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
