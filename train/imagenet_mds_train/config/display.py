"""A configuration for people: as YAML with the layer that set each value, and in one line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from imagenet_mds.words import counted
from imagenet_mds_train.config.schema import TrainConfig

_COMMENT_COLUMN = 44


def as_yaml(config: TrainConfig, origins: Mapping[str, str]) -> str:
    """Return every value of a configuration, YAML that can be read back. A comment says which layer set it.

    Args:
        config: the configuration.
        origins: the layer that set a key, by its dotted path, as `origins` gives it. A key that is missing there has
            its default and gets no comment.
    """
    return "\n".join(_lines(config.model_dump(mode="json"), origins, "")) + "\n"


def _lines(group: Mapping[str, Any], origins: Mapping[str, str], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in group.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield _with_origin(f"{indent}{name}:", origins.get(path))
            yield from _lines(value, origins, f"{path}.")
        else:
            yield _with_origin(f"{indent}{name}: {json.dumps(value)}", origins.get(path))


def _with_origin(line: str, origin: str | None) -> str:
    return line if origin is None else f"{line:{_COMMENT_COLUMN}}# {origin}"


def in_words(config: TrainConfig) -> str:
    """Return what a configuration trains, in one line."""
    first, last = config.size_at(0), config.augment.size_px
    return ", ".join(
        [
            f"recipe {config.recipe}" if config.recipe else "no recipe",
            f"ResNet-{config.model.depth}",
            counted(config.schedule.epochs, "epoch"),
            f"{config.global_batch_size:,} images a step on {counted(config.ranks, 'rank')}",
            f"learning rate {config.lr:g}",
            f"{last} px" if first == last else f"{first} to {last} px",
            config.loss.replace("_", " "),
            "algorithms: " + (", ".join(switched_on(config)) or "none"),
        ]
    )


def switched_on(config: TrainConfig) -> list[str]:
    """Return the names of the algorithms that are on."""
    return [name for name, value in config.algorithms if value]
