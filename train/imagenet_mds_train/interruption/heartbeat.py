"""Tells the launcher how far this rank is, at every event of the training."""

from composer.core import Callback, Event, State
from composer.loggers import Logger

from imagenet_mds_train.interruption.board import Board, Phase, Place

_PHASES = {
    event.value: phase
    for event, phase in (
        (Event.BEFORE_DATALOADER, Phase.DATA),
        (Event.EVAL_START, Phase.DATA),
        (Event.EVAL_BATCH_END, Phase.DATA),
        (Event.EVAL_END, Phase.STEP),
        (Event.BATCH_CHECKPOINT, Phase.SAVE),
        (Event.EPOCH_END, Phase.STEP),
        (Event.EPOCH_CHECKPOINT, Phase.SAVE),
        (Event.FIT_END, Phase.END),
        (Event.EVAL_STANDALONE_END, Phase.END),
    )
}
"""What a rank does from an event on, by its name, because Composer's events are slow to look up. The loader ends
`DATA`, see `batch_came`: the event after it comes only when all ranks have their batches."""


class Heartbeat(Callback):
    """Writes to the board. It must come before the callback that saves.

    Args:
        board: of this start.
        rank: the number of this rank.
        compiles: whether the network is compiled, which takes minutes for each new size.
    """

    def __init__(self, board: Board, rank: int, *, compiles: bool) -> None:
        self._board = board
        self._rank = rank
        self._compiles = compiles
        self._is_warm = False
        self._beats, self._batch, self._epoch = 0, 0, 0
        self._phase = Phase.START

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Write, whatever the event."""
        if (phase := _PHASES.get(event.value)) is not None:
            self._phase = phase
            self._batch, self._epoch = state.timestamp.batch.value, state.timestamp.epoch.value
        if event is Event.BATCH_END or event is Event.EVAL_BATCH_END:
            self._is_warm = True
        elif self._compiles and (event is Event.EPOCH_START or event is Event.EVAL_START):
            self._is_warm = False
        self._write()

    def batch_came(self) -> None:
        """Write that the loader has given a batch."""
        if self._phase == Phase.DATA:
            self._phase = Phase.STEP
        self._write()

    def finishing(self) -> None:
        """Write that the training is over, however it ended. What is left is to close loggers, which may upload."""
        self._phase = Phase.END
        self._write()

    def _write(self) -> None:
        self._beats += 1
        # The first rank writes the checkpoint; the others wait for it in their next step.
        saves = self._phase == Phase.SAVE and self._rank == 0
        patient = not self._is_warm or saves or self._phase == Phase.END
        phase = Phase.START if self._compiles and not self._is_warm else self._phase
        self._board.write(self._rank, Place(self._beats, self._batch, self._epoch, phase, patient))
