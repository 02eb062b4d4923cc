"""The faults that games put in, by name, and which of them a game has."""

from collections.abc import Callable

from tests.chaos.damage import deleted, flipped, record_deleted, truncated
from tests.chaos.driver import Game
from tests.chaos.kills import (
    kill,
    kill_after_record,
    kill_at_epoch_end,
    kill_at_last_batch,
    kill_before_record,
    kill_in_upload,
    kill_in_validation,
    kill_launcher,
    kill_pair,
    kill_rank,
    kill_rank_while_s3_refuses,
    kill_worker,
    notice,
    sigterm,
    stop_rank,
    takeover,
)
from tests.chaos.machine import cached_shard_zeroed, clock_jumps, disk_full
from tests.chaos.s3 import (
    s3_cut,
    s3_dead,
    s3_dead_at_stop,
    s3_denies,
    s3_flipped,
    s3_missing,
    s3_resets,
    s3_slow_down,
    s3_stalls,
)

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
