"""Losses of batches that were trained again, compared with those of the run's log. Imports no torch.

A batch has the same loss again only if all batches before it were trained on the same numbers of ranks: each rank
normalises its own part of a batch, and sums depend on how they are split. A run may have been continued on other
numbers of ranks, so each attempt of the log has a lineage, by which it is judged or only shown.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

BOUND = 0.02
"""The largest relative difference of a loss in a run that is not deterministic. Kernels that add up in any order change
the last bits of a step, in fp16 by one part in 2,000, and later steps amplify that. A wrong learning rate, momentum or
random state changes losses by more within a few batches, and so do other images in batches of up to some hundred. What
is smaller is found in deterministic runs alone, whose losses must be equal."""

Lineage: TypeAlias = list[tuple[int, int | None]]
"""The ranks that trained a run's batches: (finished batches, ranks from then on), in order."""


@dataclass(frozen=True)
class Attempt:
    """A start of the run, as its log has it.

    number: counted from 1.
    batch: finished batches when it started.
    ranks: None where the log does not say.
    machine: what it computed with, by name; empty in logs of earlier versions.
    lineage: of its batches.
    """

    number: int
    batch: int
    ranks: int | None
    machine: dict[str, Any]
    lineage: Lineage


@dataclass(frozen=True)
class LoggedLoss:
    """A line of the log about a batch. A loss that was not finite is None."""

    batch: int
    attempt: int
    loss: float | None


@dataclass(frozen=True)
class RunLosses:
    """The log of a run: its attempts by number, and the losses ordered by batch, then as they were written."""

    attempts: dict[int, Attempt]
    losses: list[LoggedLoss]
    saved_by: dict[int, int]
    """The attempt that saved the checkpoint of each batch last."""

    @classmethod
    def of(cls, events: Iterable[Any]) -> "RunLosses":
        """Read the events of a log. Those that are none are left out."""
        attempts: dict[int, Attempt] = {}
        losses, saved_by = [], {}
        for event in events:
            if not isinstance(event, dict):
                continue
            name, attempt, batch, loss = (event.get(key) for key in ("event", "attempt", "batch", "loss"))
            if not isinstance(attempt, int) or not isinstance(batch, int):
                continue
            if name == "start":
                parent: Lineage = next(
                    (one.lineage for one in reversed(attempts.values()) if one.batch < batch),
                    [],
                )
                ranks = event.get("ranks")
                machine = event.get("machine")
                attempts[attempt] = Attempt(
                    attempt,
                    batch,
                    ranks,
                    machine if isinstance(machine, dict) else {},
                    [*_before(parent, batch), (batch, ranks)],
                )
            elif name == "batch" and "loss" in event:
                losses.append(LoggedLoss(batch, attempt, float(loss) if isinstance(loss, int | float) else None))
            elif name == "checkpoint":
                saved_by[batch] = attempt
        return cls(attempts, sorted(losses, key=lambda one: one.batch), saved_by)

    def after(self, batch: int, count: int) -> list[LoggedLoss]:
        """The losses of the `count` batches after `batch`, as far as they are logged."""
        return [one for one in self.losses if batch < one.batch <= batch + count]

    def lineage_from(self, batch: int, ranks: int) -> Lineage:
        """That of batches that are trained on `ranks` from the checkpoint of `batch` on."""
        saved_by = self.attempts.get(self.saved_by.get(batch, 0))
        if saved_by is None:  # the log has no line of it
            saved_by = next((one for one in reversed(self.attempts.values()) if one.batch < batch), None)
        return [*_before(saved_by.lineage if saved_by else [], batch), (batch, ranks)]

    def is_of(self, loss: LoggedLoss, lineage: Lineage) -> bool:
        """Whether the batch was trained as one of this lineage."""
        attempt = self.attempts.get(loss.attempt)
        return attempt is None or _merged(_before(attempt.lineage, loss.batch)) == _merged(_before(lineage, loss.batch))


