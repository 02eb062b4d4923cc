"""Fingerprints identify a value by its content, and differences show both values."""

import json
from pathlib import Path
from typing import Any

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from imagenet_mds.fingerprint import differences, fingerprint, flatten
from imagenet_mds.storage.base import file_xxh64

LEAVES = st.none() | st.integers() | st.text(max_size=8)
NAMES = st.text("abc", min_size=1, max_size=2)
TREES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES | st.lists(LEAVES, max_size=2), lambda inner: st.dictionaries(NAMES, inner, max_size=3)),
    max_size=4,
)


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(inner) for key, inner in reversed(value.items())}
    return value


def test_a_fingerprint_is_16_digits_that_never_change() -> None:
    assert fingerprint({"b": [1, 2.5, None, "\u00e9"], "a": True}) == "9c4bfd7a7a37f79a"


@given(TREES)
def test_neither_the_order_of_keys_nor_a_round_trip_through_json_matters(tree: dict[str, Any]) -> None:
    assert fingerprint(tree) == fingerprint(_reversed(tree)) == fingerprint(json.loads(json.dumps(tree)))


def test_the_order_of_lists_matters() -> None:
    assert fingerprint([1, 2]) != fingerprint([2, 1])


@given(TREES, TREES)
def test_fingerprints_are_equal_exactly_when_nothing_differs(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert (fingerprint(before) == fingerprint(now)) == (differences(before, now) == [])


@given(TREES)
def test_flattening_keeps_every_leaf_under_its_path(tree: dict[str, Any]) -> None:
    for path, leaf in flatten(tree).items():
        value: Any = tree
        for name in path.split("."):
            value = value[name]
        assert value == leaf
        assert leaf == {} or not isinstance(leaf, dict)


def test_differences_show_both_values_sorted_by_path() -> None:
    before = {"b": {"lr": 0.1, "same": 1}, "a": 1}
    now = {"b": {"lr": 0.2, "same": 1}, "c": None}
    assert differences(before, now) == [
        "a: 1 before, '(not there)' now",
        "b.lr: 0.1 before, 0.2 now",
        "c: '(not there)' before, None now",
    ]


def test_a_files_hash_does_not_depend_on_the_chunks(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5
    (tmp_path / "file").write_bytes(data)
    for chunk_bytes in (1, 7, 1280, 1 << 22):
        assert file_xxh64(tmp_path / "file", chunk_bytes) == xxhash.xxh64(data).hexdigest()
