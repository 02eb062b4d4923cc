"""The faults that games put in. Each returns when it came, for people."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.arena import BATCHES, BATCHES_PER_EPOCH, Finished, kill_tree
from tests.chaos.driver import Game
from tests.support.command import children, wait_until
from tests.support.metadata import ACTION, TERMINATE
from tests.support.s3_server import BUCKET, Fault, Request, direct
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


def sigterm(game: Game) -> str:
    """A request to stop."""
    moment = _random_moment(game, starting=False)
    game.running().process.send_signal(signal.SIGTERM)
    game.ended({75}, "Saving, then exiting", loses_nothing=True)
    return moment


def notice(game: Game) -> str:
    """A spot notice."""
    game.wait_for_batches(1)
    game.metadata.bodies[ACTION] = TERMINATE
    try:
        game.ended({75}, "Spot notice: this instance will be terminated", loses_nothing=True)
    finally:
        game.metadata.bodies.clear()
    return ""


def truncated(game: Game) -> str:
    """The newest checkpoint in S3 has lost its end."""
    return _damage(game, lambda data: data[: game.random.randrange(1, len(data))])


def flipped(game: Game) -> str:
    """The newest checkpoint in S3 has one wrong bit."""

    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[game.random.randrange(len(data))] ^= 1 << game.random.randrange(8)
        return bytes(changed)

    return _damage(game, flip)


def deleted(game: Game) -> str:
    """The newest checkpoint in S3 is gone, its record is not."""
    return _damage(game, lambda data: None)


def record_deleted(game: Game) -> str:
    """The record of the newest checkpoint in S3 is gone."""
    newest, before = _kill_with_two_records(game)
    direct(game.arena.server).delete_object(Bucket=BUCKET, Key=game.key(f"checkpoints/{newest}.json"))
    game.lost_checkpoint(before)
    return newest


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
    game.needs_new_machine = True
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


def s3_slow_down(game: Game) -> str:
    """S3 answers 503 to a number of requests."""
    return _s3(game, "slow down", game.random.randint(4, 8))


def s3_resets(game: Game) -> str:
    """Connections to S3 are reset in the middle of an upload or of an answer."""
    return _s3(game, "reset", game.random.randint(2, 5))


def s3_denies(game: Game) -> str:
    """S3 refuses checkpoints with 403."""
    return _s3(game, "denied", game.random.randint(1, 3), only="/checkpoints/")


def s3_stalls(game: Game) -> str:
    """S3 answers after 5 s."""
    return _s3(game, "stall", game.random.randint(1, 3))


FAULTS: dict[str, Callable[[Game], str]] = {
    "kill": kill,
    "kill pair": kill_pair,
    "kill in an upload": kill_in_upload,
    "kill before the record": kill_before_record,
    "kill after the record": kill_after_record,
    "kill at an epoch's end": kill_at_epoch_end,
    "kill in validation": kill_in_validation,
    "kill at the last batch": kill_at_last_batch,
    "kill a rank": kill_rank,
    "kill a worker": kill_worker,
    "kill the launcher": kill_launcher,
    "SIGTERM": sigterm,
    "spot notice": notice,
    "checkpoint truncated": truncated,
    "checkpoint flipped": flipped,
    "checkpoint deleted": deleted,
    "record deleted": record_deleted,
    "takeover": takeover,
    "S3 503": s3_slow_down,
    "S3 resets": s3_resets,
    "S3 denies": s3_denies,
    "S3 stalls": s3_stalls,
}


def drawn(game: Game) -> list[str]:
    """The faults of a game by its seed, in an order in which each can come."""
    names = game.random.sample(list(FAULTS), game.random.randint(3, 6))
    last = [name for name in names if name == "kill at the last batch"]
    return [name for name in names if name not in last] + last


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


def _lose(game: Game, pid: int, words: str) -> None:
    """Kill one process of a run: the command says which, and ends with status 1 or restarts the run in place."""
    os.kill(pid, signal.SIGKILL)
    if game.until_done:
        game.is_restarted(words)
    else:
        game.ended({1}, words)


def _kill_with_two_records(game: Game) -> list[str]:
    """Kill everything, if it runs, and return the newest two recorded checkpoints."""
    if game.command or len(game.records()) < 2:
        game.wait_for_batches(1)
        game.wait_for(lambda: len(game.records()) > 1, "two checkpoints in S3")
        game.kill()
    return game.records()[:2]


def _damage(game: Game, change: Callable[[bytes], bytes | None]) -> str:
    """Change the newest checkpoint in S3, or remove it: the one before it is used, and a line says so."""
    newest, before = _kill_with_two_records(game)
    client, key = direct(game.arena.server), game.key(f"checkpoints/{newest}.pt")
    data = change(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    if data is None:
        client.delete_object(Bucket=BUCKET, Key=key)
    else:
        client.put_object(Bucket=BUCKET, Key=key, Body=data)
    game.lost_checkpoint(before, f"{newest}.pt is skipped")
    return newest


def _s3(game: Game, fault: Fault, count: int, only: str = "") -> str:
    """Put a fault into the next requests of the run: it trains on."""
    game.wait_for_batches(1)
    before = len(game.arena.proxy.faults())

    def hit() -> int:
        return len(game.arena.proxy.faults()) - before

    def choose(request: Request) -> Fault:
        writes = request.method in ("PUT", "POST") and only in request.path
        return fault if (writes or not only) and hit() < count else None

    game.faulty_s3 = True
    game.arena.proxy.choose = choose
    try:
        game.wait_for(lambda: hit() >= count, f"{count} faults of S3")
    except Finished:
        if not hit():
            raise
    return f"{hit()} requests"


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
