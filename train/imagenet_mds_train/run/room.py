"""How much room checkpoints take, estimated before there is one. Imports no torch."""

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.checkpoints.store import LEAST_KEPT
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.folder import RunFolder

_PARAMETERS = {10: 4_905_792, 18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}
"""Parameters of each ResNet without its last layer, by depth; a test compares them with torchvision's."""
_FEATURES = {10: 512, 18: 512, 34: 512}
"""Inputs of the last layer; 2,048 where it is not named."""
_BESIDE_BYTES = 2 << 20
"""BatchNorm's statistics, random states and the configuration."""


def checkpoint_bytes(config: TrainConfig, classes: int) -> int:
    """The size of a checkpoint: weights, momentum and, with EMA, the average, of 4 bytes each."""
    depth = config.model.depth
    parameters = _PARAMETERS[depth] + (_FEATURES.get(depth, 2048) + 1) * classes
    copies = 2 + (config.algorithms.ema is not None)
    return 4 * copies * parameters + _BESIDE_BYTES


def refuse_full_disk(config: TrainConfig, classes: int, run: RunFolder, batches: int) -> None:
    """Refuse a start on a disk without room for the checkpoints that are kept and the one that is being written.

    Args:
        config: the run's.
        classes: outputs of the network.
        run: the run's folder.
        batches: of the whole run, which may make fewer checkpoints than it may keep.

    Raises:
        UserError: there is not enough.
    """
    every = config.checkpoint.every_batches
    saved = config.schedule.epochs + (batches // every if every else 0)
    wanted = min(max(config.checkpoint.keep, LEAST_KEPT), saved) + 1
    there = len(run.checkpoints.names())
    size_bytes = checkpoint_bytes(config, classes)
    needed, free = max(wanted - there, 1) * size_bytes, LocalStorage(run.path).free_bytes()
    if needed > free:
        raise UserError(
            f"{run.path} needs {needed / 1e9:,.2f} GB for checkpoints of {size_bytes / 1e9:,.2f} GB, and its disk has "
            f"{free / 1e9:,.2f} GB free: make room, pass another --save, or keep fewer with checkpoint.keep"
        )
