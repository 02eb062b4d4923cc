"""Plays games with faults drawn from seeds: `python -m tests.chaos --games 200 --seed 7`."""

import argparse
import os
import secrets
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in tests/conftest.py

from imagenet_mds.demo.draw import draw_tree
from tests.chaos.arena import Arena, Played, undisturbed
from tests.chaos.driver import Game
from tests.chaos.faults import FAULTS, drawn
from tests.support.command import done
from tests.support.metadata import metadata_service
from tests.support.s3_server import BUCKET, CREDENTIALS, direct, proxy_before, s3_server

RANKS = (1, 2)


def table(survived: Sequence[Played], lost: Sequence[Played]) -> list[str]:
    """Lines of a table in Markdown.

    Args:
        survived: faults of runs that ended as the undisturbed one.
        lost: faults of other runs.
    """
    lines = [
        "| fault | tried | survived | lost | batches again: median, most | seconds to the next batch: median |",
        "|---|---|---|---|---|---|",
    ]
    for name in FAULTS:
        fine, bad = (
            [one for one in played if one.name == name and one.outcome != "missed"] for played in (survived, lost)
        )
        again = [one.again for one in fine if one.again is not None]
        seconds = [one.seconds for one in fine if one.seconds is not None]
        counts = f"| {name} | {len(fine) + len(bad)} | {len(fine)} | {len(bad)} "
        figures = f"{median(again):g}, {max(again)}" if again else ""
        lines.append(f"{counts}| {figures} | {f'{median(seconds):.0f}' if seconds else ''} |")
    return lines


def main() -> None:
    """Play the games, then print how often each fault came and what became of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=10, help="number of games")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first game; the next ones follow it")
    options = parser.parse_args()
    first = secrets.randbelow(10**6) if options.seed is None else options.seed
    print(f"seeds {first} to {first + options.games - 1}; repeat one with make chaos N=1 SEED=...", flush=True)
    os.environ.update(CREDENTIALS)
    survived: list[Played] = []
    lost: list[Played] = []
    with tempfile.TemporaryDirectory() as root, s3_server() as server, proxy_before(server) as proxy:
        direct(server).create_bucket(Bucket=BUCKET)
        draw_tree(Path(root, "tree"), train_per_class=16, val_per_class=5)
        done("convert", Path(root, "tree"), Path(root, "mds"), "--shard-size", "64KiB", "--workers", 2)
        arena = Arena(Path(root, "mds"), server, proxy, undisturbed(Path(root, "mds"), Path(root), RANKS))
        for seed in range(first, first + options.games):
            with tempfile.TemporaryDirectory(dir=root) as folder, metadata_service() as metadata:
                game = Game.drawn(arena, Path(folder), metadata, seed, RANKS)
                try:
                    game.play({name: FAULTS[name] for name in drawn(game)})
                except Exception:  # the next game has a run of its own
                    traceback.print_exc()
                    lost += game.played
                else:
                    survived += game.played
    print("\n".join(table(survived, lost)), flush=True)
    if lost:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
