"""Requests to stop and to save, agreed on by real ranks."""

from pathlib import Path

import pytest

from imagenet_mds_train.run.launch import launch

pytestmark = pytest.mark.slow  # its ranks import Composer

AGREE = """
import json, os, signal, sys, types
from composer.utils import dist, get_device
from imagenet_mds_train.interruption.stop import StopRequest, StopRequested

device = get_device("cpu")
dist.initialize_dist(device, timeout=60)
rank = dist.get_global_rank()
state = types.SimpleNamespace(device=device)
stop, seen = StopRequest(), []
stop.listen()

def batch(end=stop.batch_end):
    end(state, None)
    seen.append((stop.agreed, stop.save_agreed))

batch()
if rank == 1:
    stop.request_save()
batch()
batch()                      # nothing was saved meanwhile, so the request stands
stop.save_agreed = False
batch()
if rank == 0:
    stop.request_save()
batch(stop.eval_batch_end)   # a request in a validation does not end it
if rank == 1:
    os.kill(os.getpid(), signal.SIGTERM)
batch()
with open(f"{sys.argv[1]}{rank}", "w") as file:
    json.dump(seen, file)
os._exit(0)
"""


def test_what_one_rank_is_asked_for_all_ranks_agree_on_after_the_same_batch(tmp_path: Path) -> None:
    assert launch(2, tmp_path / "job", tmp_path, program=AGREE).status == 0
    expected = "[[false, false], [false, true], [false, true], [false, false], [false, true], [true, true]]"
    assert [(tmp_path / f"job{rank}").read_text(encoding="utf-8") for rank in range(2)] == [expected] * 2
