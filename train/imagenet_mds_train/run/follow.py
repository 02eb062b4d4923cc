"""The other nodes of a run on several machines: start ranks as node 0 says, and keep nothing of the run but logs.

    FOLDER/NAME/node<N>/job.json      what the ranks of node N's last start do
    FOLDER/NAME/node<N>/rank<N>.log   their output
    FOLDER/NAME/node<N>/start.part    what they start from, while they run

Imports no torch.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from imagenet_mds.errors import EXIT_STOPPED, CommandError, UserError
from imagenet_mds.fingerprint import differences
from imagenet_mds.process.signals import collected_stop_signals
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.nodes.follower import Follower, Over
from imagenet_mds_train.nodes.peers import Peers
from imagenet_mds_train.nodes.wire import Interrupted
from imagenet_mds_train.run.fit import device_of
from imagenet_mds_train.run.job import RankJob, SplitJob
from imagenet_mds_train.run.launch import Ended, Limits, launch
from imagenet_mds_train.run.microbatch import AUTO, with_microbatch_size
from imagenet_mds_train.run.start import THREADS_KEY, Start


class Follow:
    """This node's part of a run, over all its starts.

    Args:
        start: prepared with this machine's dataset, and a folder of this node.
        run_name: the name of the run.
    """

    def __init__(self, start: Start, run_name: str) -> None:
        assert start.nodes is not None
        self._start, self._nodes, self._run_name = start, start.nodes, run_name
        self._file = start.run.path / "start.part"
        self.saved_batch = 0
        """Finished batches where the last start of the ranks began."""

    def once(self) -> Ended:
        """Wait for node 0, start the ranks of this node, and wait for them.

        Raises:
            UserError: the run of node 0 is another one, or cannot run here. Node 0 is told.
            WorldError: node 0 does not answer.
            OSError: the folder or the cache cannot be written.
        """
        start = self._start
        try:
            with collected_stop_signals(lambda: None) as requests:
                met = self._meet(lambda: requests.count > 0)
            if isinstance(met, Over):
                return Ended(met.status, met.words)
            job, peers = met
            return launch(
                start.ranks_here,
                start.run.path / "job.json",
                start.run.path,
                threads=job.identity.get(THREADS_KEY),
                limits=Limits.of(start.config.system),
                may_continue=lambda: True,  # node 0 knows
                peers=peers,
            )
        except Interrupted:
            return Ended(EXIT_STOPPED)
        finally:
            self._file.unlink(missing_ok=True)

    def _meet(self, is_interrupted: Callable[[], bool]) -> tuple[RankJob, Peers] | Over:
        follower = Follower(self._nodes, self._run_name, self._start.config.ranks, is_interrupted)
        orders = follower.orders(self._file)
        if isinstance(orders, Over):
            return orders
        self.saved_batch = orders.values["batch"]
        try:
            job = self._job(RankJob.of(orders.values["job"]), orders.file)
            job.write(self._start.run.path / "job.json")
        except (CommandError, OSError) as error:
            follower.refuse(str(error))
            raise
        met = follower.ready()
        return met if isinstance(met, Over) else (job, met)

    def _job(self, given: RankJob, file: Path | None) -> RankJob:
        """The job of node 0 with this machine's dataset and files.

        Raises:
            UserError: it is not the run that was prepared here, or its ranks would compute on something else.
        """
        start, here = self._start, self._start.config
        config = parse_config(given.config, "the job of node 0")
        if here.system.device_microbatch_size == AUTO and not isinstance(config.system.device_microbatch_size, str):
            here = with_microbatch_size(here, config.system.device_microbatch_size)
        kept = {"dataset": given.identity["dataset"], "recipe": given.identity["recipe"]}
        own = {"dataset": start.identity["dataset"], "recipe": here.what_is_fixed()}
        if found := differences(kept, own, ("on node 0", f"on node {self._nodes.rank}")):
            raise UserError(
                f"it would train something else than node 0: {'; '.join(found)}. Run the same command on all nodes, "
                f"each with a copy of the same dataset"
            )
        if (device := device_of(here)) != given.device:
            raise UserError(f"node 0 computes on the {given.device}, and node {self._nodes.rank} on the {device}")
        for split, shards in start.shards():
            split.shard_cache.prepare(shards)
        return replace(
            given,
            run_folder=str(start.run.path),
            train=SplitJob.of(start.train.shard_cache, given.train.samples),
            val=SplitJob.of(start.val.shard_cache, given.val.samples) if start.val and given.val else None,
            checkpoint=str(file) if given.checkpoint else None,
            weights=str(file) if given.weights else None,
            mirror=None,
        )
