"""Sends the lines of a worker to CloudWatch Logs, where they outlive the instance."""

import contextlib
import queue
import threading
import time
from types import TracebackType

from imagenet_mds.errors import CommandError
from imagenet_mds_infra.account import Account

SEND_SECONDS = 5.0
_MOST_EVENTS = 1000
_LINE_BYTES = 8192


class LogStream:
    """A stream of a log group, written on a thread. A line that cannot be sent is in the instance's journal alone.

    Args:
        account: the deployment, whose log group it is in.
        stream: the stream's name; made if it is not there.
    """

    def __init__(self, account: Account, stream: str) -> None:
        self._account, self._group, self._stream = account, account.log_group, stream
        self._lines: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log stream", daemon=True)

    def __enter__(self) -> "LogStream":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(timeout=30)

    def add(self, line: str) -> None:
        """Send a line, soon."""
        if line.strip():
            self._lines.put((round(time.time() * 1000), line.encode()[:_LINE_BYTES].decode(errors="ignore")))

    def _run(self) -> None:
        with contextlib.suppress(CommandError):  # it exists, or the next call says what is wrong
            self._account.change("logs", "create_log_stream", logGroupName=self._group, logStreamName=self._stream)
        while True:
            closed = self._closed.wait(SEND_SECONDS)
            while events := self._taken():
                with contextlib.suppress(CommandError):
                    self._account.change(
                        "logs",
                        "put_log_events",
                        logGroupName=self._group,
                        logStreamName=self._stream,
                        logEvents=events,
                    )
            if closed:
                return

    def _taken(self) -> list[dict[str, object]]:
        events: list[dict[str, object]] = []
        with contextlib.suppress(queue.Empty):
            while len(events) < _MOST_EVENTS:
                at, line = self._lines.get_nowait()
                events.append({"timestamp": at, "message": line})
        return events
