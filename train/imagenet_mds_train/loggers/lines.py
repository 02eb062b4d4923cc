"""Lines of a run's log, a JSON object each. Imports no torch."""

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from imagenet_mds.storage.atomic import finite


def append_event(log: Path, event: str, attempt: int, **values: Any) -> None:
    """Append a line. It is flushed at once, so that a killed run loses none.

    Args:
        log: the file.
        event: its kind.
        attempt: the start of the run that it is of, counted from 1.
        values: its further fields. What is no finite number becomes null.

    Raises:
        OSError: the log cannot be written.
    """
    line = {"event": event, "attempt": attempt, "time": round(time.time(), 3)} | values
    with open(log, "ab+") as file:
        # A killed start may have left half a line; the next event must not join it.
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")
        file.write(json.dumps(finite(line), allow_nan=False).encode() + b"\n")


def _ends_with_newline(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
