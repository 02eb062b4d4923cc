"""Which node this machine is: options, torchrun, SLURM."""

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds_train.nodes.place import DEFAULT_PORT, Nodes, first_host

VARIABLES = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST")


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("master", "address"),
    [
        ("gpu1", ("gpu1", DEFAULT_PORT)),
        ("10.0.0.1:400", ("10.0.0.1", 400)),
        ("[fd00::1]:400", ("fd00::1", 400)),
        ("[fd00::1]", ("fd00::1", DEFAULT_PORT)),
    ],
)
def test_the_options_name_the_nodes(master: str, address: tuple[str, int]) -> None:
    assert Nodes.given(2, 1, master) == Nodes(2, 1, *address)


@pytest.mark.parametrize("master", ["", "gpu1:", "gpu1:0", "gpu1:65536", "fd00::1", "tcp://gpu1:400", "a b"])
def test_what_is_no_address_is_refused(master: str) -> None:
    with pytest.raises(UserError, match="pass HOST or HOST:PORT"):
        Nodes.given(2, 1, master)


def test_one_machine_needs_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nodes.given(None, None, None) is None
    assert Nodes.given(1, None, None) is None
    set_all(monkeypatch, SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="a[1-2]")
    assert Nodes.given(1, None, None) is None, "options win"


@pytest.mark.parametrize("given", [(2, None, "a"), (2, 1, None), (None, 0, "a"), (None, None, "a"), (None, 1, None)])
def test_half_of_the_options_is_refused(given: tuple[int | None, int | None, str | None]) -> None:
    with pytest.raises(UserError, match="all of --nodes, --node-rank and --master"):
        Nodes.given(*given)


def test_torchrun_starts_one_process_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, TORCHELASTIC_RUN_ID="1", LOCAL_WORLD_SIZE="1", GROUP_WORLD_SIZE="3", GROUP_RANK="2")
    set_all(monkeypatch, MASTER_ADDR="gpu1", MASTER_PORT="29400")
    assert Nodes.given(None, None, None) == Nodes(3, 2, "gpu1", 29_401)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="--nproc-per-node 1"):
        Nodes.given(None, None, None)
    set_all(monkeypatch, LOCAL_WORLD_SIZE="1", GROUP_WORLD_SIZE="1")
    assert Nodes.given(None, None, None) is None


def test_srun_starts_one_task_on_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_STEP_NUM_NODES="2", SLURM_STEP_NUM_TASKS="2", SLURM_NODEID="1", SLURM_JOB_ID="123456")
    set_all(monkeypatch, SLURM_STEP_NODELIST="gpu[07-08]")
    assert Nodes.given(None, None, None) == Nodes(2, 1, "gpu07", 23_456)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UserError, match="--ntasks-per-node=1"):
        Nodes.given(None, None, None)


def test_the_shell_of_a_job_with_several_nodes_is_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SLURM_JOB_NUM_NODES="2", SLURM_NNODES="2", SLURM_NODEID="0", SLURM_JOB_NODELIST="gpu[1-2]")
    assert Nodes.given(None, None, None) is None


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[01-03,07],big2", "gpu01"),
        ("gpu[3,5]", "gpu3"),
        ("rack[2-3]node[10-11]", "rack2node10"),
        ("a[1-2].cluster,b", "a1.cluster"),
    ],
)
def test_the_first_host_of_a_list(node_list: str, first: str) -> None:
    assert first_host(node_list) == first


def test_ranks_are_dealt_evenly() -> None:
    nodes = Nodes(2, 0, "a", 1)
    assert nodes.ranks_here(8) == 4
    with pytest.raises(UserError, match="3 ranks cannot be dealt evenly to 2 nodes"):
        nodes.ranks_here(3)
