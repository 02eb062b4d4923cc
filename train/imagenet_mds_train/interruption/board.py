"""Memory that the launcher and the ranks of one start share: what signals cannot say. Imports no torch.

The launcher asks for saves here, and each rank says here how far it is, so that the launcher sees a rank that hangs,
whatever it hangs in, and even if it is stopped; and why it fails, which is on the screen or in its log too.
"""

import mmap
import os
import struct
from enum import IntEnum
from typing import NamedTuple

BOARD_VARIABLE = "IMAGENET_MDS_BOARD"
"""The environment variable with the descriptor of the memory, which the ranks inherit."""

_SAVES = struct.Struct("=Q")
_PLACE = struct.Struct("=QQIBB")
_REASON = struct.Struct("=H")
_SLOT_BYTES = 1024
"""Of each rank: its place, then why it failed. The first slot is the launcher's."""
_REASON_AT = 64
_REASON_BYTES = _SLOT_BYTES - _REASON_AT - _REASON.size


class Phase(IntEnum):
    """What a rank does."""

    START = 0
    """It has not asked for its first batch yet, or compiles the network."""
    DATA = 1
    """It waits for a batch of its loader."""
    STEP = 2
    """It computes, or waits for the other ranks."""
    SAVE = 3
    """It saves, if a checkpoint is due."""
    END = 4
    """It has finished, and closes what it has open."""


class Place(NamedTuple):
    """How far a rank is.

    beats: changes with every sign of progress, by the same number in all ranks.
    batch: finished batches.
    epoch: finished epochs.
    phase: what it does.
    patient: whether it may take longer than a batch: to start, to compile, to save.
    """

    beats: int = 0
    batch: int = 0
    epoch: int = 0
    phase: Phase = Phase.START
    patient: bool = True


class Board:
    """The memory of one start, or of one rank alone that no launcher started.

    Args:
        descriptor: of the memory; None for memory of this process alone.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        size_bytes = mmap.PAGESIZE if descriptor is None else os.fstat(descriptor).st_size
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, size_bytes)

    @classmethod
    def create(cls, ranks: int) -> "Board":
        """Create the memory, in the launcher. Close it at the end."""
        # Not a file: on a full disk, writing to its memory would end the process.
        descriptor = os.memfd_create("imagenet-mds-board")
        os.ftruncate(descriptor, _SLOT_BYTES * (ranks + 1))
        board = cls(descriptor)
        for rank in range(ranks):
            board.write(rank, Place())
        return board

    @classmethod
    def inherited(cls) -> "Board":
        """Open the memory of the launcher that started this rank."""
        descriptor = os.environ.get(BOARD_VARIABLE)
        return cls(None if descriptor is None else int(descriptor))

    def environment(self) -> dict[str, str]:
        """The environment variables by which a rank finds the memory. It must inherit the descriptor."""
        return {BOARD_VARIABLE: str(self.descriptor)}

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()
        if self.descriptor is not None:
            os.close(self.descriptor)

    def ask_for_save(self) -> None:
        """Have the ranks save the batch that they are training, and go on."""
        _SAVES.pack_into(self._memory, 0, self.saves_asked_for + 1)

    @property
    def saves_asked_for(self) -> int:
        """How often a save was asked for."""
        count: int = _SAVES.unpack_from(self._memory, 0)[0]
        return count

    def write(self, rank: int, place: Place) -> None:
        """Say how far a rank is."""
        _PLACE.pack_into(self._memory, _SLOT_BYTES * (rank + 1), *place)

    def explain(self, rank: int, reason: str) -> None:
        """Say why a rank fails, in one line."""
        text, at = reason.encode()[:_REASON_BYTES], _SLOT_BYTES * (rank + 1) + _REASON_AT
        self._memory[at + _REASON.size : at + _REASON.size + len(text)] = text
        _REASON.pack_into(self._memory, at, len(text))

    def reason(self, rank: int) -> str | None:
        """Why a rank failed, None if it has not said so."""
        at = _SLOT_BYTES * (rank + 1) + _REASON_AT
        count: int = _REASON.unpack_from(self._memory, at)[0]
        return self._memory[at + _REASON.size : at + _REASON.size + count].decode(errors="replace") if count else None

    def read(self, rank: int) -> Place:
        """How far a rank is."""
        beats, batch, epoch, phase, patient = _PLACE.unpack_from(self._memory, _SLOT_BYTES * (rank + 1))
        return Place(beats, batch, epoch, Phase(phase), bool(patient))
