"""Requests to stop, and to save and go on: made to any rank, agreed on by all ranks at the end of a batch.

Nothing is saved in the signal handler. It sets a flag; the ranks agree on it at the end of each batch, on GPUs at the
end of the next one, so that no rank waits for its device; the saver saves that batch if its loss is finite, and every
rank raises `StopRequested`. A request to save takes the same way without the end.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds.errors import EXIT_STOPPED
from imagenet_mds_train.interruption.board import Board
from imagenet_mds_train.readback import LateRead


class StopRequested(Exception):  # noqa: N818 # a request, not an error
    """What is worth saving is saved; the run ends now, ready to continue."""


class StopRequest(Callback):
    """Turns SIGTERM into a stop of all ranks after the same batch, and `request_save` into a save of that batch.

    Args:
        on_stop: called in the first rank just before `StopRequested` is raised, with the number of finished batches.
        board: where the launcher asks for a save; None without a launcher.
    """

    def __init__(self, on_stop: Callable[[int], None] = lambda batch: None, board: Board | None = None) -> None:
        self._on_stop = on_stop
        self._flags = LateRead()
        self._board = board
        self._saves_seen = 0
        self._signalled = False
        self._save_requested = False
        self.agreed = False
        """Whether the ranks have agreed to stop."""
        self.save_agreed = False
        """Whether the ranks have agreed to save. The saver clears it with a checkpoint."""

    def listen(self) -> None:
        """Handle SIGTERM from now on. Composer takes the signal for itself when it is imported.

        Before the ranks have met there is nothing to save, and the others would wait for this one: it exits at once.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            if not torch.distributed.is_initialized():
                os._exit(EXIT_STOPPED)
            self._signalled = True

        signal.signal(signal.SIGTERM, on_signal)

    def request_save(self) -> None:
        """Have all ranks save the batch that is being trained, and go on. One rank is enough; any thread may ask."""
        self._save_requested = True

    def batch_end(self, state: State, logger: Logger) -> None:
        """Agree: if one rank was signalled, all ranks stop after this batch; if one was asked to save, all save it."""
        self._agree(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Agree during a validation too, and stop in the middle of it: the epoch's last batch is already saved.

        Raises:
            StopRequested: a rank was signalled.
        """
        self._agree(state)
        self.raise_if_agreed(state)

    def raise_if_agreed(self, state: State) -> None:
        """End the run if a stop was agreed on. The saver calls this once the batch is saved.

        Raises:
            StopRequested: a stop was agreed on.
        """
        if not self.agreed:
            return
        if dist.get_global_rank() == 0:
            self._on_stop(state.timestamp.batch.value)
        raise StopRequested

    def _agree(self, state: State) -> None:
        if self._board and (asked_for := self._board.saves_asked_for) != self._saves_seen:
            self._saves_seen = asked_for
            self._save_requested = True
        save = self._save_requested
        if save:  # and only then, so that a request that comes now is kept for the next batch
            self._save_requested = False
        flags = torch.tensor([int(self._signalled), int(save)])
        if dist.get_world_size() > 1:
            flags = state.device.tensor_to_device(flags)
            dist.all_reduce(flags, reduce_operation="MAX")
        agreed = self._flags.exchange(flags)
        if agreed is None:
            return
        self.agreed, save = map(bool, agreed)
        # A request that is agreed on in a validation waits for the checkpoint after it.
        self.save_agreed = self.save_agreed or save
