"""How launchers meet: who comes, in which order, who does not, and who is lost."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_train.nodes.follower import Follower, Orders, Over
from imagenet_mds_train.nodes.leader import Leader
from imagenet_mds_train.nodes.meeting import FORMAT
from imagenet_mds_train.nodes.peers import Failure, Peers
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.nodes.wire import Connection, Gone, Interrupted
from imagenet_mds_train.run.launch import Ended, Limits, launch

ORDERS = {"job": {"a": [1, 2]}, "batch": 7}


def never() -> bool:
    """Nobody interrupts."""
    return False


class Cluster:
    """Node 0 and, on threads, the other nodes."""

    def __init__(self, count: int, pool: ThreadPoolExecutor, folder: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            port = probe.getsockname()[1]
        self.count, self.port, self.pool, self.folder = count, port, pool, folder
        self.said: list[str] = []
        self.leader = Leader(self.nodes(0), self.said.append, meeting_seconds=20.0)

    def nodes(self, rank: int) -> Nodes:
        """The machines, as one of them sees them."""
        return Nodes(self.count, rank, "127.0.0.1", self.port)

    def lead(self, file: Path | None = None, is_interrupted: Callable[[], bool] = never) -> "Future[Peers]":
        """Have node 0 meet the others."""
        return self.pool.submit(self.leader.meet, "run", self.count, ORDERS, file, is_interrupted)

    def follower(self, rank: int, run: str = "run", is_interrupted: Callable[[], bool] = never) -> Follower:
        """Another node."""
        return Follower(self.nodes(rank), run, self.count, is_interrupted, meeting_seconds=20.0)

    def follow(self, rank: int) -> "Future[Peers | Over]":
        """Have another node do what node 0 says."""

        def follow() -> Peers | Over:
            follower = self.follower(rank)
            orders = follower.orders(self.folder / f"file{rank}")
            return orders if isinstance(orders, Over) else follower.ready()

        return self.pool.submit(follow)

    def met(self) -> list[Peers]:
        """What all nodes have after a meeting."""
        led = self.lead()
        followed = [self.follow(rank) for rank in range(1, self.count)]
        found = [led.result(), *(future.result() for future in followed)]
        peers = [one for one in found if isinstance(one, Peers)]
        assert len(peers) == self.count
        return peers

    def greet(self, **more: Any) -> socket.socket:
        """A node that says who it is, and that the test speaks for."""
        raw = socket.create_connection(("127.0.0.1", self.port))
        hello = {"hello": 1, "nodes": self.count, "run": "run", "ranks": self.count, "format": FORMAT} | more
        raw.sendall(json.dumps(hello).encode() + b"\n")
        return raw


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of as many nodes as the test asks for, two by default."""
    with ThreadPoolExecutor(8) as pool:
        cluster = Cluster(getattr(request, "param", 2), pool, tmp_path)
        with cluster.leader:
            yield cluster


@pytest.mark.parametrize("cluster", [2, 4], indirect=True)
def test_all_nodes_know_where_the_ranks_meet(cluster: Cluster) -> None:
    found = cluster.met()
    assert [peers.first_rank for peers in found] == list(range(cluster.count))
    assert len({peers.environment["MASTER_PORT"] for peers in found}) == 1
    assert [peers.environment["NODE_RANK"] for peers in found] == [str(rank) for rank in range(cluster.count)]
    assert {peers.failure() for peers in found} == {None}
    for peers in found:
        peers.close(0, None)


def test_node_0_may_come_last(cluster: Cluster) -> None:
    cluster.leader.__exit__(None, None, None)
    followed = cluster.follow(1)
    time.sleep(0.7)
    cluster.leader = Leader(cluster.nodes(0), cluster.said.append, meeting_seconds=20.0)
    led = cluster.lead()
    for peers in (led.result(), followed.result()):
        assert isinstance(peers, Peers)
        peers.close(0, None)
    cluster.leader.__exit__(None, None, None)


