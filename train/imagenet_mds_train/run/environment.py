"""The environment of ranks: their threads, how they find each other, where their libraries keep things.

Imports no torch.
"""

import os
import socket

from imagenet_mds.dataset.cache_folder import default_cache
from imagenet_mds.process.processors import usable_processors

THREADS_VARIABLE = "OMP_NUM_THREADS"


def threads_per_rank(ranks: int, before: int | None = None) -> int:
    """Threads of each rank: as `OMP_NUM_THREADS` says, or as `before`, or an equal share of the processors."""
    asked = os.environ.get(THREADS_VARIABLE, "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return before or max(1, usable_processors() // ranks)


def lasting_defaults() -> dict[str, str]:
    """What the ranks' libraries should do unless the user's environment says otherwise: compiled kernels are kept
    beyond the attempt, whose temporary folder is removed, and GPU memory grows without holes as image sizes change."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(default_cache() / "torchinductor"),
        "TRITON_CACHE_DIR": str(default_cache() / "triton"),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


def rendezvous(ranks: int) -> dict[str, str]:
    """The environment variables by which ranks of this machine find each other. The port is free now; if
    another program takes it first, another port is tried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "PYTHONUNBUFFERED": "1",
    }
