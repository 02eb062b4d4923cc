"""The configured recipe as Composer's objects. The order of the algorithms is fixed here, not in the YAML.

To add an algorithm: give it a section in `config.schema.AlgorithmsConfig`, build it here at its place in the order, and
add it to the recipe of the resume tests.
"""

from composer.algorithms import ChannelsLast, CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm

from imagenet_mds_train.config.schema import AlgorithmsConfig
from imagenet_mds_train.recipe.average import EMA
from imagenet_mds_train.recipe.distributed import StaticBuckets
from imagenet_mds_train.recipe.mixing import MixUpOrCutMix


def build_algorithms(config: AlgorithmsConfig, *, deterministic: bool) -> list[Algorithm]:
    """The algorithms that are on, in their right order: mixing before smoothing, the average last.

    BlurPool is not among them: it changes the network, so `model.build` applies it.
    """
    algorithms: list[Algorithm] = []
    if config.channels_last:
        algorithms.append(ChannelsLast())
    mixup = MixUp(alpha=config.mixup.alpha) if config.mixup else None
    cutmix = CutMix(alpha=config.cutmix.alpha) if config.cutmix else None
    if mixup and cutmix:
        algorithms.append(MixUpOrCutMix(mixup, cutmix))
    else:
        algorithms += [algorithm for algorithm in (mixup, cutmix) if algorithm]
    if config.label_smoothing:
        algorithms.append(LabelSmoothing(smoothing=config.label_smoothing.smoothing))
    if config.ema:
        algorithms.append(EMA(config.ema.half_life_batches))
    if deterministic:
        algorithms.append(StaticBuckets())
    return algorithms
