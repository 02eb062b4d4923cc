"""`imagenet-mds train` on several machines: node 0 has the others told how it ends, the others follow it."""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import typer

from imagenet_mds.cli.starting import check_data, print_given_up, print_notes
from imagenet_mds.cli.tables import print_line, print_note
from imagenet_mds.errors import EXIT_DONE, EXIT_STOPPED, CommandError, WorldError

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Dataset
    from imagenet_mds_train.config.schema import TrainConfig
    from imagenet_mds_train.nodes.leader import Leader
    from imagenet_mds_train.nodes.place import Nodes
    from imagenet_mds_train.run.folder import RunFolder
    from imagenet_mds_train.run.launch import Ended
    from imagenet_mds_train.run.until_done import Restart


@contextlib.contextmanager
def leading(nodes: "Nodes | None") -> "Iterator[Leader | None]":
    """Listen for the other nodes, and tell them how the run ends if it ends before they take part in it.

    Args:
        nodes: the machines, of which this is node 0; None for this machine alone.
    """
    if nodes is None:
        yield None
        return
    from imagenet_mds_train.nodes.leader import Leader

    with Leader(nodes, partial(print_line, to_stderr=True)) as leader:
        try:
            yield leader
        except CommandError as error:
            leader.dismiss(error.exit_status, str(error))
            raise
        except typer.Exit as end:
            leader.dismiss(end.exit_code, "node 0 has ended")
            raise
        leader.dismiss(EXIT_DONE, "the run is finished")


def follow(config: "TrainConfig", dataset: "Dataset", run: "RunFolder", nodes: "Nodes", *, until_done: bool) -> int:
    """Take part in a run as another node than 0; return the exit status.

    Args:
        config: the run's, as this node was told.
        dataset: on this machine.
        run: the run's folder on this machine, in which the node has a folder of its own.
        nodes: the machines.
        until_done: whether to start again after a failure.
    """
    from imagenet_mds_train.nodes.follower import Follower
    from imagenet_mds_train.run.folder import RunFolder
    from imagenet_mds_train.run.follow import Follow
    from imagenet_mds_train.run.launch import Ended
    from imagenet_mds_train.run.start import Start
    from imagenet_mds_train.run.until_done import run_until_done

    folder = RunFolder(run.path / f"node{nodes.rank}")
    with contextlib.ExitStack() as stack:
        try:
            start = Start.prepare(config, dataset, folder, nodes=nodes)
            print_notes(start.warnings)
            stack.enter_context(folder.lock())
            check_data(start)
        except CommandError as error:
            Follower(nodes, run.path.name, config.ranks).decline(error.exit_status, str(error))
            raise
        part = Follow(start, run.path.name)
        where = f"{nodes.host}:{nodes.port}"
        print(f"node {nodes.rank} of {nodes.count}: waiting for node 0 at {where} ...", file=sys.stderr, flush=True)

        def once() -> Ended:
            try:
                return part.once()
            except WorldError as error:
                print_line(f"imagenet-mds: {error}", to_stderr=True)
                return Ended(error.exit_status, str(error))

        if not until_done:
            return _conclude(once(), nodes)
        ended = run_until_done(once, lambda: part.saved_batch, _say_restart, print_given_up)
        return _conclude(ended, nodes)


def _say_restart(ended: "Ended", restart: "Restart") -> None:
    print_note(f"joining again in {restart.pause_seconds:g} s: {ended.reason}")


def _conclude(ended: "Ended", nodes: "Nodes") -> int:
    """Print how this node's part ended; return the exit status."""
    which = f"node {nodes.rank} of {nodes.count}"
    if ended.status == EXIT_DONE:
        print(f"{which}: {ended.reason or 'done'}. Node 0 has the result")
    elif ended.status == EXIT_STOPPED:
        print(f"{which} is stopped: run the same command on all nodes to continue", file=sys.stderr)
    else:
        print_line(f"imagenet-mds: {which}: {ended.reason}", to_stderr=True)
    return ended.status
