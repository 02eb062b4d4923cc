"""What a checkpoint carries beside Composer's state: enough to rebuild the model without the folder of its run.

A checkpoint is a dictionary with `state` (Composer's), `rng` (the random state of every rank) and the payload under
`imagenet_mds`, which has `format`, `config`, `classes` and `identity`.
"""

import _codecs
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from imagenet_mds.errors import UserError

PAYLOAD_KEY = "imagenet_mds"
FORMAT = 1

_make_array = np.empty(0).__reduce__()[0]
"""NumPy's, whose module is another one in NumPy 1 and 2."""

_HARMLESS: list[Any] = [
    timedelta,
    TorchVersion,
    _codecs.encode,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    (_make_array, "numpy._core.multiarray._reconstruct"),
    (_make_array, "numpy.core.multiarray._reconstruct"),
]
"""What a checkpoint has beside tensors and plain values: Composer's times, the state of NumPy's generator. None of it
runs code of the file."""


def make_payload(config: dict[str, Any], classes: list[str], identity: dict[str, Any]) -> dict[str, Any]:
    """The payload of a run's checkpoints.

    Args:
        config: the configuration, as plain values.
        classes: the classes in the order of their numbers.
        identity: what must not change within the run.
    """
    return {"format": FORMAT, "config": config, "classes": classes, "identity": identity}


def load_payload(path: Path, *, averaged: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint that this program wrote.

    Args:
        path: the file.
        averaged: whether to take the average of the weights where there is one, or those that training goes on with.

    Returns:
        The payload, and the model's tensors by name.

    Raises:
        UserError: it is not such a checkpoint, or a later version wrote it.
    """
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is no checkpoint but weights alone: pass the run that it is from")
    checkpoint = load_tensors(path)
    try:
        payload: dict[str, Any] = checkpoint.get(PAYLOAD_KEY) or _unnumbered(checkpoint)
        weights: dict[str, Any] = checkpoint["state"]["model"]
        algorithms = dict(checkpoint["state"].get("algorithms", ()))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a checkpoint of imagenet-mds") from None
    if payload["format"] > FORMAT:
        raise UserError(f"{path} was written by a later version of imagenet-mds: use that version")
    if not averaged:
        weights = weights | _training_weights(algorithms)
    return payload, weights


def _training_weights(algorithms: dict[str, Any]) -> dict[str, Any]:
    """The weights that an average replaced in a checkpoint's model, none where there is no average."""
    for name in ("EMA", "SWA"):
        state = algorithms.get(name)
        if state and state["ema_started"] and state["ema_weights_active"]:
            tensors = state["ema_model"]["named_parameters_dict"] | state["ema_model"]["named_buffers_dict"]
            return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {}


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a file that `torch.save` wrote, without running code that it may hold.

    Raises:
        UserError: it is not such a file, or not a dictionary.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is gone: a run that goes on has replaced it, so run the same command again") from None
    except Exception as error:  # torch and pickle raise many kinds of errors on a file that is not a checkpoint
        raise UserError(f"{path} cannot be read as tensors of torch ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} has {type(values).__name__} and no tensors by name")
    return values


def _unnumbered(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The payload of a checkpoint from before formats were numbered: the state of a callback."""
    payload: dict[str, Any] = checkpoint["state"]["callbacks"]["Checkpoints"]["payload"]
    return {"format": 0} | payload
