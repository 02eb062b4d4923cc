"""Faults that end processes or stop them: kills at chosen moments, requests to stop, a second machine."""

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.chaos.acts import is_write
from tests.chaos.arena import (
    BATCHES,
    BATCHES_PER_EPOCH,
    Finished,
    age_of,
    kill_tree,
)
from tests.chaos.driver import Game
from tests.support.command import children, wait_until
from tests.support.metadata import ACTION, TERMINATE
from tests.support.s3_server import Fault, Request
from tests.support.states import tree_of

TAKEOVER_BATCHES = 12
"""A run that has fewer batches left may be over before another machine takes it."""


def kill(game: Game) -> str:
    """SIGKILL of everything at a random moment."""
    moment = _random_moment(game)
    game.kill()
    return moment


def kill_pair(game: Game) -> str:
    """SIGKILL at a random moment, and another one soon after the run goes on."""
    moments = [kill(game)]
    game.running()
    if game.random.random() < 0.5:
        seconds = game.random.uniform(0.5, 15)
        _pass(game, seconds)
        moments.append(f"{seconds:.1f} s after the next command")
    else:
        game.wait_for_batches(1)
        moments.append("after its first batch")
    game.kill()
    return ", then ".join(moments)


def kill_in_upload(game: Game) -> str:
    """SIGKILL while S3 receives a checkpoint."""
    return _kill_at_request(game, ".pt", game.random.randint(1, 12), None)


def kill_before_record(game: Game) -> str:
    """SIGKILL after a checkpoint has arrived and before its record does."""
    return _kill_at_request(game, ".json", game.random.randint(1, 3), "denied")


def kill_after_record(game: Game) -> str:
    """SIGKILL when the record of a checkpoint has arrived, and before anything else follows."""
    return _kill_at_request(game, ".json", game.random.randint(1, 3), None)


def kill_at_epoch_end(game: Game) -> str:
    """SIGKILL when the last batch of an epoch is trained."""
    return _kill_at_batch(game, game.next_epoch_end(), 0.0)


def kill_in_validation(game: Game) -> str:
    """SIGKILL a moment after the last batch of an epoch."""
    return _kill_at_batch(game, game.next_epoch_end(), game.random.uniform(0.05, 0.4))


def kill_at_last_batch(game: Game) -> str:
    """SIGKILL when the last batch of the run is trained."""
    return _kill_at_batch(game, BATCHES, game.random.uniform(0.0, 0.3))


def kill_rank(game: Game) -> str:
    """SIGKILL of one rank."""
    moment = _random_moment(game, starting=False)
    rank = game.random.randrange(game.ranks)
    _lose(game, _ranks(game)[rank], f"rank {rank} was killed, most likely by the kernel")
    return f"rank {rank} {moment}"


def kill_worker(game: Game) -> str:
    """SIGKILL of one loader worker."""
    game.wait_for_batches(1)
    # An epoch whose last batches are loaded needs no worker any more.
    game.wait_for(lambda: game.reached() % BATCHES_PER_EPOCH in range(1, BATCHES_PER_EPOCH - 6), "a batch to load")
    rank = game.random.randrange(game.ranks)
    pid = _ranks(game)[rank]
    line = Path(f"/proc/{pid}/cmdline").read_bytes()
    workers = [one for one in children(pid) if Path(f"/proc/{one}/cmdline").read_bytes() == line]
    moment = f"of rank {rank} after batch {game.reached()}"
    _lose(game, workers[-1], f"a loader worker of rank {rank} was killed, most likely by the kernel")
    return moment


def kill_launcher(game: Game) -> str:
    """SIGKILL of the command alone; its ranks and their workers end with it."""
    moment = _random_moment(game, starting=False)
    os.kill(game.running().process.pid, signal.SIGKILL)
    game.ended({-signal.SIGKILL})
    return moment


def kill_rank_while_s3_refuses(game: Game) -> str:
    """SIGKILL of one rank while S3 takes no checkpoint: the newest one of this machine is continued from."""
    game.wait_for_batches(1)
    game.wait_for(lambda: game.records(), "a checkpoint in S3")
    there = age_of(game.records()[0])[0]
    game.faulty_s3 = True
    game.arena.proxy.choose = lambda request: (
        "denied" if is_write(request) and "/checkpoints/" in request.path else None
    )
    game.wait_for(
        lambda: game.newest_here() > max(there, age_of(game.records()[0])[0]), "a checkpoint that is only here"
    )
    here, rank = game.newest_here(), game.random.randrange(game.ranks)
    _lose(game, _ranks(game)[rank], f"rank {rank} was killed, most likely by the kernel", at_least=here)
    if game.command is None:
        game.next_on = "same machine"
    return f"rank {rank} with batch {here} here and {there} in S3"


