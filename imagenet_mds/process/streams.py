"""Output that is never a reason to stop: a terminal may close, a pipe's reader may end, a log's disk may be full."""

import contextlib
import sys
from typing import Any, TextIO


class ForgivingStream:
    """A text stream whose failures to write are ignored.

    Args:
        stream: takes what can be written, and answers everything else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if the stream takes it. Return the number of characters either way."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if the stream takes it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_lost_output() -> None:
    """Ignore, from now on, that standard output and standard error cannot be written."""
    sys.stdout, sys.stderr = ForgivingStream(sys.stdout), ForgivingStream(sys.stderr)
