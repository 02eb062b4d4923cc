"""Games in which a run goes on with another number of ranks each time: the same batches, and the same sums but for the
order of their terms.

BatchNorm normalises parts of a batch, and MixUp and CutMix take an image's neighbour in its rank's part; what is in a
part depends on the ranks. So these runs normalise each image alone and mix none. ColOut draws for the whole batch, as
the mixing does. What is left to differ is the order in which gradients are added up.
"""

import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.chaos.arena import BATCHES_PER_EPOCH, Machine, arguments, is_running, kill_tree
from tests.support.command import HANG_SECONDS, start, wait_until
from tests.support.s3_server import BUCKET, Proxy
from tests.support.states import read_log, read_state, tree_of

SEQUENCE = (4, 2, 1, 4)
"""Ranks of the starts of a game."""

EPOCHS = 2
BATCHES = EPOCHS * BATCHES_PER_EPOCH

EXACT = (
    f"schedule.epochs={EPOCHS}",
    "algorithms={mixup: null, cutmix: null, colout: {}}",
    "augment.size_px=48",
    "system.device_microbatch_size=1",
    "optimizer.lr=0.00001",
)
"""What is the same on any number of ranks, beside the recipe of all games. Larger steps amplify rounding: with a
learning rate of 0.1 the loss of the fourth batch has already made 3e-4 of 1e-7."""

LOSS_BOUND, WEIGHT_BOUND = 1e-5, 1e-8
"""The most that a loss may differ, relative to it, and the weights, relative to their norm. Measured on one rank and on
four: 2e-7 and 7e-10. Another batch changes a loss by 1e-2, and a step changes the weights by 4e-7."""


@dataclass(frozen=True)
class Differences:
    """The largest differences from the undisturbed run: of a loss, relative to it; of the weights, relative to their
    norm. `stops` says how each start but the last ended, and after which batch."""

    loss: float
    weights: float
    stops: list[str]

    def line(self) -> str:
        """One line for people."""
        return f"{', '.join(self.stops)}; losses differ by {self.loss:.1e} at most, weights by {self.weights:.1e}"


def play(dataset: Path, proxy: Proxy, folder: Path, seed: int, whole: Path) -> Differences:
    """Play a game and compare it with the undisturbed run.

    Args:
        dataset, proxy: what games share.
        folder: for the machines of this game.
        seed: for the moments and kinds of the stops.
        whole: the folder of the undisturbed run, on four ranks.

    Returns:
        The differences. The batches and what is drawn for them are compared here.
    """
    draw, name, stops = random.Random(seed), f"ranks{seed}", []
    trained: dict[int, list[dict[str, Any]]] = {}
    for number, ranks in enumerate(SEQUENCE):
        machine = Machine(folder / f"machine{number}")
        machine.folder.mkdir()
        out = machine.folder / "out"
        command = [*arguments(dataset, f"s3://{BUCKET}/runs", name, ranks), *EXACT]
        began = time.time()
        process = start(*command, log=out, **proxy.variables, **machine.variables)

        def events(machine: Machine = machine, began: float = began) -> list[dict[str, Any]]:
            return [one for one in machine.log(name) if one["time"] >= began and one["event"] == "batch"]

        if number < len(SEQUENCE) - 1:
            count = draw.randint(3, 9)
            wait_until(lambda: len(events()) >= count, f"{count} batches", process)  # noqa: B023 # called before the next
            pids = tree_of(process.pid)
            if draw.random() < 0.5:
                process.send_signal(signal.SIGTERM)
                assert process.wait(HANG_SECONDS) == 75, out.read_text(encoding="utf-8")
                how = "SIGTERM"
            else:
                kill_tree(process.pid)
                process.wait()
                how = "SIGKILL"
            wait_until(lambda: not any(map(is_running, pids)), "the end of the ranks")  # noqa: B023
            stops.append(f"{how} after batch {events()[-1]['batch']} on {ranks}")
        else:
            assert process.wait(HANG_SECONDS) == 0, out.read_text(encoding="utf-8")
        for event in events():
            trained.setdefault(event["batch"], []).append(event)
    assert set(trained) == set(range(1, BATCHES + 1))
    logged = {event["batch"]: event for event in read_log(whole / "log.jsonl") if event["event"] == "batch"}
    losses = [
        abs(event["loss"] - logged[batch]["loss"]) / logged[batch]["loss"]
        for batch, events_of in trained.items()
        for event in events_of
    ]
    (last,) = (folder / f"machine{len(SEQUENCE) - 1}").glob(
        f"cache/imagenet-mds/runs/*/{name}/checkpoints/ep{EPOCHS}-ba{BATCHES}.pt"
    )
    weights = distance(read_state(whole / "checkpoints" / last.name)["model"], read_state(last)["model"])
    assert max(losses) < LOSS_BOUND, max(losses)
    assert weights < WEIGHT_BOUND, weights
    return Differences(max(losses), weights, stops)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The norm of the difference of two models' weights, relative to that of the first. BatchNorm's running statistics
    are left out: they are of the first rank's parts alone."""
    names = [name for name in one if "running" not in name and "num_batches" not in name]
    difference = sum(float((one[name] - other[name]).double().square().sum()) for name in names)
    norm = sum(float(one[name].double().square().sum()) for name in names)
    return float((difference / norm) ** 0.5)
