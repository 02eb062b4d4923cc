"""Node 0 of a run on several machines: has the other nodes start their ranks. Imports no torch."""

from dataclasses import asdict
from pathlib import Path

from imagenet_mds.process.signals import collected_stop_signals
from imagenet_mds_train.nodes.leader import Leader
from imagenet_mds_train.nodes.peers import Peers
from imagenet_mds_train.run.job import RankJob


def lead(leader: Leader, job: RankJob, batch: int) -> Peers:
    """Wait for all nodes, and give them the job and the file that its ranks start from.

    Args:
        leader: listens for the others.
        job: of the ranks.
        batch: finished batches.

    Raises:
        UserError: a node refuses the job.
        WorldError: a node does not come, or is lost.
        Interrupted: this process is to stop.
    """
    file = job.checkpoint or job.weights
    with collected_stop_signals(lambda: None) as requests:
        return leader.meet(
            job.run_name,
            job.config["ranks"],
            {"job": asdict(job), "batch": batch},
            Path(file) if file else None,
            lambda: requests.count > 0,
        )
