"""Which node of a run this machine is: as options say, or the variables of torchrun or SLURM. Imports no torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from imagenet_mds.errors import UserError
from imagenet_mds.words import counted

DEFAULT_PORT = 29_500
"""That of torch."""

_SLURM_PORTS = range(20_000, 30_000)
"""Below those that Linux gives to outgoing connections."""


@dataclass(frozen=True)
class Nodes:
    """The machines of a run.

    count: how many they are, at least two.
    rank: the number of this one. Node 0 keeps the run: its lock, log, checkpoints and result.
    host, port: where the launcher of node 0 listens.
    """

    count: int
    rank: int
    host: str
    port: int

    @classmethod
    def given(cls, count: int | None, rank: int | None, master: str | None) -> "Nodes | None":
        """The machines that the options --nodes, --node-rank and --master name, or else the environment; None for this
        machine alone.

        Raises:
            UserError: they do not fit together.
        """
        if count is None and rank is None and master is None:
            return _of_torchrun(os.environ) or _of_slurm(os.environ)
        if count is None or (count > 1 and (rank is None or master is None)):
            raise UserError("several machines need all of --nodes, --node-rank and --master HOST:PORT")
        if count == 1:
            return None
        assert rank is not None
        assert master is not None
        if rank >= count:
            raise UserError(f"--node-rank {rank}: nodes are counted from 0, so that the last of {count} is {count - 1}")
        return cls(count, rank, *_address(master))

    def ranks_here(self, ranks: int) -> int:
        """The ranks of each node.

        Args:
            ranks: of the whole run.

        Raises:
            UserError: they do not divide evenly.
        """
        if ranks % self.count:
            raise UserError(
                f"{counted(ranks, 'rank')} cannot be dealt evenly to {self.count} nodes: --ranks counts the GPUs of "
                f"all nodes together"
            )
        return ranks // self.count


def _address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?", text)
    port = int(match[3] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 1 << 16:
        raise UserError(f"--master {text!r}: pass HOST or HOST:PORT, the address of node 0")
    return match[1] or match[2], port


def _of_torchrun(variables: Mapping[str, str]) -> Nodes | None:
    if "TORCHELASTIC_RUN_ID" not in variables:
        return None
    if variables.get("LOCAL_WORLD_SIZE") != "1":
        raise UserError("torchrun is to start `train` once on each node, which starts the ranks: --nproc-per-node 1")
    count, rank = (int(variables[name]) for name in ("GROUP_WORLD_SIZE", "GROUP_RANK"))
    # torchrun listens on the port itself.
    port = int(variables["MASTER_PORT"]) + 1
    return Nodes(count, rank, variables["MASTER_ADDR"], port) if count > 1 else None


def _of_slurm(variables: Mapping[str, str]) -> Nodes | None:
    """The nodes of a job step, which srun starts; the shell of a job has one node whatever the job has."""
    count = int(variables.get("SLURM_STEP_NUM_NODES", "1"))
    if count == 1 or "SLURM_STEP_NODELIST" not in variables:
        return None
    if variables.get("SLURM_STEP_NUM_TASKS") != str(count):
        raise UserError("srun is to start `train` once on each node, which starts the ranks: --ntasks-per-node=1")
    job = int(variables.get("SLURM_JOB_ID", "0"))
    port = _SLURM_PORTS[job % len(_SLURM_PORTS)]
    return Nodes(count, int(variables["SLURM_NODEID"]), first_host(variables["SLURM_STEP_NODELIST"]), port)


def first_host(node_list: str) -> str:
    """The first host of a list as SLURM writes it, for example `gpu01` of `gpu[01-03,07],big2`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0] if first else node_list)
