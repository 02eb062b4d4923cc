"""Plays games with faults drawn from seeds: `python -m tests.chaos --games 200 --seed 7`.

With `--cycles 100` it kills one run that often instead.
"""

import argparse
import os
import secrets
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, as in tests/conftest.py

from imagenet_mds.demo.draw import draw_tree
from tests.chaos import cycles, ranks
from tests.chaos.arena import Arena, Played, arguments, put_dataset, undisturbed
from tests.chaos.driver import Game
from tests.chaos.faults import FAULTS, drawn
from tests.support.command import done
from tests.support.metadata import metadata_service
from tests.support.s3_server import BUCKET, CREDENTIALS, Proxy, direct, proxy_before, s3_server

RANKS = (1, 2, 4)
GAMES_TO_CHANGE_OF_RANKS = 6
"""How many games there are to one in which the number of ranks changes."""


@dataclass
class Score:
    """What has been played.

    survived: faults of runs that ended as the undisturbed one.
    lost: faults of other runs.
    changes: games in which the number of ranks changed.
    """

    games: int = 0
    starts: int = 0
    survived: list[Played] = field(default_factory=list)
    lost: list[Played] = field(default_factory=list)
    changes: list[ranks.Differences] = field(default_factory=list)
    lost_changes: int = 0

    def lines(self) -> list[str]:
        """How often each fault came and what became of the runs, as a table in Markdown and two lines."""
        faults = sum(one.outcome in ("stopped", "went on") for one in (*self.survived, *self.lost))
        lines = [
            *table(self.survived, self.lost),
            "",
            f"{self.games} games with {self.starts} starts and {faults} faults",
        ]
        if self.changes:
            loss, weights = max(one.loss for one in self.changes), max(one.weights for one in self.changes)
            lines.append(
                f"{len(self.changes)} games with 4 starts each on {ranks.SEQUENCE} ranks: losses differ by {loss:.1e} "
                f"at most, weights by {weights:.1e}"
            )
        return lines


def table(survived: Sequence[Played], lost: Sequence[Played]) -> list[str]:
    """Lines of a table in Markdown; see `Score`."""
    lines = [
        "| fault | tried | survived | lost | batches again: median, most | seconds to the next batch: median |",
        "|---|---|---|---|---|---|",
    ]
    for name in FAULTS:
        fine, bad = (
            [one for one in played if one.name == name and one.outcome in ("stopped", "went on")]
            for played in (survived, lost)
        )
        again = [one.again for one in fine if one.again is not None]
        seconds = [one.seconds for one in fine if one.seconds is not None]
        counts = f"| {name} | {len(fine) + len(bad)} | {len(fine)} | {len(bad)} "
        figures = f"{median(again):g}, {max(again)}" if again else ""
        lines.append(f"{counts}| {figures} | {f'{median(seconds):.0f}' if seconds else ''} |")
    return lines


def play_game(arena: Arena, root: Path, seed: int, score: Score) -> None:
    """Play the game of a seed, and count it."""
    with tempfile.TemporaryDirectory(dir=root) as folder, metadata_service() as metadata:
        game = Game.drawn(arena, Path(folder), metadata, seed, RANKS)
        try:
            game.play({name: FAULTS[name] for name in drawn(game)})
        except Exception:  # the next game has a run of its own
            traceback.print_exc()
            score.lost += game.played
        else:
            score.survived += game.played
        score.games += 1
        score.starts += game.starts


def play_change_of_ranks(dataset: Path, proxy: Proxy, root: Path, seed: int, score: Score) -> None:
    """Play the game of a seed in which the number of ranks changes, and count it."""
    if not (root / "changing").exists():
        done(*arguments(dataset, root, "changing", ranks.SEQUENCE[0]), *ranks.EXACT)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        try:
            found = ranks.play(dataset, proxy, Path(folder), seed, root / "changing")
        except Exception:  # as above
            traceback.print_exc()
            score.lost_changes += 1
        else:
            print(f"game {seed} on changing ranks: {found.line()}", flush=True)
            score.changes.append(found)


def main() -> None:
    """Play the games, then print how often each fault came and what became of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", type=int, default=10, help="number of games")
    parser.add_argument("--cycles", type=int, default=0, help="number of crash cycles, in place of games")
    parser.add_argument("--seed", type=int, default=None, help="seed of the first game; the next ones follow it")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time after which no game begins")
    options = parser.parse_args()
    first = secrets.randbelow(10**6) if options.seed is None else options.seed
    until = time.monotonic() + 60 * options.minutes
    os.environ.update(CREDENTIALS)
    score = Score()
    with tempfile.TemporaryDirectory() as folder, s3_server() as server, proxy_before(server) as proxy:
        root = Path(folder)
        direct(server).create_bucket(Bucket=BUCKET)
        draw_tree(root / "tree", train_per_class=16, val_per_class=5)
        dataset = root / "mds"
        done("convert", root / "tree", dataset, "--shard-size", "64KiB", "--workers", 2)
        if options.cycles:
            print(f"seed {first}", flush=True)
            print(cycles.play(dataset, server, proxy, root, options.cycles, first).line(), flush=True)
            return
        print(f"seeds {first} to {first + options.games - 1}; repeat one with make chaos N=1 SEED=...", flush=True)
        arena = Arena(dataset, put_dataset(dataset, server), server, proxy, undisturbed(dataset, root, RANKS))
        for number in range(options.games):
            if time.monotonic() > until:
                break
            play_game(arena, root, first + number, score)
            if number % GAMES_TO_CHANGE_OF_RANKS == GAMES_TO_CHANGE_OF_RANKS - 1:
                play_change_of_ranks(dataset, proxy, root, first + number, score)
    print("\n".join(score.lines()), flush=True)
    if score.lost or score.lost_changes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
