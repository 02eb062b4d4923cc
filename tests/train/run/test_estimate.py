import pytest

from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.run.estimate import (
    T4,
    estimate_hours,
    estimate_memory_gib,
    hours_at,
    in_words,
    remaining_work,
)

STEPS = 1_281_167 // 2048


def test_rates_are_those_of_the_table_and_between_them_by_pixels() -> None:
    assert [round(T4.at(size, 1)) for size in (88, 128, 160, 176, 192, 224)] == [1655, 943, 646, 546, 467, 351]
    assert 646 < T4.at(150, 1) < 943
    assert T4.at(64, 1) > 1655
    assert T4.at(256, 1) < 351


def test_hours_are_the_sum_over_the_epochs() -> None:
    fixed = ("augment.progressive=null", "algorithms.sam=null", "evaluation.every_epochs=null")
    found = estimate_hours(load_config("phase3", fixed), STEPS, 50_000)
    for hours, rate in zip(found.hours, (596, 546, 479), strict=True):
        assert hours == pytest.approx(120 * STEPS * 2048 / (4 * rate) / 3600)


def test_a_recipe_that_starts_small_is_faster_and_sam_and_validation_cost_time() -> None:
    def hours(*given: str) -> float:
        return estimate_hours(load_config("phase3", given), STEPS, 50_000).hours[1]

    medium = hours()
    assert 11 < medium < 14
    assert hours("augment.progressive=null") > 1.3 * medium
    assert hours("algorithms.sam=null") == pytest.approx(medium / 1.103, rel=0.01)
    assert hours("evaluation={every_epochs: 1}") > medium
    classic = load_config("phase3", ("recipe=classic",))
    assert 24 < estimate_hours(classic, 1_281_167 // 512, 50_000).hours[1] < 29


def test_a_measured_rate_gives_its_own_hours() -> None:
    config = load_config("phase3", ("augment.progressive=null", "evaluation.every_epochs=null"))
    hours = hours_at(config, STEPS, 50_000, images_per_second=2000)
    assert hours == pytest.approx(120 * STEPS * 2048 / 2000 / 3600)


def test_memory_grows_with_the_microbatch_and_what_does_not_fit_is_said() -> None:
    assert 5 < estimate_memory_gib(load_config("phase3")) < 9
    # 9,603 MiB were measured on an H200.
    assert estimate_memory_gib(load_config("phase2")) == pytest.approx(9.4, rel=0.1)
    whole = load_config("phase3", ("system.device_microbatch_size=null",))
    assert "too much, pass a smaller system.device_microbatch_size" in dict(in_words(whole, STEPS, 50_000))["memory"]


def test_the_words_name_hours_dollars_and_where_they_are_from() -> None:
    words = dict(in_words(load_config("phase3"), STEPS, 50_000))
    assert words["time"].endswith("on 4 T4, reckoned")
    assert "at 3.912 an hour" in words["dollars"]
    assert "spot" in words["dollars"]
    assert in_words(load_config("dev"), STEPS, 50_000) == []


def test_the_work_left_counts_images_by_their_pixels() -> None:
    plain = load_config("dev")
    assert remaining_work(plain, 100, 0) == 10 * 100 * 64
    assert remaining_work(plain, 100, 950) == 50 * 64
    assert remaining_work(plain, 100, 1000) == 0
    growing = load_config("dev", ("augment.progressive={start_px: 64, until_epoch: 5, from_epoch: 4, step_px: 64}",))
    # Five epochs of 64 px, then five of 128 px, which have four times the pixels.
    assert remaining_work(growing, 100, 0) == (5 + 5 * 4) * 100 * 64
