"""The configuration of the data: which images are read, and in which order."""

from typing import Literal

from imagenet_mds.dataset.subsets import SUBSETS
from imagenet_mds.vocabulary import SubsetName
from imagenet_mds_train.config.section import NonNegative, Positive, Section


class OrderConfig(Section):
    """Streaming's ordering knobs, all of them, because its two entry points have different defaults."""

    shuffle: bool = True
    """Give each epoch an order of its own."""

    shuffle_algo: Literal["naive", "py1br", "py1e", "py1s", "py2s"] = "py1e"
    """Streaming's shuffle algorithm. `py1e` spreads each shard over a window of about a block."""

    shuffle_seed: NonNegative = 9176
    """Seed for the order of the samples; augmentation has `seed`."""

    shuffle_block_size: Positive = 1 << 14
    """Samples within which the shuffle mixes. Streaming's default is 262,144. The stored order is already random and
    balanced, and each epoch has its own order of shards, so a batch of 512 comes from some 30 shards with the classes
    in equal share; and an epoch on a remote dataset starts once 16 shards are here, not 200."""

    num_canonical_nodes: Positive = 1
    """Parts that the samples are dealt to before the ranks. Fixed, so that the order does not depend on the ranks."""

    partition_algo: Literal["orig", "relaxed"] = "relaxed"
    """How samples are dealt to nodes, ranks and workers."""

    sampling_method: Literal["balanced", "fixed"] = "balanced"
    """How samples are drawn where a stream is sampled down; this program never does."""

    sampling_granularity: Positive = 1
    """Samples drawn at a time where a stream is sampled down."""

    batching_method: Literal["random", "stratified", "per_stream", "device_per_stream"] = "random"
    """How several streams share a batch; this program has one."""


class DataConfig(Section):
    """What is read, and how."""

    subset: SubsetName | Positive | None = None
    """Train on this many images, the first of the dataset: a name, a number, or null for all."""

    workers_per_rank: NonNegative | Literal["auto"] = "auto"
    """Loader processes of each rank; 0 reads in the rank's own process. `auto` is one for each processor of the rank's
    share."""

    prefetch_batches: Positive = 2
    """Batches that each worker keeps ready."""

    predownload: Positive = 16_384
    """Samples, over all ranks and workers, whose shards are downloaded ahead from a remote dataset."""

    verify_shards: bool = True
    """Compare the hash of every shard with the manifest before the first start on a dataset."""

    damaged: Literal["stop", "black"] = "stop"
    """At a stored image that does not decode whole: `stop`, or use a `black` image without weight and count it in the
    log. Of an image with restart tiles, only the part that the crop needs must decode."""

    order: OrderConfig = OrderConfig()
    """The sample order."""

    def subset_samples(self) -> int | None:
        """The subset as a number of images; None for all."""
        return SUBSETS[self.subset] if isinstance(self.subset, str) else self.subset
