"""What the GPUs of this machine do, from `nvidia-smi`, which runs beside the first rank and prints a line a GPU."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator

from composer.core import Callback, State
from composer.loggers import Logger

_EVERY_SECONDS = 10
_FIELDS = {
    "index": "index",
    "utilization.gpu": "use",
    "memory.used": "memory_mib",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
}
"""What nvidia-smi is asked for, and what it is called in the log."""


class GPUMetrics(Callback):
    """Logs `gpu/N/use` (0 to 1), `memory_mib`, `celsius` and `watts` of each GPU, every few batches.

    Args:
        tool: the program.
        every_batches: batches between logged values.
    """

    def __init__(self, tool: str, every_batches: int) -> None:
        self._tool, self._every_batches = tool, every_batches
        self._process: subprocess.Popen[str] | None = None
        self.latest: dict[str, float] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the program. Without it, nothing is logged."""
        command = [self._tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError):
            # It ends with this rank's process group.
            self._process = subprocess.Popen(
                [*command, f"--loop={_EVERY_SECONDS}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the latest values if it is due."""
        if self.latest and state.timestamp.batch.value % self._every_batches == 0:
            logger.log_metrics(self.latest)

    def close(self, state: State, logger: Logger) -> None:
        """End the program."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.latest = self.latest | dict(values_of(line))


def values_of(line: str) -> Iterator[tuple[str, float]]:
    """The values of a line that nvidia-smi printed, by name. What a GPU does not measure is left out."""
    index, *values = (value.strip() for value in line.split(","))
    for name, value in zip(list(_FIELDS.values())[1:], values, strict=False):
        with contextlib.suppress(ValueError):
            yield f"gpu/{index}/{name}", float(value) / (100 if name == "use" else 1)
