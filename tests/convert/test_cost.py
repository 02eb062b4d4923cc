"""Estimates of what a conversion takes."""

from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.cost import Cost, estimate, needed_bytes, requests_for
from imagenet_mds_convert.run import convert_split
from imagenet_mds_convert.sources import open_source
from tests.support.command import done


@pytest.mark.parametrize(("size_bytes", "requests"), [(1, 2), (16 << 20, 2), ((16 << 20) + 1, 5), (64 << 20, 7)])
def test_requests_of_a_shard(size_bytes: int, requests: int) -> None:
    """One for the record, and one for the shard or, above 16 MiB, one per part, one to start, one to complete."""
    assert requests_for(size_bytes) == requests


def test_imagenets_price_in_s3() -> None:
    whole = Cost(images=1_281_167, shards=2_055, size_bytes=138 * 10**9, minutes=0, s3_requests=2_055 * 7)
    assert whole.s3_dollars_once == pytest.approx(0.07, abs=0.01)
    assert whole.s3_dollars_monthly == pytest.approx(2.96, abs=0.01)


def test_the_estimate_counts_what_the_conversion_makes(tree: Path, tmp_path: Path) -> None:
    conversion = SplitConversion.plan_for(
        open_source(str(tree)), "train", LocalStorage(tmp_path), Policy(shard_size_bytes=1 << 16, subset=100)
    )
    one, two = estimate(conversion, 1), estimate(conversion, 2)
    assert (one.images, one.shards) == (100, conversion.plan.shards)
    assert one.size_bytes == sum(conversion.samples[place].size_bytes for place in conversion.plan.order.tolist())
    assert one.s3_requests == 2 * one.shards + 8
    assert one.minutes > 0
    assert two.minutes > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"min_side": 32}, {"max_side": 64}, {"raw": True, "min_side": 64}])
@pytest.mark.usefixtures("in_process")
def test_where_images_are_not_stored_as_they_are_the_estimate_is_of_what_they_become(
    tree: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    conversion = SplitConversion.plan_for(
        open_source(str(tree)), "train", LocalStorage(tmp_path), Policy(shard_size_bytes=1 << 16, **options)
    )
    cost, needed = estimate(conversion, 1), needed_bytes(conversion, range(conversion.plan.shards))
    assert list(tmp_path.iterdir()) == []
    stored = convert_split(conversion, 1).size_bytes
    assert cost.size_bytes == pytest.approx(stored, rel=0.1)
    assert needed == pytest.approx(stored, rel=0.1)


def test_the_plan_says_disk_or_dollars(tree: Path, tmp_path: Path) -> None:
    local = done("convert", tree, tmp_path / "mds", "--plan")
    assert "GB needed" in local.out
    remote = done("convert", tree, "s3://bucket/mds", "--plan")
    assert "a month to keep it" in remote.out
    assert not (tmp_path / "mds").exists()
