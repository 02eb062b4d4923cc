"""Faults of what is stored in S3: checkpoints and their records."""

from collections.abc import Callable

from tests.chaos.acts import leave
from tests.chaos.driver import Game
from tests.support.s3_server import BUCKET, direct


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


def _kill_with_two_records(game: Game) -> list[str]:
    """Kill everything, if it runs, and return the newest two recorded checkpoints."""
    if game.command or len(game.records()) < 2:
        game.wait_for_batches(1)
        game.wait_for(lambda: len(game.records()) > 1, "two checkpoints in S3")
    leave(game)
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
