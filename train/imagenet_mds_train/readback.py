"""Reading values of the device without waiting for it."""

import torch
from torch import Tensor


class LateRead:
    """Values of each batch that are read a batch later, when the device has long computed them.

    On a CPU they are read at once. Every rank reads the same batch's values, so what all ranks agreed on is known to
    all of them after the same batch.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, values: Tensor) -> list[float] | None:
        """Give a batch's values for those of the batch before it.

        Args:
            values: (count), on the device.

        Returns:
            On a CPU the values themselves; None if there are none from before.
        """
        if values.device.type != "cuda":
            return [float(value) for value in values.tolist()]
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        before = self.last()
        self._pending = copy, torch.cuda.current_stream().record_event()  # type: ignore[no-untyped-call] # torch's
        return before

    def last(self) -> list[float] | None:
        """The values that were given last and are not read yet; waits for them. None if there are none."""
        if self._pending is None:
            return None
        (values, copied), self._pending = self._pending, None
        copied.synchronize()
        return [float(value) for value in values.tolist()]
