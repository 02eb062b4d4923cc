"""What a run may do in S3, tried before anything else. Imports no torch."""

import os
import socket
from collections.abc import Callable

from imagenet_mds.errors import CommandError, UserError
from imagenet_mds.storage.base import Storage

_PERMISSIONS = {
    "list": "s3:ListBucket",
    "put": "s3:PutObject",
    "get": "s3:GetObject",
    "delete": "s3:DeleteObject",
}


def check_permissions(storage: Storage) -> None:
    """List, write, read and delete under the prefix of a run.

    Raises:
        UserError: one of them is refused; the message names the permission.
    """
    name = f".permissions-{socket.gethostname()}-{os.getpid()}"

    def read() -> None:
        if storage.read(name) != b"permissions":
            raise OSError("another content came back")

    calls: dict[str, Callable[[], object]] = {
        "list": storage.list_names,
        "put": lambda: storage.write(name, b"permissions"),
        "get": read,
        "delete": lambda: storage.delete(name),
    }
    for what, call in calls.items():
        try:
            call()
        except (CommandError, OSError) as error:
            raise UserError(
                f"{storage.location} cannot be used for a run, {what} failed ({error}): allow {_PERMISSIONS[what]} "
                f"there, or pass another --save"
            ) from error
