"""The largest microbatch that fits the GPU, found by training one of each size, the largest first.

It runs in a process of its own, before the ranks start, so that they begin with an untouched GPU.
"""

import json
import sys

import torch
from composer.utils import reproducibility
from torch import Tensor

from imagenet_mds.errors import CommandError
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.build import build_model, precision_on
from imagenet_mds_train.model.memory import checkpoint_activations
from imagenet_mds_train.recipe.optimizer import build_optimizer
from imagenet_mds_train.run.microbatch import largest_that_fits

RESERVE_BYTES = 1 << 30
RESERVE_SHARE = 0.05
"""What has to stay free of a GPU, in bytes and as a share of its memory: for NCCL and the gradient buckets of several
ranks, an average of the weights, and what the allocator cannot join."""

_BATCHES_ON_DEVICE = 4
"""The batch that is trained on, the next one, and the two copies from which MixUp makes the one after that."""


def main() -> None:
    """Print the largest microbatch size as the last line: `python -c ... {"config": ..., "classes": N}`."""
    given = json.loads(sys.argv[1])
    try:
        config = parse_config(given["config"], "the launcher")
        print(largest_that_fits(config.device_batch_size, MicrobatchTrial(config, given["classes"]).fits), flush=True)
    except CommandError as error:
        print(f"imagenet-mds: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)


class MicrobatchTrial:
    """A network on the first GPU that trains on random images of the run's largest size.

    Args:
        config: the run's.
        classes: outputs of the network.
    """

    def __init__(self, config: TrainConfig, classes: int) -> None:
        torch.cuda.set_device(0)
        if config.system.deterministic:
            reproducibility.configure_deterministic_mode()
        self._config, self._classes = config, classes
        self._precision = precision_on("cuda", config)
        self._model = build_model(config, classes).cuda()
        if config.system.activation_checkpointing:
            checkpoint_activations(self._model.network)
        self._optimizer = build_optimizer(config.optimizer, self._model, config.lr)

    def fits(self, size: int) -> bool:
        """Whether a step with a microbatch of this many images leaves the reserve of the GPU free."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        free, total = torch.cuda.mem_get_info()
        taken_by_others = total - free - torch.cuda.memory_reserved()
        try:
            self._step(size)
        except torch.OutOfMemoryError:
            return False
        finally:
            self._optimizer.zero_grad()
        needed = taken_by_others + torch.cuda.max_memory_reserved()
        return needed <= total * (1 - RESERVE_SHARE) - RESERVE_BYTES

    def _step(self, size: int) -> None:
        """Train on the first microbatch of a batch, with as many batches on the device as in training."""
        px, dtype = self._config.augment.size_px, torch.float32 if self._config.algorithms.mixup else torch.uint8
        batches: list[Tensor] = [
            torch.zeros((self._config.device_batch_size, 3, px, px), dtype=dtype, device="cuda")
            for _ in range(_BATCHES_ON_DEVICE)
        ]
        labels = torch.zeros((size, self._classes), device="cuda")
        labels[:, 0] = 1
        images = batches[0][:size].contiguous(memory_format=torch.channels_last)
        half = {"fp32": None, "amp_fp16": torch.float16, "amp_bf16": torch.bfloat16}[self._precision]
        with torch.autocast("cuda", dtype=half, enabled=half is not None):
            loss = self._model.loss(self._model((images, labels)), (images, labels))
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        self._optimizer.step()
