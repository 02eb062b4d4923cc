"""Who may write a run in S3: the start that claimed it last. Imports no torch.

    lease/00000001.json      who claimed the run, and when; the number is the generation

A claim is a create-only write of the next number, so that of two at once one succeeds and the other claims the number
after it. The start that claimed last is the one to write: when an instance is to be replaced, the new one starts before
the old one ends. An earlier one learns of it before its next write, and stops.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from imagenet_mds.errors import EXIT_USER, CommandError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage

_ATTEMPTS = 20


class LostLease(CommandError):  # noqa: N818 # what happened
    """Another start continues the run. Starting this one again would take the run from that one."""

    exit_status = EXIT_USER


@dataclass(frozen=True)
class Lease:
    """The right to write a run.

    storage: of the leases of the run.
    generation: counted from 1.
    """

    storage: Storage
    generation: int

    @classmethod
    def claim(cls, storage: Storage) -> "Lease":
        """Take the run over.

        Raises:
            LostLease: others claim it without end.
            UserError, OSError: the storage refuses.
        """
        owner = json_bytes({"host": socket.gethostname(), "pid": os.getpid(), "time": round(time.time(), 3)})
        for _ in range(_ATTEMPTS):
            newest = max(_generations(storage), default=0)
            try:
                storage.create(_name(newest + 1), owner)
            except FileExistsError:
                continue
            for old in _generations(storage):
                if old < newest:  # the one before stays, to say who it was
                    storage.delete(_name(old))
            return cls(storage, newest + 1)
        raise LostLease(f"{storage.parent.location} is claimed by other starts again and again: start it once")

    def refuse_lost(self) -> None:
        """Make sure that nobody has claimed the run since.

        Raises:
            LostLease: somebody has.
            UserError, OSError: the storage refuses.
        """
        newest = max(_generations(self.storage), default=self.generation)
        if newest <= self.generation:
            return
        try:
            owner: dict[str, Any] = json.loads(self.storage.read(_name(newest)))
        except (FileNotFoundError, ValueError):
            owner = {}
        since = time.strftime("%H:%M:%S UTC", time.gmtime(owner["time"])) if "time" in owner else "now"
        raise LostLease(
            f"{self.storage.parent.location} was taken over by {owner.get('host', 'another machine')} at {since}, "
            f"process {owner.get('pid', 'unknown')}: this start writes nothing any more"
        )


def _name(generation: int) -> str:
    return f"{generation:08d}.json"


def _generations(storage: Storage) -> list[int]:
    names = [name.removesuffix(".json") for name in storage.list_names()]
    return [int(name) for name in names if name.isdecimal()]
