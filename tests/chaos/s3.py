"""Faults of S3's answers, and of S3 as a whole."""

import signal
import time

from tests.chaos.acts import is_write, leave
from tests.chaos.arena import (
    PATIENCE_SECONDS,
    Finished,
)
from tests.chaos.driver import Game
from tests.support.s3_server import Fault, Request


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


def _s3(game: Game, fault: Fault, count: int, only: str = "") -> str:
    """Put a fault into the next requests of the run: it trains on."""
    game.wait_for_batches(1)
    before = len(game.arena.proxy.faults())

    def hit() -> int:
        return len(game.arena.proxy.faults()) - before

    def choose(request: Request) -> Fault:
        fits = f"/{game.name}" in request.path and (not only or (is_write(request) and only in request.path))
        return fault if fits and hit() < count else None

    game.faulty_s3 = True
    game.arena.proxy.choose = choose
    try:
        game.wait_for(lambda: hit() >= count, f"{count} faults of S3")
    except Finished:
        if not hit():
            raise
    return f"{hit()} requests"


def _s3_at_start(game: Game, fault: Fault) -> str:
    """Put a fault into the first answer with each object of the run, while a new machine takes it."""
    if game.command or not game.records():
        game.wait_for_batches(1)
        game.wait_for(lambda: game.records(), "a checkpoint in S3")
    leave(game)
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
