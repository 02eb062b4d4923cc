"""A part of a stored file as a file object, for libraries that take one. It reads little more than is asked for."""

import io

from imagenet_mds.storage.base import Storage

HEADER_AHEAD_BYTES = 1 << 12
"""A page: the least that a disk reads, and enough for a tar header with a long name."""


class RangeFile(io.RawIOBase):
    """`length` bytes of a stored file, beginning at byte `start`.

    Args:
        storage: the storage that holds the file.
        name: the file's name.
        start: offset in it of this file's byte 0.
        length: size of this file in bytes.
        ahead_bytes: minimum size of a read; small reads that follow closely are served from its buffer.
    """

    def __init__(
        self, storage: Storage, name: str, start: int, length: int, ahead_bytes: int = HEADER_AHEAD_BYTES
    ) -> None:
        self.storage, self.name, self.start, self.length = storage, name, start, length
        self._ahead_bytes = ahead_bytes
        self._at = 0
        self._buffer, self._buffer_at = b"", 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the offset of the next read."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """The next `size` bytes, or all that are left for -1; fewer at the end.

        Raises:
            OSError: the storage cannot be read.
        """
        left = max(self.length - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        begin = self._at - self._buffer_at
        if begin < 0 or begin + size > len(self._buffer):
            wanted = min(max(size, self._ahead_bytes), left)
            self._buffer = b""  # freed before the next one is read: memory for one at a time
            self._buffer = self.storage.read_range(self.name, self.start + self._at, wanted)
            self._buffer_at, begin = self._at, 0
        data = self._buffer[begin : begin + size]
        self._at += len(data)
        return data
