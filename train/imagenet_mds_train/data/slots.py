"""Memory in which loader workers hand batches over, made once before they start, and used again and again.

torch's own way makes a new piece of shared memory for each batch: the kernel clears its pages, both processes map
them, and a socket carries the descriptor; that takes a tenth of the time of a decoded image. Here a worker writes a
batch into one of its slots and sends the slot's number and the labels. The memory is anonymous, so that the size of
/dev/shm, 64 MB in a container, does not matter; it is inherited by a fork.

A slot is written again when its worker has made `SPARE` batches more than it keeps ready, and a worker is asked for one
more when one of its has been taken, at an epoch's end for one beyond that. So a batch is its taker's until two more of
the same worker's have been taken: who keeps one longer must copy it.
"""

import mmap
import weakref
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from imagenet_mds_train.augment.jitter import jitter_rows
from imagenet_mds_train.augment.views import View

Collated: TypeAlias = tuple[Tensor, ...]
"""Images (samples, 3, size, size), uint8, channels last, labels (samples), int64, and with ColorJitter its parameters
(samples, 8), float64."""

SPARE = 3

_known: "weakref.WeakValueDictionary[int, Slots]" = weakref.WeakValueDictionary()
"""Every process's own view of the memory, by number: a batch's note carries the number."""


class Slots:
    """Room for so many batches of each worker.

    Args:
        workers: of the loader.
        ready: batches that each keeps ready.
        samples: of a batch.
        size_px: the largest size of an image, pixels on each side.
    """

    def __init__(self, workers: int, ready: int, samples: int, size_px: int) -> None:
        self.slots = ready + SPARE
        self._bytes = samples * size_px * size_px * 3
        self._memory = mmap.mmap(-1, max(1, workers * self.slots * self._bytes))
        self._written = 0
        self.number = id(self)
        _known[self.number] = self

    def place(self, worker: int, slot: int, samples: int, size_px: int) -> NDArray[np.uint8]:
        """A slot as images (samples, size, size, 3)."""
        at = (worker * self.slots + slot) * self._bytes
        flat = np.frombuffer(self._memory, np.uint8, samples * size_px * size_px * 3, at)
        return flat.reshape(samples, size_px, size_px, 3)

    def collate(self, samples: list[tuple[View, int]]) -> "Collated | BatchRef":
        """A batch: in a worker in its next slot, elsewhere in memory of its own."""
        labels = np.array([label for _, label in samples], np.int64)
        jitter = [view.jitter for view, _ in samples if view.jitter is not None]
        size_px = samples[0][0].pixels.shape[0]
        worker = get_worker_info()
        if worker is None:
            images = np.empty((len(samples), size_px, size_px, 3), np.uint8)
        else:
            slot, self._written = self._written % self.slots, self._written + 1
            images = self.place(worker.id, slot, len(samples), size_px)
        for place, (view, _) in enumerate(samples):
            images[place] = view.pixels
        if worker is None:
            return _collated(images, labels, jitter)
        return BatchRef(self.number, worker.id, slot, size_px, labels, jitter)


@dataclass(frozen=True, slots=True)
class BatchRef:
    """Which slot a batch is in, and what else there is of it: all that crosses from a worker."""

    slots: int
    worker: int
    slot: int
    size_px: int
    labels: NDArray[np.int64]
    jitter: list[Any]

    def batch(self) -> Collated:
        """The batch itself, the images in their slot."""
        images = _known[self.slots].place(self.worker, self.slot, len(self.labels), self.size_px)
        return _collated(images, self.labels, self.jitter)

    def pin_memory(self) -> Collated:
        """The batch in page-locked memory, from which it is copied to a GPU while other work goes on. The loader's own
        thread calls this as soon as the batch is there."""
        return tuple(tensor.pin_memory() for tensor in self.batch())


def _collated(images: NDArray[np.uint8], labels: NDArray[np.int64], jitter: list[Any]) -> Collated:
    # (samples, size, size, 3) to (samples, 3, size, size): a change of strides, no copy
    collated = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return (*collated, jitter_rows(jitter)) if jitter else collated
