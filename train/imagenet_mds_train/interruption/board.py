"""Memory that the launcher and the ranks of one start share: what a signal cannot say. Imports no torch."""

import mmap
import os
import struct

BOARD_VARIABLE = "IMAGENET_MDS_BOARD"
"""The environment variable with the descriptor of the memory, which the ranks inherit."""

_WORD = struct.Struct("=Q")
_BYTES = mmap.PAGESIZE


class Board:
    """The memory of one start, or of one rank alone that no launcher started.

    Args:
        descriptor: of the memory; None for memory of this process alone.
    """

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, _BYTES)

    @classmethod
    def create(cls) -> "Board":
        """Create the memory, in the launcher. Close it at the end."""
        # Not a file: on a full disk, writing to its memory would end the process.
        descriptor = os.memfd_create("imagenet-mds-board")
        os.ftruncate(descriptor, _BYTES)
        return cls(descriptor)

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
        _WORD.pack_into(self._memory, 0, self.saves_asked_for + 1)

    @property
    def saves_asked_for(self) -> int:
        """How often a save was asked for."""
        count: int = _WORD.unpack_from(self._memory, 0)[0]
        return count
