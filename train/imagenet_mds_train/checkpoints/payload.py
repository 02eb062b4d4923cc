"""What a checkpoint carries beside Composer's state: enough to rebuild the model without the folder of its run.

A checkpoint is a dictionary with `state` (Composer's), `rng` (the random state of every rank) and the payload under
`imagenet_mds`, which has `format`, `config`, `classes` and `identity`.
"""

from pathlib import Path
from typing import Any

import torch

from imagenet_mds.errors import UserError

PAYLOAD_KEY = "imagenet_mds"
FORMAT = 1


def make_payload(config: dict[str, Any], classes: list[str], identity: dict[str, Any]) -> dict[str, Any]:
    """The payload of a run's checkpoints.

    Args:
        config: the configuration, as plain values.
        classes: the classes in the order of their numbers.
        identity: what must not change within the run.
    """
    return {"format": FORMAT, "config": config, "classes": classes, "identity": identity}


def load_payload(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint that this program wrote.

    Returns:
        The payload, and the model's tensors by name.

    Raises:
        UserError: it is not such a checkpoint, or a later version wrote it.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        payload: dict[str, Any] = checkpoint.get(PAYLOAD_KEY) or _unnumbered(checkpoint)
        weights: dict[str, Any] = checkpoint["state"]["model"]
    except FileNotFoundError:
        raise UserError(f"{path} is gone: a run that goes on has replaced it, so run the same command again") from None
    except Exception as error:  # torch and pickle raise many kinds of errors on a file that is not a checkpoint
        raise UserError(f"{path} is not a checkpoint of imagenet-mds ({type(error).__name__})") from None
    if payload["format"] > FORMAT:
        raise UserError(f"{path} was written by a later version of imagenet-mds: use that version")
    return payload, weights


def _unnumbered(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The payload of a checkpoint from before formats were numbered: the state of a callback."""
    payload: dict[str, Any] = checkpoint["state"]["callbacks"]["Checkpoints"]["payload"]
    return {"format": 0} | payload
