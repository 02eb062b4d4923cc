"""Plays games: a run in S3 meets one fault after another, continues each time, and ends as if nothing had happened."""

import contextlib
import json
import random
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from imagenet_mds.process.attempt import SHARED_MEMORY
from tests.chaos.arena import (
    BATCHES,
    BATCHES_PER_EPOCH,
    EPOCHS,
    EVERY_BATCHES,
    IN_FLIGHT_SECONDS,
    Arena,
    Command,
    Finished,
    Machine,
    Played,
    Report,
    Unavailable,
    age_of,
    arguments,
    is_running,
    kill_tree,
    print_report,
)
from tests.support.command import HANG_SECONDS, start, wait_until
from tests.support.metadata import Metadata
from tests.support.s3_server import BUCKET, direct
from tests.support.states import assert_same, read_state, tree_of


class Game:
    """One run and its faults.

    Args:
        arena: what games share.
        folder: for the machines of this game.
        metadata: the instance metadata service of all machines.
        seed: for everything that is drawn.
        ranks: of the run.
        until_done: whether the run is restarted in place.
        from_s3: whether it reads its dataset from S3.
    """

    def __init__(
        self,
        arena: Arena,
        folder: Path,
        metadata: Metadata,
        seed: int,
        ranks: int,
        *,
        until_done: bool,
        from_s3: bool = False,
    ) -> None:
        self.metadata, self.until_done = metadata, until_done
        self.arena, self.folder, self.seed, self.ranks = arena, folder, seed, ranks
        self.random = random.Random(seed)
        self.name = f"game{seed}-{ranks}"
        self.from_s3 = from_s3
        self.variables: dict[str, str] = {}
        """Further ones of the next starts."""
        self.at_the_end = contextlib.ExitStack()
        self.command: Command | None = None
        self.machines: list[Machine] = []
        self.played: list[Played] = []
        self.starts = 0
        self.next_on: Literal["same machine", "new machine"] | None = None
        """Where the next start is, None if that is drawn."""
        self.faulty_s3 = False
        self.trained: list[tuple[int, float]] = []
        """Each batch that was trained, in order, with its loss."""
        self._floor = 0
        self._exact: int | None = None
        self._most_again: int | None = None
        self._reached = 0
        self._here: tuple[Machine, int] | None = None
        """The last machine, and how far its working copy is."""
        self._pending: Played | None = None
        self._words = ""
        self._attempts: set[str] = set()
        self._accounted: set[tuple[float, int, str, int]] = set()
        """The events of the commands before: a clock that jumps makes their times later than the start of the next."""

    @classmethod
    def drawn(cls, arena: Arena, folder: Path, metadata: Metadata, seed: int, ranks: Sequence[int]) -> "Game":
        """The game of a seed.

        Args:
            arena, folder, metadata, seed: as in the constructor.
            ranks: numbers of ranks to choose from.
        """
        source = random.Random(f"game {seed}")
        of = source.choice(ranks)
        until_done, from_s3 = source.random() < 0.5, source.random() < 0.5
        return cls(arena, folder, metadata, seed, of, until_done=until_done, from_s3=from_s3)

    # What faults use.

    def running(self) -> Command:
        """The command that trains; it is started if none does."""
        if self.command is None:
            self.command = self.start(self.next_machine())
        return self.command

    def start(self, machine: Machine) -> Command:
        """Start or continue the run on a machine."""
        out = self.folder / f"start{self.starts}.out"
        self.starts += 1
        dataset = self.arena.in_s3 if self.from_s3 else self.arena.dataset
        known = arguments(dataset, f"s3://{BUCKET}/runs", self.name, self.ranks)
        if self.until_done:
            known.append("--until-done")
        # Without the proxy for everything that the service of the metadata comes with: S3 is here too.
        notices = {name: value for name, value in self.metadata.variables.items() if name != "http_proxy"}
        started = time.time()
        variables = {**self.arena.proxy.variables, **machine.variables, **notices, **self.variables}
        process = start(*known, log=out, **variables)
        return Command(machine, process, out, started)

    def next_machine(self) -> Machine:
        """The machine of the next start: the last one, or half of the times a new one."""
        wanted, self.next_on = self.next_on, None
        if not self.machines or wanted == "new machine" or (wanted is None and self.random.random() < 0.5):
            self.machines.append(Machine(self.folder / f"machine{len(self.machines)}"))
            self.machines[-1].folder.mkdir()
        return self.machines[-1]

    def events(self, *names: str, command: Command | None = None) -> list[dict[str, Any]]:
        """The events of the start that runs."""
        command = command or self.running()
        return [
            event
            for event in command.machine.log(self.name)
            if event["time"] >= command.started
            and (not names or event["event"] in names)
            and _key(event) not in self._accounted
        ]

    def reached(self) -> int:
        """The last batch that the start which runs has trained, 0 if it has none."""
        return max((event["batch"] for event in self.events("batch")), default=0)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition while the run trains.

        Raises:
            Finished: the run was done before.
        """
        command = self.running()

        def holds() -> bool:
            return bool(condition()) or command.process.poll() is not None

        wait_until(holds, what)
        self._note(command)
        if command.process.poll() == 0:
            raise Finished
        assert command.process.poll() is None, f"ended with {command.process.returncode}: {command.said()}"

    def wait_for_batches(self, count: int) -> None:
        """Wait until the start that runs has trained a number of batches."""
        self.wait_for(lambda: len(self.events("batch")) >= count, f"{count} batches")

    def wait_for_batch(self, batch: int) -> None:
        """Wait until a batch is trained."""
        self.wait_for(lambda: self.reached() >= batch, f"batch {batch}")

    def next_epoch_end(self) -> int:
        """The last batch of the epoch that is being trained, from the first trained batch of the start on."""
        self.wait_for_batches(1)
        return min(BATCHES, (self.reached() // BATCHES_PER_EPOCH + 1) * BATCHES_PER_EPOCH)

    def kill(self) -> None:
        """Kill the command with all of its processes, and see them gone."""
        command = self.running()
        self._note(command)
        command.pids |= set(kill_tree(command.process.pid))
        self.ended({-signal.SIGKILL})

    def ended(
        self, statuses: set[int], words: str = "", *, loses_nothing: bool = False, since: float | None = None
    ) -> int:
        """Wait for the end of the command, and of everything below it.

        Args:
            statuses: how it may end.
            words: part of what it must have said.
            loses_nothing: whether the next start has to begin with the batch after the last one that was trained.
            since: seconds of the wall clock at which the fault came; None for the end of the command.

        Raises:
            Finished: it ended with the run done, and that is not expected.
        """
        command = self.running()
        status = command.process.wait(HANG_SECONDS)
        died = since or time.time()
        if status == 0 and 0 not in statuses:
            raise Finished
        assert status in statuses, f"ended with {status}: {command.said()}"
        wait_until(lambda: not any(map(is_running, command.pids)), "the end of ranks and workers")
        assert words in command.said(), command.said()
        self._account(command, died)
        self.command = None
        if loses_nothing:
            self._exact = self._reached
        return status

    def records(self) -> list[str]:
        """The recorded checkpoints in S3, the newest first, by their names without an ending."""
        names = [Path(key).stem for key in self.keys("checkpoints/") if key.endswith(".json")]
        return sorted(names, key=age_of, reverse=True)

    def keys(self, below: str = "") -> list[str]:
        """The keys of the run in S3, past the proxy, from its own prefix on."""
        prefix = f"runs/{self.name}/"
        pages = (
            direct(self.arena.server).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + below)
        )
        return [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]

    def key(self, name: str) -> str:
        """A key of the run in S3."""
        return f"runs/{self.name}/{name}"

    def lost_checkpoint(self, before: str, words: str = "") -> None:
        """Start on a machine that has no checkpoint, after the newest one in S3 was damaged.

        Args:
            before: the one before it, which is used.
            words: what the start must say.
        """
        self._floor = self._exact = age_of(before)[0]
        self._most_again = None
        self.next_on = "new machine"
        self.expect(words)

    def expect(self, words: str) -> None:
        """Have the next start say something."""
        self._words = words

    def newest_here(self) -> int:
        """Finished batches of the newest checkpoint in the working copy of the command that runs."""
        return self.running().machine.newest(self.name)

    def is_restarted(self, words: str, *, at_least: int = 0) -> None:
        """Wait until the run goes on in place, after its ranks have failed.

        Args:
            words: why, as the command must say.
            at_least: the batch that it has to continue from, or a later one.
        """
        one, reached = self.played[-1], self.reached()
        count = len(self.events("start"))

        def starts() -> list[dict[str, Any]]:
            return self.events("start")[count:]

        self.wait_for(starts, "a restart")
        again = starts()[0]
        self.wait_for(lambda: self._batches_after(again), "a batch after the restart")
        assert words in self.running().said(), self.running().said()
        assert again["batch"] >= at_least, f"restarted at batch {again['batch']}, not at {at_least}"
        (failed,) = [event for event in self.events("failed") if event["attempt"] == again["attempt"] - 1]
        one.again = max(reached - again["batch"], 0)
        one.seconds = round(self._batches_after(again)[0]["time"] - failed["time"], 1)

    def is_taken_over(self, by: Command) -> None:
        """Wait until the command that trained before learns that another one continues the run; go on with that one.

        Args:
            by: it.
        """
        floor = self._floor
        self.ended({2}, "was taken over by")
        # What is in S3 by now is that of the other one.
        self._floor, self._most_again = floor, None
        self.command = by

    def _batches_after(self, start: dict[str, Any]) -> list[dict[str, Any]]:
        return [event for event in self.events("batch") if event["attempt"] == start["attempt"]]

    # The game.

    def play(self, faults: Mapping[str, Callable[["Game"], str]]) -> Report:
        """Play faults in their order, then finish the run and compare it with the undisturbed one."""
        begun = time.monotonic()
        try:
            for name, fault in faults.items():
                one = Played(name)
                self.played.append(one)
                try:
                    one.moment = fault(self)
                    one.outcome = "went on" if self.command else "stopped"
                except Finished:
                    one.outcome = "missed"
                    break
                except Unavailable as error:
                    one.outcome, one.moment = "not possible here", str(error)
                    continue
                finally:
                    self.arena.proxy.choose = lambda request: None
                if self.command is None:
                    self._pending = one
            self._finish()
            self._check()
        except BaseException:
            print(
                f"game {self.seed} on {self.ranks} ranks failed after {[one.name for one in self.played]}", flush=True
            )
            raise
        finally:
            if self.command:
                kill_tree(self.command.process.pid)
                self.command.process.wait()
            self.at_the_end.close()
            self._empty()
        again = len(self.trained) - len({batch for batch, _ in self.trained})
        report = Report(self.seed, self.ranks, self.starts, again, round(time.monotonic() - begun, 1), self.played)
        print_report(report)
        return report

    def _finish(self) -> None:
        command = self.running()
        status = command.process.wait(HANG_SECONDS)
        assert status == 0, command.said()
        self.ended({0})

    def _note(self, command: Command) -> None:
        """Remember the processes and the attempt of a command, which must leave nothing behind."""
        command.pids |= set(tree_of(command.process.pid))
        for owner in SHARED_MEMORY.glob("imagenet-mds-*"):
            with contextlib.suppress(OSError):
                if owner.read_text(encoding="ascii") == f"{command.process.pid}\n":
                    self._attempts.add(owner.name.removeprefix("imagenet-mds-"))

    def _account(self, command: Command, died: float) -> None:
        """Compare where the starts of a command began with where the one before had to lead, and count its batches."""
        events = self.events(command=command)
        if self._here and self._here[0] is command.machine and (first := self.events("start", command=command)):
            assert first[0]["batch"] >= self._here[1], f"the checkpoint of batch {self._here[1]} was here"
        self._here = command.machine, command.machine.newest(self.name)
        for event in events:
            if event["event"] == "start":
                self._check_start(event["batch"])
                assert self._words in command.said(), command.said()
                self._words = ""
                self._reached = event["batch"]
            elif event["event"] == "batch":
                assert event["batch"] == self._reached + 1, f"batch {event['batch']} after {self._reached}"
                self._reached = event["batch"]
                self.trained.append((event["batch"], event["loss"]))
                if self._pending:
                    self._pending.seconds = round(event["time"] - command.started, 1)
                    self._pending = None
            elif event["event"] == "checkpoint":
                self._floor = max(self._floor, event["batch"])
            elif event["event"] == "failed":
                self._most_again = None
        self._accounted |= {_key(event) for event in events}
        if records := self.records():
            self._floor = max(self._floor, age_of(records[0])[0])
        saves = [event["durable_seconds"] for event in events if event["event"] == "checkpoint"]
        if saves and not self.faulty_s3:
            late = died - max(IN_FLIGHT_SECONDS, 3 * max(saves))
            in_flight = sum(event["event"] == "batch" and event["time"] >= late for event in events)
            self._most_again = EVERY_BATCHES + in_flight
        self.faulty_s3 = False

    def _check_start(self, batch: int) -> None:
        """Check where a start begins."""
        again = self._reached - batch
        if self._exact is not None:
            assert batch == self._exact, f"started at batch {batch}, not at {self._exact}"
        assert batch >= self._floor, f"started at batch {batch}, before the checkpoint of {self._floor}"
        if self._most_again is not None:
            assert again <= self._most_again, f"{again} batches again, at most {self._most_again} were in flight"
        if self._pending and self._pending.again is None:
            self._pending.again = max(again, 0)
        self._exact = self._most_again = None

    def _check(self) -> None:
        """Compare the run with the undisturbed one, and look for what it left behind."""
        whole = self.arena.wholes[self.ranks]
        for batch, loss in self.trained:
            assert loss == whole.losses[batch], f"batch {batch} was trained with the loss {loss}"
        assert {batch for batch, _ in self.trained} == set(range(1, BATCHES + 1))
        last = self.folder / "last.pt"
        direct(self.arena.server).download_file(BUCKET, self.key(f"checkpoints/ep{EPOCHS}-ba{BATCHES}.pt"), str(last))
        state = read_state(last)
        assert_same(whole.state["model"], state["model"], "model")
        assert_same(whole.state["optimizers"], state["optimizers"], "optimizers")
        averages = [dict(one["algorithms"])["EMA"]["ema_model"] for one in (whole.state, state)]
        assert_same(averages[0], averages[1], "average")
        self._check_prefix()
        for attempt in self._attempts:
            left = [*SHARED_MEMORY.glob(f"*{attempt}*"), *Path(tempfile.gettempdir()).glob(f"imagenet-mds-*{attempt}*")]
            assert not left, f"left behind: {left}"

    def _check_prefix(self) -> None:
        """The run in S3 is of bounded size, and its log is whole."""
        client = direct(self.arena.server)
        log, best = (
            client.get_object(Bucket=BUCKET, Key=self.key(name))["Body"].read() for name in ("log.jsonl", "best.json")
        )
        logged = {event["batch"] for event in map(json.loads, log.splitlines()) if event["event"] == "batch"}
        assert logged == set(range(1, BATCHES + 1)), f"not in the log: {set(range(1, BATCHES + 1)) - logged}"
        files = {name: self.keys(f"{name}/") for name in ("checkpoints", "lease")}
        records = self.records()
        recorded = {f"checkpoints/{stem}{ending}" for stem in records for ending in (".pt", ".json")}
        assert set(files["checkpoints"]) == recorded, set(files["checkpoints"]) ^ recorded
        others = [stem for stem in records if age_of(stem)[0] != json.loads(best)["batch"]]
        assert len(others) <= 3, records
        assert len(files["lease"]) <= 2, files["lease"]
        uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        assert not [one for one in uploads if one["Key"].startswith(self.key(""))]
        assert not [name for name in self.keys() if name.startswith(".")]

    def _empty(self) -> None:
        """Remove the run from S3."""
        client = direct(self.arena.server)
        for name in self.keys():
            client.delete_object(Bucket=BUCKET, Key=self.key(name))


def _key(event: dict[str, Any]) -> tuple[float, int, str, int]:
    return event["time"], event["attempt"], event["event"], event["batch"]
