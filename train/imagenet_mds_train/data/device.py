"""What is left to do with a batch where it is trained on, ahead of its use.

On a GPU the next batch is copied, and its ColorJitter made, on a stream of its own while the present one is trained on;
the copies run from pinned memory. What is decided by numbers (which images are jittered, which labels weigh nothing) is
decided on the processor, where the numbers are, so that nothing here waits for the device. Without a GPU the same is
done when a batch is asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from imagenet_mds.errors import UserError
from imagenet_mds_train.augment.jitter import jitter
from imagenet_mds_train.data.slots import BatchRef, Collated

Batch: TypeAlias = tuple[Tensor, Tensor]

PADDING_LABEL = -1
"""The label of black images that weigh nothing: damaged ones in training, and those that make the ranks' validation
batches equal in number."""

Finish: TypeAlias = Callable[[Any], Batch]
"""From a batch as a worker collated it to one that is ready for the model."""


class DeviceLoader(DataLoader[Any]):
    """A loader whose batches are finished, and on the device, ahead of their use.

    Args:
        finish: what is done to each batch; None leaves them as they were collated.
        device: where they go.
        options: as `DataLoader`.
    """

    def __init__(self, *, finish: Finish | None, device: torch.device, **options: Any) -> None:
        super().__init__(**options)
        self.finish = finish
        self.device = device

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's says that it is an object of its own
        """The batches of an epoch."""
        batches: Iterator[Any] = map(_taken, super().__iter__())
        if self.finish is None:
            return batches
        if self.device.type != "cuda":
            return map(self.finish, batches)
        return on_a_stream(batches, self.finish, self.device)


def _taken(batch: Any) -> Any:
    """The batch that a worker's note is of; what is no note, or was taken when it was pinned, as it is."""
    return batch.batch() if isinstance(batch, BatchRef) else batch


def on_a_stream(batches: Iterable[Any], finish: Finish, device: torch.device) -> Iterator[Batch]:
    """Finish each batch on a stream of its own, one batch ahead of its use."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = finish(batch), stream.record_event()  # type: ignore[no-untyped-call] # torch's
        if ahead is not None:
            yield _in_use(*ahead, device)
        ahead = following
    if ahead is not None:
        yield _in_use(*ahead, device)


def _in_use(batch: Batch, finished: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch, for the stream that trains: that waits for this batch alone, not for the one behind it, and the
    memory is not given away before that stream is done with it."""
    training = torch.cuda.current_stream(device)
    training.wait_event(finished)
    for tensor in batch:
        tensor.record_stream(training)
    return batch


def finish_batch(batch: Collated, *, device: torch.device, classes: int, weightless: bool = False) -> Batch:
    """A collated batch on the device, with ColorJitter's pixels made and labels that weigh nothing.

    Args:
        batch: in the processor's memory.
        device: where it goes.
        classes: that the model knows.
        weightless: labels may be `PADDING_LABEL`: if one is, the batch gets class probabilities (samples, classes),
            and that sample's are all zero.

    Raises:
        UserError: a label that the model does not know.
    """
    images, labels = batch[0], batch[1]
    if (largest := int(labels.max())) >= classes:
        raise UserError(f"a sample is of class {largest} and the model knows {classes}: give model.classes")
    if weightless and bool((labels < 0).any()):
        real = (labels >= 0).float()[:, None]
        labels = one_hot(labels.clamp(min=0), classes).float() * real
    images = images.to(device, non_blocking=True)
    if len(batch) == 3:
        images = jitter(images, batch[2])
    return images, labels.to(device, non_blocking=True)
