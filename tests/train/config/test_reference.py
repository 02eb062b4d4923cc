from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.resources import config_names, recipe_names
from imagenet_mds_train.config.display import as_yaml, in_words
from imagenet_mds_train.config.explain import known_keys
from imagenet_mds_train.config.load import load_config, load_layers, origins
from imagenet_mds_train.config.reference import all_keys, explained, keys_of, reference_page

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_every_key_has_a_text_and_a_type() -> None:
    keys = all_keys()
    assert sorted(key.path for key in keys) == sorted(known_keys())
    assert all(len(key.text) > 5 and len(key.values) > 5 for key in keys), keys


def test_the_reference_page_is_what_the_docstrings_say() -> None:
    assert _PAGE.read_text(encoding="utf-8") == reference_page(), (
        "run `imagenet-mds configs explain --markdown > docs/configuration.md`"
    )


def test_a_key_is_explained_with_its_value_in_each_configuration() -> None:
    text = explained(keys_of("optimizer.lr_batch_size"))
    assert "default null" in text
    assert text.splitlines()[-1].split() == ["phase3", "2048"]
    assert "phase1   off" in explained(keys_of("ema.every_batches"))


def test_a_group_is_explained_with_its_keys() -> None:
    assert [key.path for key in keys_of("sam")] == [
        "algorithms.sam",
        "algorithms.sam.rho",
        "algorithms.sam.every_batches",
    ]
    assert "algorithms.sam.rho" in explained(keys_of("sam"))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimiser.lr", "did you mean optimizer.lr"),
        ("lrr", r"did you mean optimizer\.lr"),
        ("quite another", "lists all of them"),
        ("evaluation.every", "did you mean evaluation.every_epochs"),
        ("every_batches", "checkpoint.every_batches"),
        ("", "lists all of them"),
    ],
)
def test_an_unknown_key_is_refused_with_a_hint(key: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        keys_of(key)


@pytest.mark.parametrize("name", [*config_names(), *recipe_names()])
def test_a_shown_configuration_can_be_read_back(name: str, tmp_path: Path) -> None:
    given = ["optimizer.lr=1e-5", "algorithms.label_smoothing=null", "augment.color_jitter={hue: 0.1}"]
    config = load_config(name, given)
    shown = tmp_path / "shown.yaml"
    shown.write_text(as_yaml(config, origins(load_layers(name, given))), encoding="utf-8")
    assert load_config(str(shown)) == config


def test_a_shown_value_names_the_layer_that_set_it() -> None:
    given = ["optimizer.lr=0.3", "algorithms.ema=null", "algorithms.swa={}"]
    lines = as_yaml(load_config("phase3", given, ranks=2), origins(load_layers("phase3", given, ranks=2))).splitlines()
    origin = {line.split("#")[0].strip(): line.partition("# ")[2] for line in lines}
    assert origin['recipe: "medium"'] == "phase3"
    assert origin["lr: 0.3"] == origin["ema: null"] == origin["swa:"] == origin["ranks: 2"] == "command line"
    assert origin["momentum: 0.875"] == "recipe medium"
    assert origin["nesterov: false"] == ""


def test_a_configuration_in_words() -> None:
    words = in_words(load_config("phase3"))
    assert words.startswith("recipe medium, ResNet-50, 120 epochs, 2,048 images a step on 4 ranks, learning rate 2.048")
    assert "88 to 176 px" in words
    assert words.endswith("algorithms: mixup, label_smoothing, ema, sam, blurpool, channels_last")
