"""Another node than 0, up to the start of its ranks; see `meeting.py`. Imports no torch."""

import contextlib
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.errors import WorldError
from imagenet_mds_train.nodes.meeting import (
    DISMISSAL_SECONDS,
    FORMAT,
    MEETING_SECONDS,
    READY_SECONDS,
    RETRY_SECONDS,
)
from imagenet_mds_train.nodes.peers import Peers
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.nodes.wire import Connection, Gone, Interrupted

_CONNECT_SECONDS = 10.0


@dataclass
class Orders:
    """What node 0 wants of a node.

    values: see `Leader.meet`.
    file: what the ranks start from, received into this machine's folder; None if nothing.
    """

    values: dict[str, Any]
    file: Path | None


@dataclass(frozen=True)
class Over:
    """Node 0 has ended the run: its exit status, and why, in a line."""

    status: int
    words: str


class Follower:
    """A node that starts its ranks when node 0 says so.

    Args:
        nodes: the machines.
        run: the name of the run.
        ranks: of the whole run.
        is_interrupted: whether this process is to stop.
        meeting_seconds: see `MEETING_SECONDS`.
    """

    def __init__(
        self,
        nodes: Nodes,
        run: str,
        ranks: int,
        is_interrupted: Callable[[], bool] = lambda: False,
        meeting_seconds: float = MEETING_SECONDS,
    ) -> None:
        self.nodes = nodes
        self._run, self._ranks = run, ranks
        self._is_interrupted = is_interrupted
        self._meeting_seconds = meeting_seconds
        self._connection: Connection | None = None

    def orders(self, file: Path) -> Orders | Over:
        """Connect to node 0 and wait for its orders.

        Args:
            file: where what it sends is kept.

        Raises:
            WorldError: node 0 does not answer.
            Interrupted: this process is to stop.
            OSError: the file cannot be written.
        """
        until = time.monotonic() + self._meeting_seconds
        while True:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(contextlib.closing(self._connected(until)))
                try:
                    orders = self._received(connection, until, file)
                except Gone as error:  # node 0 was restarted
                    if time.monotonic() > until:
                        raise WorldError(f"node 0 does not start the run: {error}") from None
                else:
                    if isinstance(orders, Orders):
                        stack.pop_all()
                        self._connection = connection
                    return orders
            time.sleep(RETRY_SECONDS)

    def _received(self, connection: Connection, until: float, file: Path) -> Orders | Over:
        connection.send(hello=self.nodes.rank, nodes=self.nodes.count, run=self._run, ranks=self._ranks, format=FORMAT)
        message = connection.receive(max(0.0, until - time.monotonic()))
        if "over" in message:
            return Over(message["over"], message["words"])
        if (size_bytes := message["size_bytes"]) is None:
            return Orders(message["orders"], None)
        connection.receive_file(file, size_bytes, READY_SECONDS)
        return Orders(message["orders"], file)

    def decline(self, status: int, words: str) -> None:
        """Tell node 0, if it is there, that this node cannot take part.

        Args:
            status: the exit status of this node.
            words: why, in a line.
        """
        with contextlib.suppress(WorldError, Gone, Interrupted):
            connection = self._connected(time.monotonic() + DISMISSAL_SECONDS)
            with contextlib.closing(connection):
                connection.send(hello=self.nodes.rank, declined={"status": status, "words": words})

    def refuse(self, why: str) -> None:
        """Tell node 0 that the orders cannot be followed here, which ends the run."""
        assert self._connection is not None
        with contextlib.suppress(Gone):
            self._connection.send(refused=why)
        self._connection.close()

    def ready(self) -> Peers | Over:
        """Wait until all nodes are ready.

        Raises:
            WorldError: node 0 is gone.
            Interrupted: this process is to stop.
        """
        assert self._connection is not None
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(contextlib.closing(self._connection))
            try:
                connection.send(ready=True)
                message = connection.receive(math.inf)
            except Gone as error:
                raise WorldError(f"node 0 is lost before the ranks start: {error}") from None
            if "over" in message:
                return Over(message["over"], message["words"])
            stack.pop_all()
        return Peers(self.nodes, self._ranks, message["go"], {0: connection})

    def _connected(self, until: float) -> Connection:
        where = f"{self.nodes.host}:{self.nodes.port}"
        while True:
            if self._is_interrupted():
                raise Interrupted
            try:
                connected = socket.create_connection((self.nodes.host, self.nodes.port), timeout=_CONNECT_SECONDS)
            except OSError as error:
                if time.monotonic() > until:
                    raise WorldError(
                        f"node 0 does not answer at {where} ({error.strerror or error}): run the same command there, "
                        f"with --node-rank 0, and let the nodes reach each other on all ports"
                    ) from None
                time.sleep(RETRY_SECONDS)
            else:
                return Connection(connected, self._is_interrupted)
