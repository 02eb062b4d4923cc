"""The faults that games put in. Each returns when it came, for people."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.arena import (
    BATCHES,
    BATCHES_PER_EPOCH,
    PATIENCE_SECONDS,
    Finished,
    Unavailable,
    age_of,
    kill_tree,
)
from tests.chaos.driver import Game
from tests.support.command import children, wait_until
from tests.support.metadata import ACTION, TERMINATE
from tests.support.s3_server import BUCKET, Fault, Request, direct
from tests.support.states import tree_of

SMALL_DISK_BYTES = 500 << 20
"""Room for the checkpoints of a run, and not for many more."""

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
        "denied" if _is_write(request) and "/checkpoints/" in request.path else None
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


def s3_missing(game: Game) -> str:
    """S3 answers 404 to uploads of checkpoints."""
    return _s3(game, "missing", game.random.randint(1, 3), only="/checkpoints/")


def s3_cut(game: Game) -> str:
    """Answers of S3 end in the middle, while a new machine takes the run."""
    return _s3_at_start(game, "cut")


def s3_flipped(game: Game) -> str:
    """Answers of S3 have a wrong bit, while a new machine takes the run."""
    return _s3_at_start(game, "flipped")


def s3_dead(game: Game) -> str:
    """S3 refuses everything, until the run has lost its patience."""
    game.wait_for_batches(1)
    game.wait_for(lambda: game.records(), "a checkpoint in S3")
    command, fault = game.running(), game.random.choice(["denied", "reset"])
    game.faulty_s3 = True
    game.arena.proxy.choose = lambda request: (
        fault if f"/{game.name}" in request.path and "restarting in" not in command.said() else None
    )
    since, batch = time.time(), game.reached()
    words = f"has taken no checkpoint for {PATIENCE_SECONDS} s"
    if game.until_done:
        game.is_restarted(words)
    else:
        game.ended({1}, words)
        game.next_on = "same machine"
    return f"{fault} from batch {batch} on, for {time.time() - since:.0f} s"


def s3_dead_at_stop(game: Game) -> str:
    """A request to stop while S3 refuses everything: the batch is saved on this machine."""
    game.wait_for_batches(1)
    game.wait_for(lambda: game.records(), "a checkpoint in S3")
    game.faulty_s3 = True
    game.arena.proxy.choose = lambda request: "denied" if f"/{game.name}" in request.path else None
    game.running().process.send_signal(signal.SIGTERM)
    game.ended({75}, f"has taken no checkpoint for {PATIENCE_SECONDS} s", loses_nothing=True)
    game.next_on = "same machine"
    return ""


def disk_full(game: Game) -> str:
    """The disk fills up, and has room again before the next start."""
    _leave(game)
    game.next_on = "new machine"
    machine = game.next_machine()
    game.next_on = "same machine"
    _mount_small_disk(machine.folder / "cache", game)
    game.wait_for_batches(1)
    left_bytes = game.random.choice([0, game.random.randrange(30 << 20)])
    filler = machine.folder / "cache" / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while shutil.disk_usage(filler.parent).free > left_bytes:
            file.write(bytes(1 << 20))
    assert filler.stat().st_size
    try:
        game.ended({78}, "make room and run the same command again")
    finally:
        filler.unlink()
    game.next_on = "same machine"
    return f"{left_bytes:,} bytes were left"


def clock_jumps(game: Game) -> str:
    """The wall clock jumps an hour ahead and back."""
    if game.command:
        game.kill()
    clock = game.folder / "clock"
    _set_clock(clock, 0)
    game.variables = {"LD_PRELOAD": str(_clock_library(game.folder)), "CHAOS_CLOCK": str(clock)}
    try:
        game.wait_for_batches(2)
        _set_clock(clock, 3600)
        game.wait_for(lambda: _is_ahead(game), "the jump ahead")
        game.wait_for_batches(len(game.events("batch")) + 3)
        _set_clock(clock, 0)
        game.wait_for(lambda: not _is_ahead(game), "the jump back")
        game.wait_for_batches(len(game.events("batch")) + 3)
    finally:
        game.variables = {}
    return f"until batch {game.reached()}"


def cached_shard_zeroed(game: Game) -> str:
    """The end of a shard in the cache of a machine was never written."""
    if not game.from_s3 or not game.machines or not game.machines[-1].shards():
        if game.command:
            game.kill()
        game.from_s3 = True
    game.wait_for_batches(1)
    game.kill()
    shard = game.random.choice(game.machines[-1].shards())
    size_bytes = shard.stat().st_size
    with open(shard, "r+b") as file:
        file.truncate(size_bytes // 2)
        file.truncate(size_bytes)
    game.next_on = "same machine"
    game.expect(f"{shard.name} is fetched again")
    return shard.name


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
    "kill a rank while S3 refuses": kill_rank_while_s3_refuses,
    "stop a rank": stop_rank,
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
    "S3 404": s3_missing,
    "S3 cuts answers": s3_cut,
    "S3 flips a bit": s3_flipped,
    "S3 dead": s3_dead,
    "S3 dead at a stop": s3_dead_at_stop,
    "disk full": disk_full,
    "clock jumps": clock_jumps,
    "cached shard zeroed": cached_shard_zeroed,
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


def _lose(game: Game, pid: int, words: str, *, at_least: int = 0) -> None:
    """Kill one process of a run: the command says which, and ends with status 1 or restarts the run in place."""
    os.kill(pid, signal.SIGKILL)
    if game.until_done:
        game.is_restarted(words, at_least=at_least)
    else:
        game.ended({1}, words)


def _kill_with_two_records(game: Game) -> list[str]:
    """Kill everything, if it runs, and return the newest two recorded checkpoints."""
    if game.command or len(game.records()) < 2:
        game.wait_for_batches(1)
        game.wait_for(lambda: len(game.records()) > 1, "two checkpoints in S3")
    _leave(game)
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
        fits = f"/{game.name}" in request.path and (not only or (_is_write(request) and only in request.path))
        return fault if fits and hit() < count else None

    game.faulty_s3 = True
    game.arena.proxy.choose = choose
    try:
        game.wait_for(lambda: hit() >= count, f"{count} faults of S3")
    except Finished:
        if not hit():
            raise
    return f"{hit()} requests"


def _clock_library(folder: Path) -> Path:
    """Compile the clock that jumps.

    Raises:
        Unavailable: there is no compiler.
    """
    compiler, library = shutil.which("cc"), folder / "clock.so"
    if compiler is None:
        raise Unavailable("there is no C compiler")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def _set_clock(clock: Path, seconds: int) -> None:
    """Set the file that `clock.c` maps."""
    with open(clock, "r+b" if clock.exists() else "wb") as file:
        file.write(seconds.to_bytes(8, sys.byteorder))


def _is_ahead(game: Game) -> bool:
    """Whether the clock of the run is far ahead of the one here."""
    time_seconds: float = game.events()[-1]["time"]
    return time_seconds > time.time() + 1800


def _is_write(request: Request) -> bool:
    return request.method in ("PUT", "POST")


def _leave(game: Game) -> None:
    """Kill everything that runs. If the last machine has what S3 has not, the run has gone on there before."""
    if game.command is None and game.next_on == "same machine":
        game.faulty_s3 = True  # what was only there may be uploaded late
        game.wait_for_batches(1)
    if game.command:
        game.kill()


def _s3_at_start(game: Game, fault: Fault) -> str:
    """Put a fault into the first answer with each object of the run, while a new machine takes it."""
    if game.command or not game.records():
        game.wait_for_batches(1)
        game.wait_for(lambda: game.records(), "a checkpoint in S3")
    _leave(game)
    hit: set[str] = set()

    def choose(request: Request) -> Fault:
        if request.method != "GET" or f"/{game.name}/" not in request.path or request.path in hit:
            return None
        hit.add(request.path)
        return fault

    game.next_on = "new machine"
    game.arena.proxy.choose = choose
    game.wait_for_batches(1)
    assert any(path.endswith(".pt") for path in hit), hit
    return f"{len(hit)} answers"


def _mount_small_disk(folder: Path, game: Game) -> None:
    """Mount a small disk in a folder until the game ends.

    Raises:
        Unavailable: this user may not.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Unavailable("this user may not mount a small disk")
    game.at_the_end.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
