"""torchvision's ResNet as a pure function of its depth and classes, and what recipes change in it."""

import math

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import stochastic_depth

_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    10: (BasicBlock, [1, 1, 1, 1]),
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too: logits in 16 bits round the loss."""

    def forward(self, features: Tensor) -> Tensor:
        """Outputs (samples, outputs), float32."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def resnet(depth: int, classes: int) -> ResNet:
    """torchvision's ResNet: He initialisation, and zero in the last BatchNorm of each residual branch (Goyal et al.
    2017).

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        classes: outputs.
    """
    block, layers = _BLOCKS[depth]
    network = ResNet(block, layers, num_classes=classes, zero_init_residual=True)
    last: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call] # torch's
        Float32Linear, network.fc.in_features, classes
    )
    last.weight, last.bias = network.fc.weight, network.fc.bias
    network.fc = last
    return network


def start_at_even_odds(network: ResNet) -> None:
    """Start each output's bias at minus the logarithm of their number, so that each sigmoid starts at 1 / N: binary
    cross entropy would spend its first steps on that."""
    nn.init.constant_(network.fc.bias, -math.log(network.fc.out_features))


def add_stochastic_depth(network: ResNet, drop_rate: float) -> None:
    """Leave residual branches out in training, sample by sample: branch i of n with i / n times `drop_rate`.

    It acts on what leaves the last BatchNorm of a branch, so the names of the modules stay.
    """
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for number, block in enumerate(blocks, 1):
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        last.register_forward_hook(_Drop(number / len(blocks) * drop_rate))


class _Drop:
    """A hook that drops samples of a module's output in training."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        dropped: Tensor = stochastic_depth(output, self.rate, "row", module.training)
        return dropped
