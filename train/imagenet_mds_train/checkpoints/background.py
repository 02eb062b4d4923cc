"""Writes and uploads checkpoints on threads, while training goes on."""

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose tensors are copies in CPU memory.

    epoch, batch: finished ones.
    stall_seconds: how long training stood still for it.
    taken_at: seconds of the monotonic clock.
    """

    checkpoint: dict[str, Any]
    epoch: int
    batch: int
    stall_seconds: float
    taken_at: float = field(default_factory=time.monotonic)


def copied(value: Any) -> Any:
    """A copy that training does not change, with its tensors in CPU memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, copied(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return copy.deepcopy(value)


class BackgroundWriter(Generic[T]):
    """Writes one checkpoint after the other. Of those that wait for the one being written only the newest is kept, so
    that a slow disk or network costs checkpoints and neither time nor memory.

    Args:
        write: writes a checkpoint.
        name: of the thread.
        idle: called on the thread after each `idle_seconds` in which nothing is to be written; what it raises is raised
            in the training thread.
        idle_seconds: see `idle`.
    """

    def __init__(
        self,
        write: Callable[[T], None],
        name: str = "checkpoints",
        idle: Callable[[], None] | None = None,
        idle_seconds: float = 20.0,
    ) -> None:
        self._write = write
        self._name = name
        self._idle = idle
        self._idle_seconds = idle_seconds
        self._changed = threading.Condition()
        self._waiting: T | None = None
        self._writing = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or waits."""
        return self._writing or self._waiting is not None

    def start(self) -> None:
        """Start the thread, if it is not running."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def put(self, checkpoint: T) -> None:
        """Have a checkpoint written.

        Raises:
            BaseException: what ended an earlier write.
        """
        self.raise_if_failed()
        self.start()
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            BaseException: what ended a write.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.busy or self._error is not None)
        self.raise_if_failed()

    def superseded(self, within_seconds: float) -> bool:
        """Wait for a newer checkpoint than the one that is being written, on the thread, and return whether one came.

        Args:
            within_seconds: how long.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is not None, within_seconds)

    def raise_if_failed(self) -> None:
        """Raise what ended a write, if one has failed.

        Raises:
            BaseException: it.
        """
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None, self._idle_seconds if self._idle else None)
                checkpoint, self._waiting = self._waiting, None
                self._writing = checkpoint is not None
            try:
                if checkpoint is not None:
                    self._write(checkpoint)
                elif self._idle:
                    self._idle()
            except BaseException as error:  # it is raised in the training thread
                self._error = error
            checkpoint = None  # its memory is free before the next one comes
            with self._changed:
                self._writing = False
                self._changed.notify_all()
