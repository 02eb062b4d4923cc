"""The one place that builds a model: network, surgery, classifier.

Training, evaluation and whatever else needs the network of a configuration take it from here, so that weights always
meet the modules they were trained in.
"""

from typing import Literal

import torch
from composer.algorithms.blurpool import apply_blurpool

from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.model.classifier import Classifier
from imagenet_mds_train.model.resnet import add_stochastic_depth, resnet, start_at_even_odds

Precision = Literal["fp32", "amp_fp16", "amp_bf16"]


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


def precision_on(device_type: str, config: TrainConfig) -> Precision:
    """The precision to compute in.

    Args:
        device_type: as torch names it, `cuda` or `cpu`.
        config: the run's. `auto` is fp16 on a GPU: a T4 only emulates bf16, although it claims to support it.
    """
    if config.system.precision == "auto":
        return "amp_fp16" if device_type == "cuda" else "fp32"
    return config.system.precision