def test_orders_and_their_file_arrive_whole(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    file.write_bytes(b"\n{}\n" + bytes(range(256)) * 20_000)
    led, follower = cluster.lead(file), cluster.follower(1)
    orders = follower.orders(tmp_path / "received")
    assert orders == Orders(ORDERS, tmp_path / "received")
    assert (tmp_path / "received").read_bytes() == file.read_bytes()
    peers = follower.ready()
    assert isinstance(peers, Peers)
    peers.close(0, None)
    led.result().close(0, None)


def test_others_than_nodes_are_ignored(cluster: Cluster) -> None:
    raw = [socket.create_connection(("127.0.0.1", cluster.port)) for _ in range(4)]
    raw[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    raw[1].close()
    raw[2].sendall(b'["no node"]\n')
    raw[3].sendall(b'{"format": 1}\n')
    for peers in cluster.met():
        peers.close(0, None)
    for one in raw:
        one.close()


def test_a_node_that_was_started_again_takes_the_place_of_itself(cluster: Cluster) -> None:
    with closing(cluster.greet()):
        time.sleep(0.2)
    for peers in cluster.met():
        peers.close(0, None)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"format": 99}, "another version"),
        ({"hello": 2}, "it is node 2 of 2, and node 0 has --nodes 2"),
        ({"nodes": 3}, "it is node 1 of 3"),
        ({"run": "other"}, "it is to train other on 2 ranks, and node 0 trains run on 2"),
        ({"ranks": 8}, "it is to train run on 8 ranks"),
    ],
)
def test_a_node_of_something_else_ends_the_start(cluster: Cluster, more: dict[str, Any], line: str) -> None:
    led = cluster.lead()
    with closing(cluster.greet(**more)) as raw:
        with pytest.raises(UserError, match=line):
            led.result()
        answer = Connection(raw).receive(5.0)
    assert answer["over"] == 2
    assert line in answer["words"]


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_refusal_reaches_all(cluster: Cluster, tmp_path: Path) -> None:
    led, other = cluster.lead(), cluster.follow(2)
    refusing = cluster.follower(1)
    refusing.orders(tmp_path / "file")
    refusing.refuse("its data are others")
    with pytest.raises(UserError, match=r"node 1 \(127.0.0.1\): its data are others"):
        led.result()
    assert other.result() == Over(2, "node 1 (127.0.0.1): its data are others")


@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_node_that_is_lost_before_the_start_ends_it_for_all(cluster: Cluster) -> None:
    led, other = cluster.lead(), cluster.follow(2)
    with closing(cluster.greet()) as raw:
        assert Connection(raw).receive(20.0)["orders"] == ORDERS
    with pytest.raises(WorldError, match=r"a node is lost before the ranks start: 127.0.0.1 is gone"):
        led.result()
    over = other.result()
    assert isinstance(over, Over)
    assert over.status == 1


def test_who_does_not_come_is_named(cluster: Cluster) -> None:
    cluster.leader._meeting_seconds = 0.1
    with pytest.raises(WorldError, match=f"node 1 did not come to 127.0.0.1:{cluster.port} within 0.1 s"):
        cluster.lead().result()
    follower = Follower(Nodes(2, 1, "127.0.0.1", 1), "run", 2, never, meeting_seconds=0.1)
    with pytest.raises(WorldError, match=r"node 0 does not answer at 127.0.0.1:1"):
        follower.orders(cluster.folder / "file")


def test_waiting_ends_at_a_request(cluster: Cluster) -> None:
    stop = threading.Event()
    led = cluster.lead(is_interrupted=stop.is_set)
    follower = cluster.follower(1, is_interrupted=stop.is_set)
    lost = Follower(Nodes(2, 1, "127.0.0.1", 1), "run", 2, stop.is_set)
    waiting = cluster.pool.submit(lost.orders, cluster.folder / "a")
    time.sleep(0.3)
    stop.set()
    for result in (led.result, waiting.result):
        with pytest.raises(Interrupted):
            result()
    with pytest.raises(Interrupted):
        follower.orders(cluster.folder / "b")


