"""What an instance does: it runs a launch, watches its budget and its group, and leaves nothing running at the end.

The program that it runs answers a spot notice by itself, saves and ends with status 75. Then the group starts the next
instance, which continues. In any other case the worker sets the group's size to 0, or terminates its own instance where
there is no group.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from imagenet_mds.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_LASTING,
    EXIT_STOPPED,
    EXIT_USER,
    CommandError,
    UserError,
    WorldError,
)
from imagenet_mds.process.metadata import MetadataService, NoAnswer
from imagenet_mds.process.signals import StopRequests, collected_stop_signals
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage
from imagenet_mds.words import duration
from imagenet_mds_infra.account import Account
from imagenet_mds_infra.launches import Launch, launches
from imagenet_mds_infra.ledger import Ledger, Machine, at
from imagenet_mds_infra.log_stream import LogStream

LOOK_SECONDS = 5.0
"""Between two looks at the group and the budget."""

LEDGER_SECONDS = 60.0
"""Between two records of how long the instance has run."""

ATTEMPTS = 3
"""How often a program that fails with status 1 is run on one instance."""

GOODBYE_SECONDS = 240.0
"""How long to wait for the group to begin the termination, so that it need not wait for the hook to time out."""

Reason = Literal["done", "failed", "budget", "interrupted", "stopped"]
"""Interrupted: by a spot notice, or by a signal to the machine. Stopped: the group's size was reduced."""


@dataclass(frozen=True)
class End:
    """How a launch ended."""

    reason: Reason
    status: int
    words: str

    @property
    def is_final(self) -> bool:
        """Whether no further instance is to run."""
        return self.reason in ("done", "failed", "budget")


def read_end(storage: Storage, run: str) -> End | None:
    """How a launch ended, None if it has not.

    Raises:
        OSError: the storage refuses.
    """
    try:
        value = json.loads(storage.read(f"{run}.end.json"))
    except FileNotFoundError:
        return None
    return End(value["reason"], value["status"], value["words"])


def this_machine(service: MetadataService, launch: Launch) -> Machine:
    """The instance that this process runs on.

    Raises:
        UserError: it is no instance of EC2.
    """
    try:
        found = [service.get(name) for name in ("instance-id", "instance-type", "placement/availability-zone")]
    except NoAnswer as error:
        raise UserError(f"this command runs on an instance that `imagenet-mds aws launch` started ({error})") from None
    instance, kind, zone = (value or "unknown" for value in found)
    with open("/proc/uptime", encoding="ascii") as file:
        booted = time.time() - float(file.read().split()[0])
    return Machine(instance, kind, zone, booted, time.time(), launch.price(kind, zone))


