"""What the instances of a launch have cost: each one writes how long it has run, and anybody adds them up."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.s3 import S3Storage


@dataclass(frozen=True)
class Machine:
    """An instance.

    booted, seen: seconds since 1970; it is paid for from a minute before the first on.
    dollars_per_hour: None if it is not known.
    end: why it ended, None as long as it runs, or if it was lost.
    """

    instance: str
    type: str
    zone: str
    booted: float
    seen: float
    dollars_per_hour: float | None
    end: str | None = None

    @property
    def hours(self) -> float:
        """How long it has been seen."""
        return max(self.seen - self.booted, 0.0) / 3600

    @property
    def dollars(self) -> float:
        """What these hours cost."""
        return self.hours * (self.dollars_per_hour or 0.0)


@dataclass(frozen=True)
class Ledger:
    """The instances of a launch. `storage` holds their records."""

    storage: S3Storage

    @classmethod
    def of(cls, bucket: str, run: str) -> "Ledger":
        """The ledger of a run."""
        return cls(S3Storage(bucket, f"launches/{run}"))

    def machines(self) -> list[Machine]:
        """The instances, the first one first.

        Raises:
            OSError: the bucket refuses.
        """
        found = [Machine(**json.loads(self.storage.read(name))) for name in self.storage.list_names()]
        return sorted(found, key=lambda machine: machine.booted)

    def write(self, machine: Machine) -> None:
        """Write what is so of an instance now.

        Raises:
            OSError: the bucket refuses.
        """
        self.storage.write(f"{machine.instance}.json", json_bytes(asdict(machine)))

    def totals(self, now: Machine | None = None) -> tuple[float, float]:
        """Hours and dollars of all instances.

        Args:
            now: counts in place of what was written of this instance.

        Raises:
            OSError: the bucket refuses.
        """
        machines = [one for one in self.machines() if now is None or one.instance != now.instance]
        return totals_of([*machines, now] if now else machines)


def totals_of(machines: Sequence[Machine]) -> tuple[float, float]:
    """Hours and dollars of instances."""
    return sum(one.hours for one in machines), sum(one.dollars for one in machines)


def at(machine: Machine, seen: float, end: str | None = None) -> Machine:
    """The record of a machine at a later time."""
    return replace(machine, seen=seen, end=end)
