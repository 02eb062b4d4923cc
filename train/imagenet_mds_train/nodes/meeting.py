"""How the launchers of several nodes start their ranks together, and learn how the others' ended. Imports no torch.

    node N -> node 0   hello: who it is; or why it cannot take part
    node 0 -> node N   orders: the job of the ranks, and the file that they start from; or the end of the run
    node N -> node 0   ready, or refused
    node 0 -> node N   go: where the ranks meet, once all nodes are ready
    both ways          ended: how the ranks of a node ended

A connection lasts as long as the ranks, so that its loss says that a node is gone. Each start of the ranks has a
meeting of its own.
"""

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError, WorldError
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.nodes.wire import Connection, Gone, Interrupted

FORMAT = 1
"""Of the messages."""

MEETING_SECONDS = 900.0
"""How long the nodes wait for each other: they may fetch and verify a dataset first."""

_HELLO_SECONDS = 10.0
"""How long somebody who connects may take to say who it is. Others than nodes connect to an open port."""

_READY_SECONDS = 300.0
_RETRY_SECONDS = 0.5
_DISMISSAL_SECONDS = 5.0
"""How long node 0, which ends before a meeting, waits for the others to tell them."""

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


class Leader:
    """Node 0: listens from its start, so that the others find it.

    Args:
        nodes: the machines.
        say: prints a line.
        meeting_seconds: see `MEETING_SECONDS`.

    Raises:
        UserError: it cannot listen.
    """

    def __init__(self, nodes: Nodes, say: Callable[[str], None], meeting_seconds: float = MEETING_SECONDS) -> None:
        self.nodes = nodes
        self._say = say
        self._meeting_seconds = meeting_seconds
        self._told: set[int] = set()  # the nodes that have taken part, or know that there is nothing to take part in
        try:
            self._listener = _listen(nodes.port)
        except OSError as error:
            raise UserError(f"node 0 cannot listen on port {nodes.port}: {error.strerror}; pass another one") from None

    def __enter__(self) -> "Leader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def meet(
        self,
        run: str,
        ranks: int,
        orders: Mapping[str, Any],
        file: Path | None,
        is_interrupted: Callable[[], bool],
    ) -> Peers:
        """Wait for all nodes, and have them start their ranks.

        Args:
            run: the name of the run.
            ranks: of the whole run.
            orders: what the other nodes are to do, as JSON has it.
            file: what their ranks start from, if anything.
            is_interrupted: whether this process is to stop.

        Raises:
            UserError: a node cannot take part, refuses the orders, or is of another run or version.
            WorldError: a node has not come, or is gone.
            Interrupted: this process is to stop.
        """
        found: dict[int, Connection] = {}
        try:
            self._gather(found, run, ranks, is_interrupted)
            for connection in found.values():
                connection.send(orders=orders, size_bytes=file.stat().st_size if file else None)
                if file:
                    connection.send_file(file)
            for node, connection in sorted(found.items()):
                answer = connection.receive(_READY_SECONDS)
                if "refused" in answer:
                    raise UserError(f"node {node} ({connection.peer}): {answer['refused']}")
            port = _free_port()
            for connection in found.values():
                connection.send(go=port)
        except BaseException as error:
            gone = WorldError(f"a node is lost before the ranks start: {error}") if isinstance(error, Gone) else error
            status = gone.exit_status if isinstance(gone, (UserError, WorldError)) else EXIT_STOPPED
            for connection in found.values():
                _tell_end(connection, status, str(gone) or "node 0 is stopped")
            self._told |= found.keys()
            if gone is error:
                raise
            raise gone from None
        self._told |= found.keys()
        return Peers(self.nodes, ranks, port, found)

    def dismiss(self, status: int, words: str) -> None:
        """Tell the other nodes that the run ends without them, unless they were part of it or know it already.

        Args:
            status: the exit status of this node.
            words: why, in a line.
        """
        if status == EXIT_STOPPED:
            return
        until = time.monotonic() + _DISMISSAL_SECONDS
        while len(self._told) < self.nodes.count - 1 and time.monotonic() < until:
            for connection, hello in self._arrivals(_RETRY_SECONDS, lambda: False):
                _tell_end(connection, status, words)
                self._told.add(hello.get("hello", 0))

    def _gather(self, found: dict[int, Connection], run: str, ranks: int, is_interrupted: Callable[[], bool]) -> None:
        """Fill `found` with all nodes."""
        begun, said = time.monotonic(), False
        while len(found) < self.nodes.count - 1:
            for connection, hello in self._arrivals(_RETRY_SECONDS, is_interrupted):
                if why := hello.get("declined"):
                    connection.close()
                    self._told.add(hello.get("hello", 0))
                    failed = UserError if why["status"] == EXIT_USER else WorldError
                    raise failed(f"node {hello.get('hello')} ({connection.peer}): {why['words']}")
                if fault := self._fault(hello, run, ranks):
                    _tell_end(connection, EXIT_USER, fault)
                    self._told.add(hello.get("hello", 0))
                    raise UserError(f"{connection.peer} cannot take part: {fault}")
                node = int(hello["hello"])
                if node in found:  # it was started again
                    found[node].close()
                found[node] = connection
            if is_interrupted():
                raise Interrupted
            missing = [str(node) for node in range(1, self.nodes.count) if node not in found]
            which = f"{'node' if len(missing) == 1 else 'nodes'} {', '.join(missing)}"
            waited = time.monotonic() - begun
            if missing and waited > 5 and not said:
                self._say(f"waiting for {which} at {self.nodes.host}:{self.nodes.port} ...")
                said = True
            if missing and waited > self._meeting_seconds:
                raise WorldError(
                    f"{which} did not come to {self.nodes.host}:{self.nodes.port} within {self._meeting_seconds:g} s: "
                    f"run the same command there, with --node-rank {missing[0]}, or pass fewer --nodes"
                )

    def _arrivals(
        self, seconds: float, is_interrupted: Callable[[], bool]
    ) -> Iterator[tuple[Connection, dict[str, Any]]]:
        """Those who have connected and said who they are, within a time."""
        self._listener.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while True:
                connected, _ = self._listener.accept()
                try:
                    connection = Connection(connected, is_interrupted)
                    hello = connection.receive(_HELLO_SECONDS)
                except OSError:  # no node, or one that is gone
                    connected.close()
                    continue
                except BaseException:
                    connected.close()
                    raise
                yield connection, hello

    def _fault(self, hello: dict[str, Any], run: str, ranks: int) -> str | None:
        if hello.get("format") != FORMAT:
            return "it runs another version of imagenet-mds: install the same one on all nodes"
        if not 0 < hello["hello"] < self.nodes.count or hello["nodes"] != self.nodes.count:
            return f"it is node {hello['hello']} of {hello['nodes']}, and node 0 has --nodes {self.nodes.count}"
        if (hello["run"], hello["ranks"]) != (run, ranks):
            return (
                f"it is to train {hello['run']} on {hello['ranks']} ranks, and node 0 trains {run} on {ranks}: run the "
                f"same command on all nodes"
            )
        return None


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
            time.sleep(_RETRY_SECONDS)

    def _received(self, connection: Connection, until: float, file: Path) -> Orders | Over:
        connection.send(hello=self.nodes.rank, nodes=self.nodes.count, run=self._run, ranks=self._ranks, format=FORMAT)
        message = connection.receive(max(0.0, until - time.monotonic()))
        if "over" in message:
            return Over(message["over"], message["words"])
        if (size_bytes := message["size_bytes"]) is None:
            return Orders(message["orders"], None)
        connection.receive_file(file, size_bytes, _READY_SECONDS)
        return Orders(message["orders"], file)

    def decline(self, status: int, words: str) -> None:
        """Tell node 0, if it is there, that this node cannot take part.

        Args:
            status: the exit status of this node.
            words: why, in a line.
        """
        with contextlib.suppress(WorldError, Gone, Interrupted):
            connection = self._connected(time.monotonic() + _DISMISSAL_SECONDS)
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
                connected = socket.create_connection((self.nodes.host, self.nodes.port), timeout=_HELLO_SECONDS)
            except OSError as error:
                if time.monotonic() > until:
                    raise WorldError(
                        f"node 0 does not answer at {where} ({error.strerror or error}): run the same command there, "
                        f"with --node-rank 0, and let the nodes reach each other on all ports"
                    ) from None
                time.sleep(_RETRY_SECONDS)
            else:
                return Connection(connected, self._is_interrupted)


def _tell_end(connection: Connection, status: int, words: str) -> None:
    with contextlib.suppress(Gone):
        connection.send(over=status, words=words)
    connection.close()


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port() -> int:
    with contextlib.closing(_listen(0)) as probe:
        port: int = probe.getsockname()[1]
    return port
