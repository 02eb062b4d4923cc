"""A connection between the launchers of two nodes: JSON lines, and files. Imports no torch.

There is no encryption and nobody is asked who they are, as in torch's own store: the network must be private.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_mds.words import one_line

LINE_BYTES = 1 << 24
"""The longest message. A job has the names of all classes."""

_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1
_SEND_SECONDS = 60.0
"""How long the other side may take nothing. Reads wait in `select`."""

# A machine that is gone without a word is noticed after 10 + 3 x 10 s.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_UNANSWERED_MILLISECONDS = 40_000


class Gone(OSError):  # noqa: N818 # what the other side is
    """The other side is gone, says nothing for too long, or speaks another language."""


class Interrupted(Exception):  # noqa: N818 # a request, not an error
    """A wait was given up, because this process is to stop."""


class Connection:
    """One side of a connection.

    Args:
        connected: the socket, which is closed with this.
        is_interrupted: whether this process is to stop; asked while waiting.
    """

    def __init__(self, connected: socket.socket, is_interrupted: Callable[[], bool] = lambda: False) -> None:
        self._socket = connected
        self._is_interrupted = is_interrupted
        self._received = bytearray()
        connected.settimeout(_SEND_SECONDS)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MILLISECONDS)
        self.peer = str(connected.getpeername()[0]).removeprefix("::ffff:")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, **message: Any) -> None:
        """Send a message.

        Raises:
            Gone: the other side is.
        """
        self._send(json.dumps(message).encode() + b"\n")

    def send_file(self, file: Path) -> None:
        """Send the bytes of a file, whose number the other side must know.

        Raises:
            Gone: the other side is.
            OSError: the file cannot be read.
        """
        with open(file, "rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                self._send(chunk)

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message.

        Raises:
            Gone: there is none within the time.
            Interrupted: this process is to stop.
        """
        until = time.monotonic() + seconds
        while (message := self._message()) is None:
            self._receive(until)
        return message

    def receive_file(self, file: Path, size_bytes: int, seconds: float) -> None:
        """Receive the bytes of a file.

        Args:
            file: where they are written.
            size_bytes: their number.
            seconds: for how long nothing may come.

        Raises:
            Gone: the other side is, or is silent.
            Interrupted: this process is to stop.
            OSError: the file cannot be written.
        """
        with open(file, "wb") as target:
            while size_bytes:
                if not self._received:
                    self._receive(time.monotonic() + seconds)
                chunk = self._received[:size_bytes]
                del self._received[:size_bytes]
                target.write(chunk)
                size_bytes -= len(chunk)

    def poll(self) -> dict[str, Any] | None:
        """The next message if there is one already.

        Raises:
            Gone: the other side is.
        """
        message = self._message()
        while message is None and self._is_readable(0.0):
            self._read()
            message = self._message()
        return message

    def _message(self) -> dict[str, Any] | None:
        line, end, rest = self._received.partition(b"\n")
        if not end:
            if len(line) > LINE_BYTES:
                raise Gone(f"{self.peer} sends something else than messages")
            return None
        self._received = rest
        with contextlib.suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        raise Gone(f"{self.peer} sends something else than messages: {one_line(line[:40].decode(errors='replace'))}")

    def _receive(self, until: float) -> None:
        """Wait for some bytes."""
        while not self._is_readable(_POLL_SECONDS):
            if self._is_interrupted():
                raise Interrupted
            if time.monotonic() > until:
                raise Gone(f"{self.peer} does not answer")
        self._read()

    def _is_readable(self, seconds: float) -> bool:
        return bool(select.select([self._socket], [], [], seconds)[0])

    def _read(self) -> None:
        try:
            received = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise Gone(f"{self.peer} is gone ({error.strerror or error})") from None
        if not received:
            raise Gone(f"{self.peer} is gone")
        self._received += received

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Gone(f"{self.peer} is gone ({error.strerror or error})") from None
