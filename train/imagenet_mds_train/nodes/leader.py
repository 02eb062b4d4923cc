"""Node 0 of a run on several machines, up to the start of the ranks; see `meeting.py`. Imports no torch."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from imagenet_mds.errors import EXIT_STOPPED, EXIT_USER, UserError, WorldError
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

_HELLO_SECONDS = 10.0
"""How long somebody who connects may take to say who it is. Others than nodes connect to an open port."""


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
                answer = connection.receive(READY_SECONDS)
                if "refused" in answer:
                    raise UserError(f"node {node} ({connection.peer}): {answer['refused']}")
            port = _free_port()
            for connection in found.values():
                connection.send(go=port)
        except BaseException as error:  # whatever it is, the nodes that have come must not wait
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
        until = time.monotonic() + DISMISSAL_SECONDS
        while len(self._told) < self.nodes.count - 1 and time.monotonic() < until:
            for connection, hello in self._arrivals(RETRY_SECONDS, lambda: False):
                _tell_end(connection, status, words)
                self._told.add(hello["hello"])

    def _gather(self, found: dict[int, Connection], run: str, ranks: int, is_interrupted: Callable[[], bool]) -> None:
        """Fill `found` with all nodes."""
        begun, said = time.monotonic(), False
        while len(found) < self.nodes.count - 1:
            for connection, hello in self._arrivals(RETRY_SECONDS, is_interrupted):
                if why := hello.get("declined"):
                    connection.close()
                    self._told.add(hello["hello"])
                    failed = UserError if why["status"] == EXIT_USER else WorldError
                    raise failed(f"node {hello['hello']} ({connection.peer}): {why['words']}")
                if fault := self._fault(hello, run, ranks):
                    _tell_end(connection, EXIT_USER, fault)
                    self._told.add(hello["hello"])
                    raise UserError(f"{connection.peer} cannot take part: {fault}")
                if earlier := found.pop(hello["hello"], None):  # it was started again
                    earlier.close()
                found[hello["hello"]] = connection
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
                    if not isinstance(hello.get("hello"), int):
                        raise Gone(f"{connection.peer} is no node")
                except OSError:  # no node, or one that is gone
                    connected.close()
                    continue
                except BaseException:  # a request to stop above all; the socket is nobody's yet
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
