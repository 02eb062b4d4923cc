"""The optimizer over parameter groups chosen by module type."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from imagenet_mds_train.config.schema import OptimizerConfig


def parameter_groups(network: nn.Module, *, decay_norm_and_bias: bool, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those with and without weight decay, by the type of their module, never by name.

    Returns:
        Groups as torch's optimizers take them; every parameter is in exactly one.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            exempt = not decay_norm_and_bias and (isinstance(module, norms) or name == "bias")
            (plain if exempt else decayed).append(parameter)
    groups: Sequence[tuple[list[nn.Parameter], float]] = ((decayed, weight_decay), (plain, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.SGD:
    """Build SGD over the network's parameter groups."""
    groups = parameter_groups(network, decay_norm_and_bias=config.decay_norm_and_bias, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
