"""Where two runs differ: settings, dataset, figures. Imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from imagenet_mds.fingerprint import flatten
from imagenet_mds_train.history.runs import Run


@dataclass(frozen=True)
class Difference:
    """A dotted key and its value in each run, None where a run lacks it."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    """Two runs. `settings` are those of the configurations that differ; `origins` are the datasets, and what else of
    the identities and starts differs."""

    a: Run
    b: Run
    settings: list[Difference]
    origins: list[Difference]

    @classmethod
    def of(cls, a: Run, b: Run) -> "Comparison":
        """Compare two runs."""
        configs = (run.config.model_dump(mode="json") for run in (a, b))
        return cls(a, b, differing(*configs), differing(_origin(a), _origin(b)))

    def as_values(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "a": {"run": str(self.a.path)} | self.a.figures(),
            "b": {"run": str(self.b.path)} | self.b.figures(),
            "settings": [asdict(one) for one in self.settings],
            "origins": [asdict(one) for one in self.origins],
        }


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Where two trees differ, sorted by dotted key. A group that is null in one of them shows as null in each of the
    other's keys."""
    one, other = flatten(a), flatten(b)
    keys = sorted(one.keys() | other.keys())
    groups = {key for key in keys if any(longer.startswith(f"{key}.") for longer in keys)}
    return [
        Difference(key, one.get(key), other.get(key))
        for key in keys
        if key not in groups and one.get(key) != other.get(key)
    ]


def _origin(run: Run) -> dict[str, Any]:
    """The identity without the recipe, which is part of the configuration."""
    rest = {name: value for name, value in run.identity.items() if name != "recipe"}
    return rest | ({"forked_from": run.forked_from} if run.forked_from else {})
