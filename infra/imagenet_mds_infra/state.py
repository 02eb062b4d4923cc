"""How far a launch is, by what its instances have written and what the group has."""

import time
from dataclasses import dataclass

from imagenet_mds_infra.account import RUN_TAG, tag_of
from imagenet_mds_infra.launches import Launch, launches
from imagenet_mds_infra.ledger import Ledger, Machine, totals_of
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.worker import End, read_end

SILENT_SECONDS = 300.0
"""An instance that has written nothing for this long is gone. It writes every minute."""


@dataclass(frozen=True)
class State:
    """A launch now.

    words: finished, failed, budget; running, starting, waiting for an instance; filling; stopped.
    end: how it ended, None if it has not.
    machines: its instances, the first one first.
    """

    launch: Launch
    words: str
    end: End | None
    machines: list[Machine]

    @classmethod
    def of(cls, stack: Stack, run: str) -> "State":
        """The state of a launch.

        Raises:
            UserError: there is no such launch.
            WorldError, OSError: AWS refuses.
        """
        storage = launches(stack.bucket)
        launch, end = Launch.read(storage, run), read_end(storage, run)
        machines = Ledger.of(stack.bucket, run).machines()
        has_group = launch.in_group and tag_of(stack.group, RUN_TAG) == run and stack.is_busy
        last = machines[-1] if machines else None
        words: str
        if end:
            words = "finished" if end.reason == "done" else end.reason
        elif last and last.end is None and time.time() - last.seen < SILENT_SECONDS:
            words = "running"
        elif has_group:
            words = "starting" if stack.group["Instances"] else "waiting for an instance"
        else:
            words = "stopped" if launch.in_group or machines else "filling"
        return cls(launch, words, end, machines)

    @property
    def hours_and_dollars(self) -> tuple[float, float]:
        """Of all instances."""
        return totals_of(self.machines)

    @property
    def interruptions(self) -> int:
        """Instances that were interrupted, or that vanished while others followed."""
        vanished = [one for one in self.machines[:-1] if one.end is None]
        return len(vanished) + sum(one.end == "interrupted" for one in self.machines)
