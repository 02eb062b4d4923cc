"""What a checkpoint carries beside Composer's own state."""

from pathlib import Path
from typing import Any

import torch

from imagenet_mds_train.checkpoints.saver import Checkpoints


def load_payload(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint that this program wrote.

    Returns:
        The payload (configuration, classes, identity) and the model's tensors by their names.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    callbacks = checkpoint["state"]["callbacks"]
    payload: dict[str, Any] = callbacks[Checkpoints.__qualname__]["payload"]
    return payload, checkpoint["state"]["model"]
