"""What faults of several kinds share."""

from tests.chaos.driver import Game
from tests.support.s3_server import Request


def is_write(request: Request) -> bool:
    """Whether a request to S3 writes an object or a part of one."""
    return request.method in ("PUT", "POST")


def leave(game: Game) -> None:
    """Kill everything that runs. If the last machine has what S3 has not, the run has gone on there before."""
    if game.command is None and game.next_on == "same machine":
        game.faulty_s3 = True  # what was only there may be uploaded late
        game.wait_for_batches(1)
    if game.command:
        game.kill()
