"""Starts the ranks of a run, watches them, and leaves no process behind. Imports no torch.

Composer's launcher imports composer for 6 to 10 s before it starts anything, kills a rank 30 s after SIGTERM (a
checkpoint in flight is lost), leaves the loader workers of a killed rank behind, and hides the output of the other
ranks. This one passes an interruption on, by a signal or by a notice of EC2, as one SIGTERM to each rank and waits for
the ranks to save; the kernel ends every rank whose launcher dies.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from imagenet_mds.process.attempt import Attempt, attempt
from imagenet_mds.process.lifetime import PARENT_VARIABLE
from imagenet_mds.process.signals import StopRequests, collected_stop_signals
from imagenet_mds_train.config.schema import SystemConfig
from imagenet_mds_train.interruption.board import Board, Phase
from imagenet_mds_train.interruption.notice import POLL_SECONDS as NOTICE_SECONDS
from imagenet_mds_train.interruption.notice import Notice, NoticeWatcher
from imagenet_mds_train.interruption.stacks import Stacks, collect_stacks
from imagenet_mds_train.nodes.peers import Failure, Peers
from imagenet_mds_train.run.environment import THREADS_VARIABLE, lasting_defaults, rendezvous, threads_per_rank
from imagenet_mds_train.run.failures import EXIT_PEER_LOST, EXIT_PORT_TAKEN, killed_rank
from imagenet_mds_train.run.watchdog import Hang, Watchdog

_POLL_SECONDS = 0.1
_STOPPED_CODES = frozenset({EXIT_DONE, EXIT_STOPPED, -signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM})
"""How ranks may end after an interruption: cleanly, or before they had anything to save (Composer, once imported, turns
the signal into 143), or killed because another rank had ended like this."""

_DEATH_SECONDS = 20.0
"""How long a killed process may take to end. It has memory to give back, and may write a core."""

_PEERS_SECONDS = 15.0
"""How long to wait for the reason from another node, if this node's ranks only lost others. It gives its own ranks some
time to print their errors."""

_PORTS_TRIED = 3
"""Starts with another port each, should another program take the port between its choice and its use."""

# `-c` and not `-m`: the user's working folder is removed from the path before anything of ours or torch's is imported,
# so that a `train.py` or `queue.py` in it is never run. Until there is something to save, SIGTERM just exits.
START_RANK = f"""
import os, signal, sys
sys.path[:] = [path for path in sys.path if path]
signal.signal(signal.SIGTERM, lambda *_: os._exit({EXIT_STOPPED}))
from imagenet_mds.process.lifetime import die_with_launcher, ignore_warning_signals
from imagenet_mds_train.interruption.stacks import write_stacks_on_request
ignore_warning_signals()
die_with_launcher()
write_stacks_on_request(sys.argv[2])
from imagenet_mds_train.rank import main
main()
"""


@dataclass(frozen=True)
class Ended:
    """How a start of the ranks ended.

    status: the exit status.
    reason: why it failed, in one line; None unless it did.
    batch: finished batches when it failed; None if none was begun.
    """

    status: int
    reason: str | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Limits:
    """How long a launcher waits for what, in seconds.

    failure_grace_seconds: the other ranks may run on for this long after one has failed, to print their own errors.
    stop_seconds: the ranks may run on for this long after a request to stop, to finish a batch and to save it.
    hang_seconds: the ranks hang if none makes progress for this long; None watches nothing.
    start_seconds: the same while a rank starts, compiles or saves.
    notice_seconds: between two looks for a notice of an interruption.
    """

    failure_grace_seconds: float = 5.0
    stop_seconds: float = 90.0
    hang_seconds: float | None = 100.0
    start_seconds: float = 1800.0
    notice_seconds: float = NOTICE_SECONDS

    @classmethod
    def of(cls, system: SystemConfig) -> "Limits":
        """Those of a configuration."""
        return cls(
            stop_seconds=system.stop_seconds, hang_seconds=system.hang_seconds, start_seconds=system.start_seconds
        )


def launch(
    ranks: int,
    job: Path,
    log_folder: Path,
    lock: int | None = None,
    *,
    threads: int | None = None,
    kept: bool = True,
    program: str = START_RANK,
    limits: Limits | None = None,
    may_continue: Callable[[], bool] = lambda: True,
    on_notice: Callable[[Notice, int | None], None] = lambda notice, batch: None,
    peers: Peers | None = None,
) -> Ended:
    """Run the ranks to their end.

    Args:
        ranks: processes on this machine, one per GPU where there are GPUs.
        job: the JSON file that says what to run; each rank reads it.
        log_folder: every rank but the first writes to `rank<N>.log` here; the first writes to our own output.
        lock: the descriptor of the run's lock. The ranks inherit it, so the run stays locked while any of them lives.
        threads: of each rank for its computations; None for `threads_per_rank`.
        kept: whether the run's folder outlives the run, so that messages speak of what is saved there, and of logs.
        program: what each rank runs, as Python source; its arguments are `job` and the file for
            its stacks, see `write_stacks_on_request`.
        limits: how long to wait for what; None for the defaults.
        may_continue: whether there is something to continue from, should the ranks be killed after a request to stop.
        on_notice: called with each notice that is obeyed, and the finished batches, None before the first one is begun.
        peers: the other nodes that start ranks; None for this machine alone. They are told how the ranks ended.

    Returns:
        How they ended. The status is done, stopped cleanly, failed, or that of the rank that failed.
    """
    threads = threads or threads_per_rank(ranks)
    order = _Launch(
        ranks, job, log_folder, lock, threads, kept, program, limits or Limits(), may_continue, on_notice, peers
    )
    ended = Ended(EXIT_FAILED, "the ranks did not start")
    try:
        for _ in range(1 if peers else _PORTS_TRIED):  # the other nodes know one port
            ended = order.once()
            if ended.status != EXIT_PORT_TAKEN:
                return ended
        ended = Ended(EXIT_FAILED, "the ports that were free were taken before the ranks could listen")
        print(f"imagenet-mds: {ended.reason}", file=sys.stderr)
        return ended
    finally:
        if peers:
            peers.close(ended.status, ended.reason)


@dataclass(frozen=True)
class _Late:
    """Ranks that had not stopped `seconds` after the request."""

    ranks: list[int]
    seconds: float

    @property
    def text(self) -> str:
        """One line for people."""
        which = f"{'rank' if len(self.ranks) == 1 else 'ranks'} {', '.join(map(str, self.ranks))}"
        return f"{which} had not stopped {self.seconds:g} s after the request"


@dataclass(frozen=True)
class _Launch:
    """What `launch` was told."""

    ranks: int
    job: Path
    log_folder: Path
    lock: int | None
    threads: int
    kept: bool
    program: str
    limits: Limits
    may_continue: Callable[[], bool]
    on_notice: Callable[[Notice, int | None], None]
    peers: Peers | None

    @property
    def numbers(self) -> range:
        """The numbers of the ranks of this machine."""
        first = self.peers.first_rank if self.peers else 0
        return range(first, first + self.ranks)

    def once(self) -> Ended:
        """Run the ranks with one port; see `launch`."""
        processes: dict[int, subprocess.Popen[bytes]] = {}
        ended: dict[int, int | None] = {}
        late: _Late | Hang | None = None
        with attempt() as mine, contextlib.closing(Board.create(self.numbers.stop)) as board:
            signal.signal(signal.SIGTSTP, partial(_answer_ctrl_z, self.kept))
            try:
                # Before the first rank starts: an interruption during the starts must not leave ranks behind.
                with collected_stop_signals(partial(self._announce_stop, None)) as requests:
                    self._start(processes, mine, board)
                    with contextlib.closing(NoticeWatcher(self.limits.notice_seconds)) as watcher:
                        late = self._wait(processes, requests, watcher, board)
                    if late and self.kept:
                        running = [(rank, process) for rank, process in processes.items() if process.poll() is None]
                        asked = [Stacks(one.pid, _stacks(mine, rank), self._log(rank)) for rank, one in running]
                        collect_stacks(asked, late.text)
                    ended = {rank: process.poll() for rank, process in processes.items()}
                    if requests.count > 1 and self.kept:
                        print("Killed before saving: the last checkpoint is kept.", file=sys.stderr, flush=True)
            finally:
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
                codes = _kill(processes)
            batch, reasons = _reached(board, self.numbers), {rank: board.reason(rank) for rank in self.numbers}
        if late:
            return replace(self._late(late), batch=batch)
        how = set(codes.values())
        if requests.count and how != {EXIT_DONE} and how <= _STOPPED_CODES:
            return Ended(EXIT_STOPPED)
        if EXIT_PORT_TAKEN in how:
            return Ended(EXIT_PORT_TAKEN)
        if failure := self._failure_elsewhere(codes, ended):
            print(f"imagenet-mds: {failure.reason}", file=sys.stderr, flush=True)
            explained = Ended(failure.status, failure.reason, batch)
        else:
            explained = replace(self._explained(codes, ended, reasons), batch=batch)
        if requests.count and explained.status == EXIT_FAILED and self.kept and self.may_continue():
            return Ended(EXIT_STOPPED)  # it was to end, and not to be restarted
        return explained

    def _start(self, processes: dict[int, subprocess.Popen[bytes]], mine: Attempt, board: Board) -> None:
        """Start the ranks, each of which is in `processes` at once."""
        # Those of another launcher would send the ranks to its store.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC_", "GROUP_"))}
        environment = lasting_defaults() | own | mine.environment() | board.environment() | rendezvous(self.ranks)
        if self.peers:
            environment |= self.peers.environment
        environment |= {THREADS_VARIABLE: str(self.threads), PARENT_VARIABLE: str(os.getpid())}
        with contextlib.ExitStack() as logs:
            for place, rank in enumerate(self.numbers):
                output = None
                if rank:
                    output = logs.enter_context(open(self._log(rank), "ab"))
                processes[rank] = subprocess.Popen(
                    [sys.executable, "-c", self.program, str(self.job), str(_stacks(mine, rank))],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(place)},
                    pass_fds=[one for one in (self.lock, board.descriptor) if one is not None],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # Its own session: Ctrl-C in the terminal reaches only the launcher, and a kill reaches the rank's
                    # workers too.
                    start_new_session=True,
                )

    def _log(self, rank: int) -> Path:
        return self.log_folder / f"rank{rank}.log"

    def _announce_stop(self, cause: str | None) -> None:
        """Say what is done about a request to stop, and what else than a signal it comes from."""
        first = "Saving, then exiting" if self.kept else "Exiting after this batch"
        print(f"{f'{cause}. ' if cause else ''}{first}. Another Ctrl-C kills at once.", file=sys.stderr, flush=True)

    def _wait(
        self,
        processes: dict[int, subprocess.Popen[bytes]],
        requests: StopRequests,
        watcher: NoticeWatcher,
        board: Board,
    ) -> "_Late | Hang | None":
        """Wait until all ranks have ended, or one has and the others had their grace, or a second interruption comes.

        The first interruption is passed on to each rank as SIGTERM: save at the end of this batch, then stop.

        Returns:
            What is wrong with ranks that have to be killed, None if nothing is.
        """
        watchdog = Watchdog(board, self.limits.hang_seconds, self.limits.start_seconds)
        failed_at: float | None = None
        stop_at: float | None = None
        while running := {rank: process.pid for rank, process in processes.items() if process.poll() is None}:
            if notice := watcher.next():
                self._obey(notice, requests, board)
            if self.peers and not requests.count and (node := self.peers.stopped()) is not None and requests.announce():
                self._announce_stop(f"Node {node} is stopped")
            if requests.count > 1:
                return None
            if requests.count and stop_at is None:
                stop_at = time.monotonic() + self.limits.stop_seconds
                for process in processes.values():
                    process.send_signal(signal.SIGTERM)
            if failed_at is None and (
                any(process.poll() not in (None, EXIT_DONE, EXIT_STOPPED) for process in processes.values())
                or (self.peers and self.peers.failure())
            ):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > self.limits.failure_grace_seconds:
                return None
            if stop_at is not None and time.monotonic() > stop_at:
                return _Late(list(running), self.limits.stop_seconds)
            if stop_at is None and failed_at is None and (hang := watchdog.look(running)):
                return hang
            time.sleep(_POLL_SECONDS)
        return None

    def _late(self, late: "_Late | Hang") -> Ended:
        """Say why ranks were killed."""
        logs = f"; stacks in {self.log_folder}/rank*.log" if self.kept else ""
        if isinstance(late, Hang):
            if self.kept and late.rank is not None:
                logs = f"; stacks in {self._log(late.rank)}"
            print(f"imagenet-mds: {late.text}{logs}", file=sys.stderr, flush=True)
            return Ended(EXIT_FAILED, late.text)
        if not self.kept or self.may_continue():
            what = ". The last checkpoint is kept" if self.kept else ""
            print(f"{late.text} and had to be killed{logs}{what}.", file=sys.stderr, flush=True)
            return Ended(EXIT_STOPPED)
        print(f"imagenet-mds: {late.text} and had to be killed before the first checkpoint{logs}", file=sys.stderr)
        return Ended(EXIT_FAILED, late.text)

    def _failure_elsewhere(self, codes: dict[int, int], ended: dict[int, int | None]) -> Failure | None:
        """How another node failed, if no rank here failed by itself; see `_explained` for the arguments."""
        if self.peers is None or set(codes.values()) <= {EXIT_DONE, EXIT_STOPPED}:
            return None
        themselves = {code for code in ended.values() if code is not None} - {EXIT_DONE, EXIT_STOPPED, EXIT_PEER_LOST}
        return None if themselves else self.peers.failure(_PEERS_SECONDS)

    def _explained(self, codes: dict[int, int], ended: dict[int, int | None], reasons: dict[int, str | None]) -> Ended:
        """The end of the run, with the failure explained on standard error.

        Args:
            codes: how each rank ended.
            ended: how each had ended before the rest was killed here.
            reasons: why each failed, as far as it has said so.
        """
        if set(codes.values()) == {EXIT_DONE}:
            return Ended(EXIT_DONE)
        if set(codes.values()) <= {EXIT_DONE, EXIT_STOPPED}:
            return Ended(EXIT_STOPPED)
        rank, code = _to_report(codes, ended)
        reason = reasons[rank] or f"rank {rank} failed"
        if code < 0:
            reason = killed_rank(rank, -code)
            print(f"imagenet-mds: {reason}", file=sys.stderr)
        elif rank or code == EXIT_PEER_LOST:
            log = self._log(rank)
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines and lines[-1].startswith("imagenet-mds: "):
                reason = lines[-1].removeprefix("imagenet-mds: ")
                print(f"{lines[-1]} (rank {rank}{f'; more in {log}' if self.kept else ''})", file=sys.stderr)
            else:
                where = log if self.kept else "its log"
                print(f"rank {rank} failed; the end of {where}:", *lines[-20:], sep="\n", file=sys.stderr)
        return Ended(code if code > 0 and code != EXIT_PEER_LOST else EXIT_FAILED, reason)

    def _obey(self, notice: Notice, requests: StopRequests, board: Board) -> None:
        """Do what a notice of an interruption asks for."""
        if notice.kind == "trouble":
            print(f"note: {notice.text}", file=sys.stderr, flush=True)
            return
        self.on_notice(notice, _reached(board, self.numbers))
        if notice.kind == "stop":
            if requests.announce():
                self._announce_stop(notice.text)
        elif self.kept:
            print(f"{notice.text}. Saving, then going on.", file=sys.stderr, flush=True)
            board.ask_for_save()


def _answer_ctrl_z(kept: bool, number: int, frame: FrameType | None) -> None:
    """Suspending this process alone would leave the ranks running and their GPUs taken, and nobody to watch them."""
    way_on = "Ctrl-C saves and exits" if kept else "Ctrl-C exits"
    print(f"Ctrl-Z is ignored, because the ranks would run on. {way_on}.", file=sys.stderr, flush=True)


def _kill(processes: dict[int, subprocess.Popen[bytes]]) -> dict[int, int]:
    """Kill what is left, loader workers included: each rank leads a process group. Return how each rank ended."""
    for process in processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for rank, process in processes.items():
        try:
            process.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            print(
                f"imagenet-mds: rank {rank} (process {process.pid}) does not even end when it is killed, because it "
                f"waits in the kernel for a disk or a GPU: restart the machine",
                file=sys.stderr,
                flush=True,
            )
    return {
        rank: -signal.SIGKILL if process.returncode is None else process.returncode
        for rank, process in processes.items()
    }


def _stacks(mine: Attempt, rank: int) -> Path:
    """The file for the stacks of a rank; see `write_stacks_on_request`."""
    return mine.temporary / f"rank{rank}.stacks"


def _reached(board: Board, ranks: Iterable[int]) -> int | None:
    """The batches that were finished when the ranks ended; None if none was begun."""
    places = [board.read(rank) for rank in ranks]
    return max((place.batch for place in places if place.phase != Phase.START), default=None)


def _to_report(codes: dict[int, int], ended: dict[int, int | None]) -> tuple[int, int]:
    """The number and exit code of the rank that failed by itself: not one that lost another, nor one killed here."""
    failed = [(rank, code) for rank, code in codes.items() if code not in (EXIT_DONE, EXIT_STOPPED)]
    themselves = [(rank, code) for rank, code in failed if ended[rank] is not None and code != EXIT_PEER_LOST]
    return (themselves or failed)[0]
