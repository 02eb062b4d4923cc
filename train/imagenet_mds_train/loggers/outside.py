"""Loggers of other programs, through Composer's: Weights & Biases and TensorBoard. The run's own log is the truth."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from composer.loggers import LoggerDestination, TensorboardLogger, WandBLogger

from imagenet_mds.errors import UserError
from imagenet_mds.storage.atomic import write_json


def outside_loggers(
    wandb: dict[str, Any] | None, *, tensorboard: bool, folder: Path, settings: dict[str, Any], group: str | None = None
) -> list[LoggerDestination]:
    """Create the configured loggers for the first rank.

    Args:
        wandb: project, entity and mode of Weights & Biases; None for none.
        tensorboard: whether to write TensorBoard's files.
        folder: of the run, in which they write.
        settings: the run's configuration, which they show.
        group: of runs that belong together.

    Raises:
        UserError: one of them is not installed.
    """
    loggers: list[LoggerDestination] = []
    if wandb:
        # It prints on the screen otherwise.
        os.environ.setdefault("WANDB_SILENT", "true")
        known = {"id": _id_of(folder), "resume": "allow", "dir": str(folder), "config": settings}
        loggers.append(WandBLogger(group=group, name=folder.name, init_kwargs=known | wandb))
    if tensorboard:
        try:
            loggers.append(TensorboardLogger(log_dir=str(folder / "tensorboard")))
        except ImportError:
            raise UserError(
                "logging.tensorboard needs tensorboard: install it with pip install 'imagenet-mds[tensorboard]'"
            ) from None
    return loggers


def _id_of(folder: Path) -> str:
    """The id of the run there, the same for all starts."""
    file = folder / "wandb.json"
    if not file.exists():
        write_json(file, {"id": secrets.token_hex(8)})
    found: str = json.loads(file.read_bytes())["id"]
    return found
