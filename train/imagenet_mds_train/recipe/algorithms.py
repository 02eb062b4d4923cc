"""The part of the recipe that acts on Composer's events. Its order is fixed here, not in the YAML.

What acts on batches is in `augment.mixing`, what changes the network in `model.build`, SAM in `recipe.optimizer`. To
add an algorithm: give it a section in `config.recipe.AlgorithmsConfig`, build it in one of these places, and add it to
the recipes of the resume tests.
"""

from composer.core import Algorithm

from imagenet_mds_train.config.recipe import AlgorithmsConfig
from imagenet_mds_train.config.section import epoch_of
from imagenet_mds_train.recipe.average import EMA, SWA, WeightAverage
from imagenet_mds_train.recipe.distributed import StaticBuckets
from imagenet_mds_train.recipe.overflow import OverflowGuard


def build_algorithms(
    config: AlgorithmsConfig, *, epochs: int, fp16: bool, deterministic: bool, log_every_batches: int
) -> list[Algorithm]:
    """The algorithms that are on, in their right order: the average takes statistics that did not overflow.

    Args:
        config: the recipe's.
        epochs: of the run.
        fp16: whether it computes in fp16.
        deterministic: whether gradients are added up in the same order after a resume.
        log_every_batches: batches between logged distances of the average.
    """
    algorithms: list[Algorithm] = []
    if fp16:
        algorithms.append(OverflowGuard())
    if config.ema:
        algorithms.append(EMA(config.ema.half_life_batches, config.ema.every_batches))
    if config.swa:
        algorithms.append(SWA(epoch_of(config.swa.from_epoch, epochs)))
    for average in algorithms:
        if isinstance(average, WeightAverage):
            average.log_every_batches = log_every_batches
    if deterministic:
        algorithms.append(StaticBuckets())
    return algorithms
