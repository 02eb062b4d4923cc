"""Properties of the plan: balanced, nested, complete, and stable across versions."""

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from imagenet_mds_convert.plan import Plan, cut_into_shards, draws, make_plan
from imagenet_mds_convert.sources.base import Sample
from tests.support.command import environment

SEEDS = st.integers(0, 1 << 32)
COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)
SIZES = st.lists(st.integers(0, 50), max_size=40)


def _samples(counts: list[int]) -> list[Sample]:
    return [
        Sample(f"n{label:08}/{number}.JPEG", label, 100 + number)
        for label, count in enumerate(counts)
        for number in range(count)
    ]


def _order(counts: list[int], seed: int, subset: int | None = None) -> list[int]:
    order: list[int] = make_plan(_samples(counts), seed=seed, shard_size_bytes=4096, subset=subset).order.tolist()
    return order


@given(COUNTS, SEEDS)
def test_the_order_is_a_permutation(counts: list[int], seed: int) -> None:
    assert sorted(_order(counts, seed)) == list(range(sum(counts)))


@given(COUNTS, SEEDS)
def test_every_prefix_is_balanced_within_one_image_of_each_class_that_has_not_run_out(
    counts: list[int], seed: int
) -> None:
    labels = [sample.label for sample in _samples(counts)]
    taken = [0] * len(counts)
    for place in _order(counts, seed):
        taken[labels[place]] += 1
        going_on = [mine for mine, count in zip(taken, counts, strict=True) if mine < count]
        run_out = [mine for mine, count in zip(taken, counts, strict=True) if mine == count]
        if going_on:
            assert max(going_on) - min(going_on) <= 1
            assert max([0, *run_out]) <= min(going_on) + 1


@given(COUNTS, SEEDS, st.data())
def test_a_subset_is_a_prefix_of_every_larger_one(counts: list[int], seed: int, data: st.DataObject) -> None:
    subset = data.draw(st.integers(1, sum(counts)))
    assert _order(counts, seed, subset) == _order(counts, seed)[:subset]


@given(COUNTS, SEEDS, st.data())
def test_the_order_within_a_class_does_not_depend_on_what_else_is_there(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    samples = _samples(counts)
    kept = [samples[place] for place in sorted(data.draw(st.sets(st.sampled_from(range(len(samples))), min_size=1)))]
    before = [samples[place].key for place in _order(counts, seed)]
    after = [kept[place].key for place in make_plan(kept, seed=seed, shard_size_bytes=4096, subset=None).order]
    for label in range(len(counts)):
        mine = [sample.key for sample in kept if sample.label == label]
        assert [key for key in after if key in mine] == [key for key in before if key in mine]


@given(SIZES, st.integers(1, 120))
def test_shards_cover_everything_in_order_and_respect_the_size(sizes: list[int], shard_size: int) -> None:
    starts = cut_into_shards(np.array(sizes, np.int64), shard_size).tolist()
    assert (starts[0], starts[-1]) == (0, len(sizes))
    assert all(start < end for start, end in pairwise(starts))
    for start, end in pairwise(starts):
        assert sum(sizes[start:end]) <= shard_size or end == start + 1
        # A shard is not closed earlier than necessary.
        assert end == len(sizes) or sum(sizes[start : end + 1]) > shard_size


def test_sizes_add_up_beyond_32_bits() -> None:
    sizes = np.full(10, 1 << 31, np.int64)
    assert cut_into_shards(sizes, (1 << 32) - 1).tolist() == list(range(11))
    assert cut_into_shards(sizes, 1 << 33).tolist() == [0, 4, 8, 10]


def test_a_plan_gives_the_places_of_each_shard() -> None:
    plan = Plan(np.array([4, 2, 0, 3, 1]), np.array([0, 2, 5]))
    assert plan.shards == 2
    assert [plan.shard(shard).tolist() for shard in range(plan.shards)] == [[4, 2], [0, 3, 1]]


def test_the_order_never_changes() -> None:
    order = make_plan(_samples([50, 20, 0, 70]), seed=7, shard_size_bytes=4096, subset=None).order
    assert order[:8].tolist() == [61, 30, 98, 119, 56, 42, 118, 19]
    assert xxhash.xxh64(order.astype("<i8").tobytes()).hexdigest() == "28a3f2b4788c4add"
    assert draws(["n01440764/n01440764_10026.JPEG"], 0).tolist() == [12136824604166580882]


def test_classes_of_any_size_stand_anywhere_within_a_round() -> None:
    # Seven small classes and one large: over many rounds, no class has a fixed position.
    counts = [20] * 7 + [400]
    labels = [sample.label for sample in _samples(counts)]
    order = _order(counts, 0)[: 8 * 20]
    places = Counter((place % 8, labels[at]) for place, at in enumerate(order))
    assert max(places.values()) < 10


def test_another_seed_is_another_order() -> None:
    orders = {tuple(_order([5, 5, 5], seed)) for seed in range(50)}
    assert len(orders) == 50


@pytest.mark.slow
def test_the_whole_of_imagenet_is_planned_in_little_time_and_memory() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "plan.py"
    done = subprocess.run([sys.executable, program], env=environment(), capture_output=True, text=True, check=True)
    row = json.loads(done.stdout)
    assert (row["images"], row["shards"]) == (1_281_167, 2104)
    assert row["cpu_seconds"] < 20
    assert row["peak_bytes"] < 1e9
