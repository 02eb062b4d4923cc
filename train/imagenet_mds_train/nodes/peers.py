"""The other nodes of a run, as the launcher of one sees them while the ranks run. Imports no torch."""

import contextlib
import time
from dataclasses import dataclass

from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.nodes.wire import Connection, Gone

_FINE = (EXIT_DONE, EXIT_STOPPED)


@dataclass(frozen=True)
class Failure:
    """How another node failed: an exit status, and a line for people."""

    status: int
    reason: str


class Peers:
    """The other nodes, while the ranks run. Node 0 knows them all, the others know node 0.

    Args:
        nodes: the machines.
        ranks: of the whole run.
        port: where the first rank listens, on the host of node 0.
        connections: by the number of the node.
    """

    def __init__(self, nodes: Nodes, ranks: int, port: int, connections: dict[int, Connection]) -> None:
        self.first_rank = nodes.rank * nodes.ranks_here(ranks)
        self.environment = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(nodes.ranks_here(ranks)),
            "NODE_RANK": str(nodes.rank),
            "MASTER_ADDR": nodes.host,
            "MASTER_PORT": str(port),
        }
        """By which the ranks find each other."""
        self._connections = connections
        self._ended: dict[int, int] = {}
        self._failure: Failure | None = None

    def stopped(self) -> int | None:
        """A node whose ranks have stopped at a request, None if none has. It may have come before they had met those of
        the other nodes, which would wait for them."""
        self._look_at_all()
        return next((node for node, status in self._ended.items() if status == EXIT_STOPPED), None)

    def failure(self, wait_seconds: float = 0.0) -> Failure | None:
        """How a node failed, None if none has.

        Args:
            wait_seconds: how long to wait for it, unless all others have ended well.
        """
        until = time.monotonic() + wait_seconds
        while self._failure is None:
            self._look_at_all()
            if len(self._ended) == len(self._connections) or time.monotonic() >= until:
                break
            time.sleep(0.05)
        return self._failure

    def close(self, status: int, reason: str | None) -> None:
        """Tell the others how the ranks of this node ended."""
        for connection in self._connections.values():
            with contextlib.suppress(Gone):
                connection.send(ended=status, reason=reason)
            connection.close()

    def _look_at_all(self) -> None:
        for node, connection in self._connections.items():
            if node not in self._ended:
                self._look(node, connection)

    def _look(self, node: int, connection: Connection) -> None:
        try:
            message = connection.poll()
        except Gone as error:
            self._ended[node] = EXIT_FAILED
            self._failure = Failure(EXIT_FAILED, f"node {node} is lost: {error}")
            return
        if message is None:
            return
        self._ended[node] = int(message["ended"])
        if self._ended[node] not in _FINE:
            self._failure = Failure(self._ended[node], f"node {node}: {message['reason'] or 'its ranks failed'}")
