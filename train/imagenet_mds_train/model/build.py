"""The one place that builds a model: network, surgery, classifier.

Training, evaluation and whatever else needs the network of a configuration take it from here, so that weights always
meet the modules they were trained in.
"""

from typing import Literal

import torch
from composer.algorithms.blurpool import apply_blurpool
from torch import nn

from imagenet_mds.errors import UserError
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.classifier import Classifier
from imagenet_mds_train.model.resnet import add_stochastic_depth, resnet, start_at_even_odds

Precision = Literal["fp32", "amp_fp16", "amp_bf16"]

_BF16_CAPABILITY = (8, 0)


def build_model(config: TrainConfig, classes: int) -> Classifier:
    """The model of a configuration, freshly initialised.

    Args:
        config: the run's.
        classes: outputs.
    """
    algorithms, network = config.algorithms, resnet(config.model.depth, classes)
    if config.loss == "binary_cross_entropy":
        start_at_even_odds(network)
    if algorithms.stochastic_depth:
        add_stochastic_depth(network, algorithms.stochastic_depth.drop_rate)
    if algorithms.blurpool:
        apply_blurpool(network, replace_maxpools=algorithms.blurpool == "all")
    if algorithms.channels_last:
        network.to(memory_format=torch.channels_last)
    return Classifier(network, classes, config.loss)


def compile_network(network: nn.Module, sizes: int, backend: str = "inductor") -> None:
    """Compile a network in place, so that its names stay. Each size of images is compiled by itself.

    Args:
        network: of a `Classifier`.
        sizes: how many sizes it will see in training, beside that of validation.
        backend: torch's.
    """
    # In training and in evaluation; torch's default gives up after eight, and runs the rest uncompiled.
    torch._dynamo.config.recompile_limit = 2 * (sizes + 1) + 8
    network.compile(dynamic=False, backend=backend)  # type: ignore[no-untyped-call] # torch's


def precision_on(device_type: str, config: TrainConfig) -> Precision:
    """The precision to compute in.

    Args:
        device_type: as torch names it, `cuda` or `cpu`.
        config: the run's. `auto` is fp16 on a GPU.

    Raises:
        UserError: bf16 is asked for on a GPU without it. A T4 emulates it slowly, and claims to support it.
    """
    if config.system.precision == "auto":
        return "amp_fp16" if device_type == "cuda" else "fp32"
    if config.system.precision == "amp_bf16" and device_type == "cuda":
        capability = torch.cuda.get_device_capability()
        if capability < _BF16_CAPABILITY:
            raise UserError(
                f"{torch.cuda.get_device_name()} has no bf16 (compute capability {capability[0]}.{capability[1]}, and "
                f"it needs 8.0): pass system.precision=amp_fp16"
            )
    return config.system.precision
