"""Activation checkpointing: what the residual blocks keep for the backward pass is computed again, which takes a third
more time and half the memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import BasicBlock, Bottleneck

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def checkpoint_activations(network: nn.Module) -> None:
    """Keep only the input of each residual block, and compute the rest again in the backward pass.

    The statistics of BatchNorm move once, as without it: torch's checkpointing alone would move them twice.
    """
    for block in network.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            block.forward = partial(_forward, block, block.forward)


def _forward(block: nn.Module, forward: Any, *inputs: Any) -> Any:
    if not block.training:
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _with_still_statistics(block)


@contextmanager
def _with_still_statistics(block: nn.Module) -> Iterator[None]:
    """The statistics of a block's BatchNorms stay as they are meanwhile."""
    norms = [module for module in block.modules() if isinstance(module, _NORMS)]
    before = [(norm, name, tensor) for norm in norms for name, tensor in norm.named_buffers(recurse=False)]
    for norm, name, tensor in before:
        setattr(norm, name, tensor.clone())  # which moves in its place
    try:
        yield
    finally:
        for norm, name, tensor in before:
            setattr(norm, name, tensor)
