"""Composer's trainer with a training step that reads nothing back from the device.

Composer reads the loss, the number of images and the time of each batch back from the device, six values. Each wait
leaves the device idle until the next batch's kernels are launched: on an H100 it costs a fifth of a step of 128 images
(`benchmarks/trainer.py`). The private methods that do it are replaced here; `tests/train/test_loop.py` compares the
steps with those of Composer.
"""

import contextlib
import datetime
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from composer import Trainer
from composer.core import Event
from composer.core.precision import get_precision_context
from composer.distributed import ddp_sync_context
from composer.utils import dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

TOTAL_LOSS = "loss/train/total"


class Loop(Trainer):
    """A Composer trainer whose `state.total_loss_dict` holds the mean loss over the ranks as a tensor (1,) of the
    device. All ranks must have the same number of images in a batch."""

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        """The images of a step over all ranks, from this rank's alone; and the time as this rank's clock has it."""
        ranks = dist.get_world_size()
        return int(num_samples) * ranks, num_tokens * ranks, batch_time

    def _train_batch(self, use_grad_scaling: bool) -> Any:
        """Take an optimizer step. Composer's loop reads and logs the losses that this returns, which are none."""
        state, scaler, data = self.state, self.state.scaler, self._train_data_spec
        size = state.device_train_microbatch_size
        assert scaler is not None
        assert data is not None
        assert size is not None
        parts: Sequence[Any] = data.split_batch(state.batch, size)
        losses = {TOTAL_LOSS: state.device.tensor_to_device(torch.zeros(1))}
        closed = self._use_closures()
        if not closed:
            self._train_microbatches(parts, losses)
        for optimizer in state.optimizers:
            step = partial(scaler.step, optimizer) if use_grad_scaling else optimizer.step
            if closed:
                step(closure=lambda loss_dict=losses, **kwargs: self._train_microbatches(parts, loss_dict, **kwargs))
            else:
                step()
        if (ranks := dist.get_world_size()) > 1:
            dist.all_reduce(losses[TOTAL_LOSS])
            losses[TOTAL_LOSS] /= ranks
        state.total_loss_dict = losses  # type: ignore[assignment] # theirs are floats, which were waited for
        self.first_train_batch_complete = True
        return None

    def _train_microbatches(
        self, microbatches: Sequence[Any], total_loss_dict: dict[str, Tensor], ddp_sync: bool = True
    ) -> Tensor:
        """Compute the gradients of a batch, part by part.

        Args:
            microbatches: the parts.
            total_loss_dict: to which the loss is added, under `TOTAL_LOSS`.
            ddp_sync: whether the gradients are averaged over the ranks.
        """
        state, whole = self.state, self.state.batch
        images = sum(len(part[0]) for part in microbatches)
        loss = total_loss_dict.setdefault(TOTAL_LOSS, state.device.tensor_to_device(torch.zeros(1)))
        model: Any = state.model
        alone = not ddp_sync and isinstance(model, DistributedDataParallel)
        with model.no_sync() if alone else contextlib.nullcontext():
            self.engine.run_event(Event.BEFORE_TRAIN_BATCH)
            for optimizer in state.optimizers:
                optimizer.zero_grad(set_to_none=True)
            scaler = state.scaler if self._use_grad_scaling(state.precision, state.scaler) else None
            for number, state.batch in enumerate(microbatches, 1):
                share = len(state.batch[0]) / images
                loss += self._train_part(scaler, share, is_last=number == len(microbatches))
            state.batch = whole
            if scaler:
                for optimizer in state.optimizers:
                    scaler.unscale_(optimizer)
            self.engine.run_event(Event.AFTER_TRAIN_BATCH)
        return loss

    def _train_part(self, scaler: Any, share: float, *, is_last: bool) -> Tensor:
        """Add the gradients of `state.batch`, a microbatch.

        Args:
            scaler: of the gradients, None for none.
            share: of the batch's images.
            is_last: whether the ranks average their gradients now.

        Returns:
            The loss times the share, detached.
        """
        state, event = self.state, self.engine.run_event
        precision = partial(get_precision_context, state.precision, state.precision_config)
        distributed = isinstance(state.model, DistributedDataParallel)
        with ddp_sync_context(state, is_last, self._ddp_sync_strategy) if distributed else contextlib.nullcontext():
            event(Event.BEFORE_FORWARD)
            with precision():
                state.outputs = state.model(state.batch)
            event(Event.AFTER_FORWARD)
            event(Event.BEFORE_LOSS)
            with precision():
                state.loss = self._original_model.loss(state.outputs, state.batch)
            event(Event.AFTER_LOSS)
            event(Event.BEFORE_BACKWARD)
            assert isinstance(state.loss, Tensor)
            loss = state.loss
            (scaler.scale(loss) * share if scaler else loss * share).backward()
            event(Event.AFTER_BACKWARD)
        return loss.detach() * share
