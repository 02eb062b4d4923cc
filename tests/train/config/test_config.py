"""The configuration: shipped files load and match the table of the phases; mistakes are reported with a fix."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from imagenet_mds.dataset.subsets import SUBSETS
from imagenet_mds.errors import UserError
from imagenet_mds.resources import config_names, recipe_names
from imagenet_mds_train.config.explain import known_keys
from imagenet_mds_train.config.load import load_config, load_layers, origins, parse_config
from imagenet_mds_train.config.recipe import AlgorithmsConfig
from imagenet_mds_train.config.schema import EvaluationConfig
from imagenet_mds_train.config.section import epoch_of

LEAST: dict[str, Any] = {"global_batch_size": 64, "optimizer": {"lr": 0.1}, "schedule": {"epochs": 3}}


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_configuration_loads(name: str) -> None:
    config = load_config(name)
    assert config.device_batch_size * config.ranks == config.global_batch_size
    assert parse_config(config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize(
    ("overrides", "phase", "ranks", "device_batch_size", "lr", "epochs", "warmup_epochs", "samples"),
    [
        ((), 1, 1, 64, 0.01, 3, 0.0, 1_000),
        ((), 2, 1, 256, 0.05, 10, 0.0, 25_000),
        (("recipe=classic",), 3, 4, 128, 0.4, 90, 5.0, None),
    ],
)
def test_the_phases_have_the_figures_of_the_table(
    overrides: tuple[str, ...],
    phase: int,
    ranks: int,
    device_batch_size: int,
    lr: float,
    epochs: int,
    warmup_epochs: float,
    samples: int | None,
) -> None:
    config = load_config(f"phase{phase}", overrides)
    assert (config.ranks, config.device_batch_size) == (ranks, device_batch_size)
    assert (config.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (lr, 0.9, 1e-4)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (epochs, warmup_epochs)
    assert config.schedule.final_lr_fraction == 0.0
    assert config.data.subset_samples() == samples
    assert (config.model.depth, config.augment.size_px, config.augment.flip_probability) == (50, 224, 0.5)
    assert config.augment.color_jitter is not None
    assert (config.evaluation.resize_px, config.evaluation.crop_px) == (256, 224)


def _on(algorithms: AlgorithmsConfig) -> dict[str, Any]:
    return {name: value for name, value in algorithms.model_dump(exclude_defaults=True).items() if value is not None}


def test_each_phase_has_the_algorithms_of_the_table() -> None:
    first = {"mixup": {}, "label_smoothing": {}, "channels_last": True}
    second = first | {"cutmix": {}, "ema": {}, "blurpool": "convolutions"}
    one, two = (load_config(f"phase{phase}") for phase in (1, 2))
    three = load_config("phase3", ["recipe=classic"])
    assert _on(one.algorithms) == first
    assert _on(two.algorithms) == second
    assert _on(three.algorithms) == second | {"sam": {}}
    assert one.augment.randaugment is None
    for config in (two, three):
        assert config.augment.randaugment is not None
        assert (config.augment.randaugment.severity, config.augment.randaugment.depth) == (9, 2)
    averaged = load_config("phase3", ["recipe=classic", "algorithms.ema=null", "algorithms.swa={}"])
    assert averaged.algorithms.swa is not None


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_phase_3(name: str) -> None:
    config = load_config("phase3", [f"recipe={name}"])
    assert config.recipe == name
    assert config.ranks == 4
    assert config.device_batch_size % 128 == 0
    assert config.size_at(config.schedule.epochs - 1) == config.augment.size_px


def test_phase_3_is_mosaics_medium_recipe() -> None:
    config = load_config("phase3")
    assert (config.recipe, config.global_batch_size, config.lr, config.schedule.epochs) == ("medium", 2048, 2.048, 120)
    assert (config.optimizer.momentum, config.optimizer.weight_decay, config.optimizer.decoupled) == (0.875, 5e-4, True)
    assert config.loss == "binary_cross_entropy"
    assert _on(config.algorithms) == {
        "mixup": {},
        "label_smoothing": {},
        "ema": {"half_life_batches": 100, "every_batches": 20},
        "sam": {},
        "blurpool": "convolutions",
        "channels_last": True,
    }
    # Half the size for 40% of the epochs, the full one for the last 20%.
    assert [config.size_at(epoch) for epoch in (0, 48, 72, 95, 96, 119)] == [88, 88, 132, 172, 176, 176]
    assert (config.evaluation.resize_px, config.evaluation.crop_px) == (232, 224)


def test_the_layers_are_the_recipe_the_file_and_what_was_given() -> None:
    config = load_config("phase2", ["recipe=mild", "algorithms.mixup.alpha=0.5", "algorithms.ema=null"])
    assert config.optimizer.decoupled
    assert (config.optimizer.lr, config.lr) == (0.05, 0.05)
    assert config.algorithms.mixup is not None
    found = origins(load_layers("phase2", ["recipe=mild", "algorithms.mixup.alpha=0.5", "algorithms.ema=null"], 2))
    expected = {
        "optimizer.decoupled": "recipe mild",
        "optimizer.lr": "phase2",
        "recipe": "command line",
        "ranks": "command line",
        "algorithms.mixup.alpha": "command line",
        "algorithms.ema": "command line",
        "algorithms.sam": "phase2",
        "augment.progressive.start_px": "recipe mild",
    }
    assert expected.items() <= found.items()
    assert "algorithms.ema.half_life_batches" not in found, "null took its place"
    assert "seed" not in found, "it has its default"


@pytest.mark.parametrize(
    "override", ["system.deterministic=true", "system={deterministic: true}", "system={}", "seed=1"]
)
def test_deterministic_is_set_by_its_option_and_may_be_said_twice(override: str) -> None:
    assert not load_config("phase1").system.deterministic
    assert load_config("phase1", [override], deterministic=True).system.deterministic


@pytest.mark.parametrize("override", ["system.deterministic=false", "system={deterministic: false}"])
def test_deterministic_is_not_contradicted(override: str) -> None:
    with pytest.raises(
        UserError, match=r"^--deterministic contradicts system\.deterministic=false: remove one of them$"
    ):
        load_config("phase1", [override], deterministic=True)


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"no recipe spicy: pass recipe=null, or one of classic, hot, medium, mild$"):
        load_config("phase3", ["recipe=spicy"])


def test_earlier_versions_blurpool_was_of_all() -> None:
    kinds = {True: "all", False: None, "convolutions": "convolutions", None: None}
    for written, meant in kinds.items():
        assert AlgorithmsConfig.model_validate({"blurpool": written}).blurpool == meant


def test_one_run_has_one_average() -> None:
    with pytest.raises(UserError, match="ema and swa are both on, and a run has one average of its weights"):
        load_config("phase2", ["algorithms.swa={}"])


@pytest.mark.parametrize(("at", "epoch"), [(0, 0), (7, 7), ("0%", 0), ("40%", 4), ("45%", 4), ("99.9%", 10)])
def test_a_share_of_the_epochs_is_an_epoch(at: int | str, epoch: int) -> None:
    assert epoch_of(at, 10) == epoch


@pytest.mark.parametrize("wrong", ["-1%", "101%", "40 %", "40", "%", "-1", "1.5"])
def test_what_is_no_share_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"algorithms\.swa\.from_epoch should"):
        load_config("phase1", [f"algorithms.swa.from_epoch='{wrong}'"])


@pytest.mark.parametrize(
    ("every", "last", "due"),
    [(1, 0, [1, 2, 3, 4, 5, 6, 7]), (3, 0, [3, 6, 7]), (5, 2, [5, 6, 7]), (9, 0, [7]), (None, 3, [])],
)
def test_validation_is_due_every_so_often_and_at_the_end(every: int | None, last: int, due: list[int]) -> None:
    config = EvaluationConfig(every_epochs=every, last_epochs=last)
    assert [finished for finished in range(1, 8) if config.is_due(finished, 7)] == due


def test_the_learning_rate_follows_the_batch() -> None:
    config = load_config("phase3", ["global_batch_size=512"])
    assert config.lr == 2.048 / 4
    assert load_config("phase3", ["global_batch_size=512", "optimizer.lr_batch_size=null"]).lr == 2.048


def test_the_subsets_by_name_are_those_of_the_mission() -> None:
    assert SUBSETS == {"tiny": 1_000, "small": 10_000, "medium": 100_000, "large": 500_000}
    dev = load_config("dev")
    assert (dev.data.subset_samples(), dev.schedule.epochs) == (10_000, 10)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_a_number_in_any_notation_is_a_float(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"global_batch_size: 8\noptimizer: {{lr: {text}}}\nschedule: {{epochs: 1}}\n")
    assert load_config(str(path)).optimizer.lr == 1e-4
    assert load_config("phase1", [f"optimizer.lr={text}"]).optimizer.lr == 1e-4


def test_overrides_win_over_the_file_and_the_flag_over_both() -> None:
    config = load_config(
        "phase3", ["ranks=2", "data.subset=500", "augment.scale=[0.25, 1]", "algorithms.mixup=null"], ranks=8
    )
    assert (config.ranks, config.data.subset_samples(), config.augment.scale) == (8, 500, (0.25, 1.0))
    assert config.algorithms.mixup is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=0.1", "unknown key optimizer.learning_rate"),
        ("optimizer.momentun=0.1", "unknown key optimizer.momentun (did you mean optimizer.momentum?)"),
        ("lr=0.1", "unknown key lr (did you mean optimizer.lr?)"),
        ("data.epochs=3", "unknown key data.epochs (did you mean schedule.epochs?)"),
        ("shuffle_seed=3", "unknown key shuffle_seed (did you mean data.order.shuffle_seed?)"),
        ("algorithms.mixup.alfa=0.1", "unknown key algorithms.mixup.alfa (did you mean algorithms.mixup.alpha?)"),
        ("batch_size=64", "unknown key batch_size (did you mean global_batch_size?)"),
        ("zzzz=1", "unknown key zzzz (known: recipe, seed, ranks, global_batch_size, data,"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("phase1", [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=fast", 'optimizer.lr should be a valid number, and is "fast"'),
        ("optimizer.lr='0.1'", 'optimizer.lr should be a valid number, and is "0.1"'),
        ("optimizer.lr=0", "optimizer.lr should be greater than 0, and is 0"),
        ("optimizer.lr=nan", 'optimizer.lr should be a valid number, and is "nan"'),
        ("schedule.epochs=1.5", "schedule.epochs should be a valid integer, and is 1.5"),
        ("schedule.epochs=true", "schedule.epochs should be a valid integer, and is true"),
        ("seed=-1", "seed should be greater than or equal to 0, and is -1"),
        ("algorithms.blurpool=1", "algorithms.blurpool should be 'convolutions' or 'all', and is 1"),
        ("model.depth=51", "model.depth should be 10, 18, 34, 50, 101 or 152, and is 51"),
        (
            "data.subset=huge",
            "data.subset should be 'tiny', 'small', 'medium' or 'large' or should be a valid integer, and is \"huge\"",
        ),
        ("data=5", "data is a group of keys, see `imagenet-mds configs explain data`, and is 5"),
        ("algorithms.ema=true", "is a group of keys, see `imagenet-mds configs explain algorithms.ema`, and is true"),
        ("augment.scale=[1.0, 0.5]", "augment: scale goes from 1.0 down to 0.5"),
        ("augment.scale=[0.5, 2.0]", "augment: scale ends at 2.0"),
        ("evaluation.crop_px=512", "evaluation: crop_px 512 is larger than resize_px 256"),
        ("schedule.warmup_epochs=3", "schedule: warmup_epochs 3.0 is not shorter than the 3 epochs"),
        ("ranks=3", "global_batch_size 64 does not divide over 3 ranks"),
        ("system.device_microbatch_size=24", "device_microbatch_size 24 does not divide a rank's batch of 64"),
        ("seed=5000000000", "seed should be less than 4294967296, and is 5000000000"),
    ],
)
def test_a_wrong_value_is_shown_with_what_it_should_be(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("phase1", [override])
    message = str(caught.value)
    assert words in message
    assert "phase1.yaml" not in message, "what was typed is not blamed on the file"


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"global_batch_size": 0, "optimizer": {"lr": "x"}, "data": {"subset": "huge"}}, "mine.yaml")
    assert str(caught.value).split("; ") == [
        "mine.yaml: global_batch_size should be greater than or equal to 1, and is 0",
        "data.subset should be 'tiny', 'small', 'medium' or 'large' or should be a valid integer, and is \"huge\"",
        'optimizer.lr should be a valid number, and is "x"',
        "schedule is missing",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "cannot be read as YAML|is not YAML"),
        ("a: ${nothing.there}\n", "nothing.there"),
        ("just words", "unknown key just words"),
        ("- a\n- b\n", "mine.yaml"),
        ("", "global_batch_size is missing"),
        ("\x00", "is not YAML|cannot be read as YAML"),
        ("seed: 2020-01-01\n", "mine.yaml"),
        ("seed: !!binary aGk=\n", "mine.yaml"),
        ("seed: ???\n", "mine.yaml"),
        ("a: 1\na: 2\n", "mine.yaml"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        load_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["lr", "=1", "--lr=1"])
def test_text_that_is_not_an_override_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"is not an override: write key=value"):
        load_config("phase1", [override])


@pytest.mark.parametrize("override", ["augment.scale.0=1", "data.order=[1", "seed.deep=1", "a=${", "a=${oc.env:NONE_}"])
def test_an_override_that_cannot_be_merged_is_named(override: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("phase1", [override])
    assert override in str(caught.value) or override.split(".")[0] in str(caught.value)


def test_a_wrong_ranks_option_is_not_blamed_on_the_file() -> None:
    with pytest.raises(UserError, match=r"^global_batch_size 64 does not divide over 3 ranks$"):
        load_config("phase1", ranks=3)


def test_a_missing_configuration_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no configuration phase9: pass a YAML file, or one of demo, dev, "):
        load_config("phase9")
    with pytest.raises(UserError, match="there is no configuration"):
        load_config(str(tmp_path))


def test_known_keys_reach_into_every_group() -> None:
    keys = known_keys()
    assert len(keys) == len(set(keys))
    assert {"seed", "data", "data.order.shuffle_seed", "algorithms.mixup.alpha", "augment.color_jitter.hue"} <= set(
        keys
    )


def test_the_recipe_excludes_settings_of_place_and_speed() -> None:
    config = load_config("phase3")
    moved = load_config(
        "phase3",
        ["system.precision=fp32", "data.workers_per_rank=1", "checkpoint.keep=9", "logging.every_batches=7"],
        8,
    )
    assert moved != config
    assert moved.what_is_fixed() == config.what_is_fixed()
    for change in ("seed=1", "global_batch_size=8", "data.subset=9", "data.order.shuffle_seed=1", "augment.size_px=96"):
        assert load_config("phase3", [change]).what_is_fixed() != config.what_is_fixed()


def test_a_configuration_does_not_change_after_it_is_read() -> None:
    config = parse_config(LEAST, "least")
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc] # it is frozen
