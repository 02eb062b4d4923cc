"""Finishes each batch on the device, ahead of its use.

On a GPU the next batch is copied and jittered on a stream of its own while the current one is trained on; the copies
run from pinned memory. Decisions that depend on values (which images are jittered) are made on the CPU, where the
values are, so that nothing here waits for the device. Without a GPU the same is done when a batch is requested.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imagenet_mds.errors import UserError
from imagenet_mds_train.augment.jitter import jitter
from imagenet_mds_train.augment.mixing import Mixing
from imagenet_mds_train.data.slots import BatchRef, Collated

Batch: TypeAlias = tuple[Tensor, Tensor]

PADDING_LABEL = -1
"""The label of black images without weight: damaged ones, and those that give each rank the same number of validation
batches."""

Finish: TypeAlias = Callable[[Any, int], Batch]
"""Turns a batch as a worker collated it, and its number, into one that is ready for the model."""


class DeviceLoader(DataLoader[Any]):
    """A loader that finishes its batches and moves them to the device ahead of their use.

    Args:
        finish: what is done to each batch; None leaves batches as they were collated.
        device: where batches go.
        options: passed to `DataLoader`.
    """

    def __init__(self, *, finish: Finish | None, device: torch.device, **options: Any) -> None:
        super().__init__(**options)
        self.finish = finish
        self.device = device
        self.next_batch = 0
        """The number of the first batch of the next iteration, which `finish` is given."""
        self.on_batch: Callable[[], None] = lambda: None
        """Called when a batch has come from the workers."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's says that it is an object of its own
        """The batches of an epoch."""
        batches: Iterator[Any] = map(self._taken, super().__iter__())
        if self.finish is None:
            return batches
        numbered = zip(batches, count(self.next_batch), strict=False)
        if self.device.type != "cuda":
            return (self.finish(batch, number) for batch, number in numbered)
        return on_a_stream(numbered, self.finish, self.device)

    def _taken(self, batch: Any) -> Any:
        """The batch that a worker's reference names. Anything else, such as a batch that was pinned, stays as it is."""
        self.on_batch()
        return batch.batch() if isinstance(batch, BatchRef) else batch


def on_a_stream(batches: Iterable[tuple[Any, int]], finish: Finish, device: torch.device) -> Iterator[Batch]:
    """Finish each batch on a stream of its own, one batch ahead of its use."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch, number in batches:
        with torch.cuda.stream(stream):
            following = finish(batch, number), stream.record_event()  # type: ignore[no-untyped-call] # torch's
        if ahead is not None:
            yield _in_use(*ahead, device)
        ahead = following
    if ahead is not None:
        yield _in_use(*ahead, device)


def _in_use(batch: Batch, finished: torch.cuda.Event, device: torch.device) -> Batch:
    """Hand the batch to the training stream, which then waits for this batch and not for the next one. The memory is
    not reused before that stream is done with it."""
    training = torch.cuda.current_stream(device)
    training.wait_event(finished)
    for tensor in batch:
        tensor.record_stream(training)
    return batch


def finish_batch(batch: Collated, number: int, *, device: torch.device, classes: int, mixing: Mixing | None) -> Batch:
    """Move a collated batch to the device, with ColorJitter and mixing applied.

    Args:
        batch: in CPU memory.
        number: of the global batch since the start of the run, counted from 0.
        device: where it goes.
        classes: number of classes of the model.
        mixing: what training does to a whole batch; its labels become class probabilities (samples, classes). None
            leaves them numbers, as validation needs them.

    Raises:
        UserError: a label that the model does not know.
    """
    images, labels = batch[0], batch[1]
    if (largest := int(labels.max())) >= classes:
        raise UserError(f"a sample has class {largest} and the model knows {classes}: pass model.classes")
    images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    if len(batch) == 3:
        images = jitter(images, batch[2])
    return mixing(images, labels, number) if mixing else (images, labels)
