"""Reused memory in which loader workers hand batches over, allocated once before the workers start.

torch allocates new shared memory for each batch: the kernel clears its pages, both processes map them, and a socket
carries the descriptor, which takes a tenth of the time of decoding an image. Here a worker writes a batch into one of
its slots and sends the number of the slot and the labels. The memory is anonymous and inherited by fork, so the size of
/dev/shm, 64 MB in a container, does not matter.

A slot is overwritten when its worker has made `SPARE` batches more than it keeps ready. A worker is asked for another
batch when one of its batches is taken, and at the end of an epoch for one more. So a batch belongs to its taker until
two more batches of the same worker have been taken. Copy it to keep it longer.
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
"""This process's view of each piece of memory, by the number that a `BatchRef` carries."""


class Slots:
    """Room for `ready + SPARE` batches of each worker.

    Args:
        workers: number of loader workers.
        ready: batches that each worker keeps ready.
        samples: samples in a batch.
        size_px: the largest size of an image, in pixels on each side.
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
        """Collate a batch: in a worker into its next slot, elsewhere into memory of its own."""
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
    """The slot of a batch and the rest of it: everything that crosses from a worker."""

    slots: int
    worker: int
    slot: int
    size_px: int
    labels: NDArray[np.int64]
    jitter: list[Any]

    def batch(self) -> Collated:
        """The batch, with its images in their slot."""
        images = _known[self.slots].place(self.worker, self.slot, len(self.labels), self.size_px)
        return _collated(images, self.labels, self.jitter)

    def pin_memory(self) -> Collated:
        """The batch in page-locked memory, which can be copied to a GPU while other work goes on. The loader's thread
        calls this as soon as the batch arrives."""
        return tuple(tensor.pin_memory() for tensor in self.batch())


def _collated(images: NDArray[np.uint8], labels: NDArray[np.int64], jitter: list[Any]) -> Collated:
    # (samples, size, size, 3) to (samples, 3, size, size): a change of strides, no copy
    collated = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    return (*collated, jitter_rows(jitter)) if jitter else collated