def _before(lineage: Lineage, batch: int) -> Lineage:
    """The part of a lineage that trained the batches up to `batch`."""
    return [part for part in lineage if part[0] < batch]


def _merged(lineage: Lineage) -> Lineage:
    """A lineage without the starts on as many ranks as before."""
    return [part for place, part in enumerate(lineage) if place == 0 or part[1] != lineage[place - 1][1]]


@dataclass(frozen=True)
class ComparedLoss:
    """A loss in the log beside that of now; None stands for one that is not finite.

    ranks: of the attempt that logged it.
    judged: whether the verdict depends on it.
    """

    batch: int
    attempt: int
    ranks: int | None
    logged: float | None
    now: float | None
    judged: bool

    @property
    def difference(self) -> float:
        """The relative difference: 0 for equal losses alone, infinite if one is not finite or that of the log is 0."""
        if self.logged == self.now:
            return 0.0
        if self.logged is None or self.now is None or self.logged == 0:
            return math.inf
        return abs(self.now - self.logged) / abs(self.logged)


@dataclass(frozen=True)
class Verdict:
    """What a replay found.

    bound: the largest difference that agrees; 0 in a deterministic run.
    compared: ordered by batch, then as the log has them.
    then, now: what the log and the replay were computed with, by name.
    is_related: whether the judged batches were trained on the replay's numbers of ranks.
    """

    bound: float
    compared: list[ComparedLoss]
    then: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)
    is_related: bool = True

    @classmethod
    def of(
        cls,
        log: RunLosses,
        logged: Sequence[LoggedLoss],
        batch: int,
        ranks: int,
        losses: Sequence[float | None],
        *,
        deterministic: bool,
        machine: dict[str, Any],
    ) -> "Verdict":
        """Compare losses with those of the log.

        Args:
            log: the run's.
            logged: its losses to compare, of batches after `batch`.
            batch: that of the checkpoint.
            ranks: those of the replay.
            losses: of each batch after `batch`; None for one that is not finite.
            deterministic: whether the losses must be equal.
            machine: what the replay computed with, by name.
        """
        lineage = log.lineage_from(batch, ranks)
        # On numbers of ranks that the run never had, nothing was trained as here: then all are judged.
        related = {one for one in logged if log.is_of(one, lineage)}
        same = related or set(logged)
        compared = []
        for one in logged:
            by, now = log.attempts.get(one.attempt), losses[one.batch - batch - 1]
            compared.append(ComparedLoss(one.batch, one.attempt, by.ranks if by else None, one.loss, now, one in same))
        judged = [log.attempts[one.attempt] for one in logged if one in same and one.attempt in log.attempts]
        return cls(
            0.0 if deterministic else BOUND, compared, judged[-1].machine if judged else {}, machine, bool(related)
        )

    @property
    def judged(self) -> list[ComparedLoss]:
        """The losses that the verdict depends on."""
        return [one for one in self.compared if one.judged]

    @property
    def differing(self) -> list[ComparedLoss]:
        """The judged losses that differ by more than the bound."""
        return [one for one in self.judged if one.difference > self.bound]

    @property
    def largest(self) -> float:
        """The largest difference of a judged loss."""
        return max(one.difference for one in self.judged)

    @property
    def torn(self) -> list[int]:
        """The batches whose losses in the log differ among themselves by more than the bound, of attempts that should
        have the same."""
        if not self.is_related:
            return []
        firsts: dict[int, ComparedLoss] = {}
        found = []
        for one in self.judged:
            first = firsts.setdefault(one.batch, one)
            between = ComparedLoss(one.batch, one.attempt, one.ranks, first.logged, one.logged, True)
            if between.difference > self.bound and one.batch not in found:
                found.append(one.batch)
        return found

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """What of the machine the log has otherwise: (then, now) by name."""
        names = self.then.keys() & self.now.keys()
        return {name: (self.then[name], self.now[name]) for name in sorted(names) if self.then[name] != self.now[name]}
