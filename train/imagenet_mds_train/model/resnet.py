"""torchvision's ResNet as a pure function of its depth and classes."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    10: (BasicBlock, [1, 1, 1, 1]),
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def resnet(depth: int, classes: int) -> nn.Module:
    """torchvision's ResNet: He initialisation, and zero in the last BatchNorm of each residual branch (Goyal et al.
    2017).

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        classes: outputs.
    """
    block, layers = _BLOCKS[depth]
    network: nn.Module = ResNet(block, layers, num_classes=classes, zero_init_residual=True)
    return network