def test_how_the_ranks_of_another_node_ended_is_known(cluster: Cluster) -> None:
    first, second = cluster.met()
    second.close(78, "its disk is full")
    assert first.failure(5.0) == Failure(78, "node 1: its disk is full")
    first.close(78, "node 1: its disk is full")


@pytest.mark.parametrize("status", [0, 75])
def test_a_good_end_of_another_node_is_no_failure(cluster: Cluster, status: int) -> None:
    first, second = cluster.met()
    second.close(status, None)
    begun = time.monotonic()
    assert first.failure(30.0) is None
    assert time.monotonic() - begun < 20.0, "nobody is waited for"
    first.close(status, None)


def test_a_node_that_goes_without_a_word_is_lost(cluster: Cluster) -> None:
    first, second = cluster.met()
    next(iter(second._connections.values())).close()
    assert first.failure(5.0) == Failure(1, "node 1 is lost: 127.0.0.1 is gone")
    first.close(1, None)


def test_who_comes_to_a_run_that_is_over_is_told(cluster: Cluster) -> None:
    followed = cluster.follow(1)
    cluster.leader.dismiss(0, "the run is finished")
    assert followed.result() == Over(0, "the run is finished")


def test_nobody_is_waited_for_after_a_meeting_or_a_stop(cluster: Cluster) -> None:
    begun = time.monotonic()
    cluster.leader.dismiss(75, "stopped")
    for peers in cluster.met():
        peers.close(1, None)
    cluster.leader.dismiss(1, "failed")
    assert time.monotonic() - begun < 15.0


@pytest.mark.parametrize(("status", "kind"), [(2, UserError), (1, WorldError)])
def test_a_node_that_cannot_take_part_says_why(cluster: Cluster, status: int, kind: type[Exception]) -> None:
    led = cluster.lead()
    cluster.follower(1).decline(status, "there is no GPU")
    with pytest.raises(kind, match=r"node 1 \(127.0.0.1\): there is no GPU"):
        led.result()
    Follower(Nodes(2, 1, "127.0.0.1", 1), "run", 2).decline(2, "nobody is there to hear it")


STOPS = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\ntime.sleep(10_000)"


def launched(cluster: Cluster, program: str, status: int, reason: str | None) -> Ended:
    """How the ranks of node 0 end after those of node 1 have ended with a status and a reason."""
    first, second = cluster.met()
    second.close(status, reason)
    limits = Limits(failure_grace_seconds=0.2)
    return launch(1, cluster.folder / "job", cluster.folder, program=program, limits=limits, peers=first)


def test_a_node_that_stops_before_the_ranks_have_met_stops_the_others(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launched(cluster, STOPS, 75, None) == Ended(75)
    assert "Node 1 is stopped. Saving, then exiting." in capfd.readouterr().err


def test_ranks_do_not_wait_for_those_of_a_node_that_failed(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    ended = launched(cluster, "import time; time.sleep(10_000)", 78, "its disk is full")
    assert (ended.status, ended.reason) == (78, "node 1: its disk is full")
    assert capfd.readouterr().err == "imagenet-mds: node 1: its disk is full\n"


def test_a_rank_that_fails_by_itself_is_the_reason(cluster: Cluster) -> None:
    ended = launched(cluster, "import sys; sys.exit(78)", 1, "node 0 is gone")
    assert (ended.status, ended.reason) == (78, "rank 0 failed")


def test_a_rank_that_only_lost_others_is_not_the_reason(cluster: Cluster) -> None:
    ended = launched(cluster, "import sys; sys.exit(76)", 1, "rank 1 was killed")
    assert (ended.status, ended.reason) == (1, "node 1: rank 1 was killed")


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagenet_mds_train.nodes.wire.LINE_BYTES", 1000)
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    with closing(server), closing(socket.create_connection(address)) as one, closing(server.accept()[0]) as other:
        one.sendall(b"x" * 2000)
        with pytest.raises(Gone, match="something else than messages"):
            Connection(other).receive(5.0)
