"""Sample seeds."""

from itertools import product

from imagenet_mds.seeds import sample_seed


def test_seeds_never_change() -> None:
    asked = [(0, 0, 0), (17, 0, 0), (17, 0, 1), (17, 1, 0), (18, 0, 0), (17, 89, 1_281_166)]
    assert [f"{sample_seed(*numbers):016x}" for numbers in asked] == [
        "bb3302e8a9608868",
        "6ad66afcf1085275",
        "9d85fbd2f9b2efca",
        "1442b82b7b9461af",
        "aa1ffd2470d93f94",
        "828518052e8e9218",
    ]


def test_seeds_of_runs_epochs_and_samples_are_distinct() -> None:
    block = list(product(range(4), range(20), range(1000)))
    seeds = {sample_seed(*numbers) for numbers in block}
    assert len(seeds) == len(block)
    assert 0 <= min(seeds) < 1 << 50
    assert (1 << 64) - (1 << 50) < max(seeds) < 1 << 64


def test_neighbours_differ_in_about_half_of_their_bits() -> None:
    flipped = [(sample_seed(17, 0, place) ^ sample_seed(17, 0, place + 1)).bit_count() for place in range(2000)]
    assert 31 < sum(flipped) / len(flipped) < 33