@dataclass
class Worker:
    """One instance's part of a launch.

    say: prints a line.
    """

    account: Account
    bucket: str
    launch: Launch
    machine: Machine
    service: MetadataService
    say: Callable[[str], None]
    look_seconds: float = LOOK_SECONDS
    _others: tuple[float, float] = (0.0, 0.0)
    _written_at: float = field(default=float("-inf"))

    @property
    def ledger(self) -> Ledger:
        """The hours of all instances."""
        return Ledger.of(self.bucket, self.launch.run)

    def work(self) -> int:
        """Run the launch; return an exit status after which systemd does not start it again on this instance."""
        with collected_stop_signals(lambda: None) as requests:
            end = self._run(requests)
        self.say(f"{self.launch.run}: {end.words}")
        self._settle(end)
        return {"done": EXIT_DONE, "failed": EXIT_LASTING}.get(end.reason, EXIT_STOPPED)

    def _run(self, requests: StopRequests) -> End:
        if earlier := read_end(launches(self.bucket), self.launch.run):
            return earlier
        is_first = not [one for one in self.ledger.machines() if one.instance != self.machine.instance]
        self._account_for(None)
        with LogStream(self.account, f"{self.launch.run}/{self.machine.instance}") as log:
            if is_first:
                # For people who read the log; a training says by itself what it lacks.
                self._watch(["doctor", "--save", f"s3://{self.bucket}/runs"], requests, log)
                for command in self.launch.first:
                    end = self._watch(command, requests, log)
                    if end.reason != "done":
                        return end
            for attempt in range(ATTEMPTS):
                end = self._watch(self.launch.arguments, requests, log)
                if end.status in (EXIT_DONE, EXIT_USER, EXIT_STOPPED, EXIT_LASTING) or requests.count:
                    return end
                log.add(f"attempt {attempt + 1} of {ATTEMPTS} failed")
            return end

    def _watch(self, arguments: list[str], requests: StopRequests, log: LogStream) -> End:
        """Run a command of this program to its end, or to that of the budget, the group's wish, or a signal."""
        if end := self._over_budget():
            return end
        log.add(f"$ imagenet-mds {' '.join(arguments)}")
        process = subprocess.Popen(
            [sys.executable, "-m", "imagenet_mds", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        reader = threading.Thread(target=self._pass_on, args=(process, log), daemon=True)
        reader.start()
        why: End | None = None
        looked_at = time.monotonic()
        while process.poll() is None:
            if why is None and requests.count:
                why = End("interrupted", EXIT_STOPPED, "interrupted by a signal")
                process.terminate()
            if why is None and time.monotonic() - looked_at >= self.look_seconds:
                looked_at = time.monotonic()
                self._account_for(None)
                if (why := self._group_ends_it() or self._over_budget()) is not None:
                    log.add(why.words)
                    process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        reader.join()
        return self._end_of(process.returncode, why)

    def _end_of(self, status: int, why: End | None) -> End:
        """How a command ended. why: what it was asked to stop for, which it may have been too late for."""
        if status == EXIT_DONE:
            return End("done", status, "done")
        if why is not None:
            return why
        if status == EXIT_STOPPED:
            return End("interrupted", status, "interrupted: the next instance continues")
        if status == EXIT_USER and self._is_replaced():
            return End("stopped", EXIT_STOPPED, "a newer instance continues the run")
        words = f"failed with status {status}: `imagenet-mds aws logs` says why"
        return End("failed", status if status > 0 else EXIT_FAILED, words)

    def _is_replaced(self) -> bool:
        """Whether a newer instance runs: it has taken the run over, and the group must not be ended under it."""
        with contextlib.suppress(OSError, CommandError):
            return any(one.booted > self.machine.booted and one.end is None for one in self.ledger.machines())
        return False

    def _pass_on(self, process: "subprocess.Popen[bytes]", log: LogStream) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip("\n")
                self.say(text)
                log.add(text)

    def _group_ends_it(self) -> End | None:
        with contextlib.suppress(*NoAnswer):
            if self.service.get("autoscaling/target-lifecycle-state") == "Terminated":
                return End("stopped", EXIT_STOPPED, "the group ends this instance: saving, then exiting")
        return None

    def _over_budget(self) -> End | None:
        hours, dollars = self.machine.hours + self._others[0], self.machine.dollars + self._others[1]
        limits = (
            (self.launch.max_hours, hours, f"{duration(hours)} have passed, the limit is"),
            (self.launch.max_dollars, dollars, f"${dollars:,.2f} are spent, the limit is"),
        )
        for limit, used, words in limits:
            if limit is not None and used >= limit:
                return End("budget", EXIT_STOPPED, f"{words} {limit:g}: raise it with `imagenet-mds aws launch` again")
        return None

    def _account_for(self, end: str | None) -> None:
        """Count the time, and write it down now and then."""
        self.machine = at(self.machine, time.time(), end)
        if end is None and time.monotonic() - self._written_at < LEDGER_SECONDS:
            return
        with contextlib.suppress(OSError, CommandError):  # the next time counts for this one too
            self.ledger.write(self.machine)
            hours, dollars = self.ledger.totals(self.machine)
            self._others = hours - self.machine.hours, dollars - self.machine.dollars
            self._written_at = time.monotonic()

    def _settle(self, end: End) -> None:
        """Record the end, and end the instance unless it is about to end by itself."""
        self._account_for(end.reason)
        if end.is_final:
            self._record(end)
            if not self.launch.in_group:
                self.account.change("ec2", "terminate_instances", InstanceIds=[self.machine.instance])
                return
            self.account.empty_group()
        if self.launch.in_group and (end.is_final or end.reason == "stopped"):
            self._let_go()

    def _record(self, end: End) -> None:
        value = {"reason": end.reason, "status": end.status, "words": end.words, "time": time.time()}
        try:
            launches(self.bucket).write(f"{self.launch.run}.end.json", json_bytes(value))
        except (OSError, CommandError) as error:  # the machine costs money, so it ends without the record
            self.say(f"how {self.launch.run} ended cannot be recorded: {error}")

    def _let_go(self) -> None:
        """Tell the group that this instance is ready to be terminated."""
        until = time.monotonic() + GOODBYE_SECONDS
        while self._group_ends_it() is None and time.monotonic() < until:
            time.sleep(self.look_seconds)
        with contextlib.suppress(CommandError):  # without an answer the hook times out, after 5 min
            self.account.change(
                "autoscaling",
                "complete_lifecycle_action",
                AutoScalingGroupName=self.account.name,
                LifecycleHookName=self.account.hook,
                LifecycleActionResult="CONTINUE",
                InstanceId=self.machine.instance,
            )


def worker(account: Account, bucket: str, run: str, say: Callable[[str], None]) -> Worker:
    """The worker of this instance.

    Raises:
        UserError: this is no instance of EC2, or nothing was launched under this name.
        WorldError, OSError: the bucket refuses.
    """
    try:
        service = MetadataService()
    except ValueError as error:
        raise WorldError(str(error)) from None
    launch = Launch.read(launches(bucket), run)
    return Worker(account, bucket, launch, this_machine(service, launch), service, say)