def stop_rank(game: Game) -> str:
    """SIGSTOP of one rank, which is found out and killed."""
    game.wait_for_batches(game.random.randint(1, 8))
    rank, since = game.random.randrange(game.ranks), time.time()
    os.kill(_ranks(game)[rank], signal.SIGSTOP)
    words = "it is stopped, by SIGSTOP or a debugger"
    if game.until_done:
        game.is_restarted(words)
    else:
        game.ended({1}, words, since=since)
    return f"rank {rank}"


def sigterm(game: Game) -> str:
    """A request to stop."""
    moment = _random_moment(game, starting=False)
    game.running().process.send_signal(signal.SIGTERM)
    game.ended({75}, "Saving, then exiting", loses_nothing=True)
    return moment


def notice(game: Game) -> str:
    """A spot notice."""
    game.wait_for_batches(1)
    command = game.running()
    game.metadata.bodies[ACTION] = TERMINATE
    try:
        game.ended({75}, "Spot notice: this instance will be terminated", loses_nothing=True)
    finally:
        game.metadata.bodies.clear()
    # Of those of the game, which are accounted for by now, this start's.
    started = [one for one in command.machine.log(game.name) if one["time"] >= command.started]
    (event,) = [one for one in started if one["event"] == "notice"]
    return f"after batch {event['batch']}"


def takeover(game: Game) -> str:
    """A second machine continues the run while the first one still trains."""
    game.wait_for_batches(1)
    old = game.running()
    game.wait_for(lambda: game.records(), "a checkpoint in S3")
    reached = game.reached()
    if reached > BATCHES - TAKEOVER_BATCHES:
        raise Finished
    # It trains on only when it is taken over: a run this small would be done before the other command has started.
    stopped = tree_of(old.process.pid)
    _send(stopped, signal.SIGSTOP)
    game.next_on = "new machine"
    new = game.start(game.next_machine())
    try:
        wait_until(lambda: game.events("batch", command=new), "a batch on the second machine", new.process)
        _send(stopped, signal.SIGCONT)
        game.is_taken_over(new)
    except BaseException:
        kill_tree(new.process.pid)
        new.process.wait()
        raise
    return f"after batch {reached}"


def _random_moment(game: Game, *, starting: bool = True) -> str:
    """Wait for a random moment: a number of batches and a part of a second, or, if `starting`, also before a batch."""
    game.running()
    if starting and game.random.random() < 0.25:
        seconds = game.random.uniform(0.5, 20)
        _pass(game, seconds)
        return f"{seconds:.1f} s after the command"
    count, seconds = game.random.randint(1, 8), game.random.uniform(0.0, 0.4)
    game.wait_for_batches(count)
    _pass(game, seconds)
    return f"after {count} batches and {seconds:.2f} s"


def _pass(game: Game, seconds: float) -> None:
    """Let time pass while the run trains."""
    until = time.monotonic() + seconds
    game.wait_for(lambda: time.monotonic() >= until, f"{seconds} s")


def _kill_at_batch(game: Game, batch: int, seconds: float) -> str:
    """Kill everything that long after a batch."""
    game.wait_for_batch(batch)
    _pass(game, seconds)
    game.kill()
    return f"{seconds:.2f} s after batch {batch}"


def _kill_at_request(game: Game, ending: str, count: int, answer: Fault) -> str:
    """Kill everything at the request number `count` that uploads a checkpoint's file with this ending."""
    command = game.running()
    left = count

    def choose(request: Request) -> Fault:
        nonlocal left
        name = request.path.partition("?")[0]
        if request.method == "PUT" and f"/{game.name}/checkpoints/" in name and name.endswith(ending):
            left -= 1
            if left == 0:
                command.pids.update(kill_tree(command.process.pid))
                return answer
        return None

    game.arena.proxy.choose = choose
    game.ended({-signal.SIGKILL})
    return f"at write {count} of {ending}"


def _ranks(game: Game) -> list[int]:
    """The processes of the ranks in their order."""
    found = {}
    for pid in children(game.running().process.pid):
        for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if line.startswith(b"RANK="):
                found[int(line.removeprefix(b"RANK="))] = pid
    return [found[rank] for rank in range(game.ranks)]


def _lose(game: Game, pid: int, words: str, *, at_least: int = 0) -> None:
    """Kill one process of a run: the command says which, and ends with status 1 or restarts the run in place."""
    os.kill(pid, signal.SIGKILL)
    if game.until_done:
        game.is_restarted(words, at_least=at_least)
    else:
        game.ended({1}, words)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
