"""Offers, the ways to have the data, the places to keep it, and what instances have cost."""

import pytest

from imagenet_mds_infra.homes import homes
from imagenet_mds_infra.launches import Launch
from imagenet_mds_infra.ledger import Ledger, Machine
from imagenet_mds_infra.prices import PHASE_TYPES, TYPES, offers
from imagenet_mds_infra.stack import Stack
from imagenet_mds_infra.volumes import ways
from tests.infra.conftest import REGION, Cloud


def test_offers_are_those_of_the_groups_zones(stack: Stack) -> None:
    found = offers(stack.account, PHASE_TYPES["3"], stack.zones())
    assert {offer.zone for offer in found} == {f"{REGION}a", f"{REGION}b"}
    assert {offer.type.name for offer in found} == set(PHASE_TYPES["3"])
    assert all(offer.spot_dollars_per_hour == 0.00001 for offer in found), "moto's price"
    prices = [offer.dollars_per_hour(spot=True) for offer in found]
    assert prices == sorted(prices)
    assert found[0].dollars_per_hour(spot=False) == TYPES[found[0].type.name].dollars_per_hour


def test_types_of_a_phase_have_its_gpus() -> None:
    assert {TYPES[name].gpus for name in PHASE_TYPES["2"]} == {1}
    assert {TYPES[name].gpus for name in PHASE_TYPES["3"]} == {4}


def test_what_does_not_fit_an_instance_is_not_copied_to_it() -> None:
    small = {way.name for way in ways(150.0, 125, 0.5)}
    large = {way.name: way for way in ways(150.0, 900, 3.912)}
    assert set(large) - small == {"S3 to the instance's disks"}
    copied = large["S3 to the instance's disks"]
    assert copied.minutes == pytest.approx((2.5, 5.0))
    assert copied.dollars == pytest.approx((2.5 / 60 * 3.912, 5 / 60 * 3.912))
    fast = large["snapshot, fast restore"]
    assert fast.dollars == (0.75, 0.75)


def test_a_place_is_dearer_with_more_runs() -> None:
    few, many = (homes(3.912, 13.6, 120, runs) for runs in (0.0, 100.0))
    assert few[0].monthly(0.0) == 0.0, "Hugging Face costs nothing without runs"
    assert few[0].name == "Hugging Face, for each run"
    assert many[-1].name == "Hugging Face, for each run"
    for home in many:
        assert home.monthly(3.0) == pytest.approx(home.dollars_a_month + 3 * home.dollars_a_run)


def test_the_ledger_adds_up_all_instances(stack: Stack, cloud: Cloud) -> None:
    ledger = Ledger.of(cloud.bucket, "one")
    assert ledger.totals() == (0.0, 0.0)
    ledger.write(Machine("i-1", "g4dn.xlarge", "a", 0.0, 3600.0, 0.5, "interrupted"))
    ledger.write(Machine("i-2", "g4dn.xlarge", "b", 7200.0, 9000.0, None))
    assert ledger.totals() == (1.5, 0.5)
    assert ledger.totals(Machine("i-2", "g4dn.xlarge", "b", 7200.0, 10800.0, 1.0)) == (2.0, 1.5)
    assert [machine.instance for machine in ledger.machines()] == ["i-1", "i-2"]


def test_a_launch_has_the_price_of_its_zone() -> None:
    launch = Launch("one", [], spot=True, prices={"g4dn.xlarge": 0.5, "g4dn.xlarge us-east-1a": 0.2})
    assert launch.price("g4dn.xlarge", "us-east-1a") == 0.2
    assert launch.price("g4dn.xlarge", "us-east-1b") == 0.5
    assert launch.price("g5.xlarge", "us-east-1a") is None
