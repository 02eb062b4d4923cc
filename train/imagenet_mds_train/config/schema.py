"""The training configuration: one tree of frozen, strictly typed models.

Everything that changes a result is in this tree; paths and operations are options of the command. An unknown key is an
error that names the nearest known one.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from imagenet_mds.dataset.subsets import SUBSETS
from imagenet_mds.vocabulary import SubsetName

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OrderConfig(_Section):
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


class DataConfig(_Section):
    """What is read, and how."""

    subset: SubsetName | Positive | None = None
    """Train on this many images, the first of the dataset: a name, a number, or null for all."""

    workers_per_rank: NonNegative = 2
    """Loader processes of each rank; 0 reads in the rank's own process."""

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

    def subset_samples(self) -> int | None:
        """The subset as a number of images; None for all."""
        return SUBSETS[self.subset] if isinstance(self.subset, str) else self.subset


class ColorJitterConfig(_Section):
    """torchvision's ColorJitter: brightness, contrast and saturation are scaled by 1 plus or minus at most this, and
    the hue is turned by at most this."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


class RandAugmentConfig(_Section):
    """torchvision's RandAugment: `depth` operations per image, each of magnitude `severity` out of 30."""

    severity: Annotated[int, Field(ge=0, le=30)] = 9
    depth: Positive = 2


class ProgressiveConfig(_Section):
    """Progressive resizing (Howard 2018; the schedule is ffcv's): images of `start_px` until `from_epoch`, then evenly
    larger in steps of `step_px`, and the full size from `until_epoch`. Epochs are counted from 0."""

    start_px: Annotated[int, Field(ge=8)] = 160
    from_epoch: NonNegative = 0
    until_epoch: Positive
    step_px: Positive = 32


class AugmentConfig(_Section):
    """What training does to an image: a random crop with a share of the area within `scale` and an aspect ratio within
    `ratio`, resized to `size_px`, or to less in the first epochs with `progressive`.

    resize: `antialias` weighs every pixel, as Pillow and torchvision do; `linear` takes the nearest four, as tf.data
        does.
    """

    size_px: Annotated[int, Field(ge=8)] = 224
    progressive: ProgressiveConfig | None = None
    resize: Literal["antialias", "linear"] = "antialias"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip_probability: Fraction = 0.5
    color_jitter: ColorJitterConfig | None = None
    randaugment: RandAugmentConfig | None = None

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentConfig":
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} goes from {low} down to {high}: put the smaller number first")
        if self.scale[1] > 1:
            raise ValueError(f"scale ends at {self.scale[1]}: a crop covers at most the whole area, 1.0")
        if (steps := self.progressive) and steps.start_px > self.size_px:
            raise ValueError(f"progressive.start_px {steps.start_px} is larger than size_px {self.size_px}")
        if steps and steps.from_epoch >= steps.until_epoch:
            raise ValueError(
                f"progressive goes from epoch {steps.from_epoch} to epoch {steps.until_epoch}: choose a later end"
            )
        return self

    def size_at(self, epoch: int) -> int:
        """The training size of an epoch, counted from 0, in pixels on each side."""
        steps = self.progressive
        if steps is None or epoch >= steps.until_epoch:
            return self.size_px
        gone = max(0, epoch - steps.from_epoch)
        grown = (self.size_px - steps.start_px) * gone // (steps.until_epoch - steps.from_epoch)
        return steps.start_px + grown // steps.step_px * steps.step_px


class EvaluationConfig(_Section):
    """Validation, every `every_epochs` and at the end, or never with null: the shorter side is resized to `resize_px`,
    then the centre `crop_px` is cropped.

    resize: `reference` is exactly Pillow's result; `antialias` and `linear` use training's fast decoder.
    """

    resize_px: Annotated[int, Field(ge=8)] = 256
    crop_px: Annotated[int, Field(ge=8)] = 224
    resize: Literal["reference", "antialias", "linear"] = "reference"
    device_batch_size: Positive = 128
    workers_per_rank: NonNegative = 2
    every_epochs: Positive | None = 1

    @model_validator(mode="after")
    def _crop_fits(self) -> "EvaluationConfig":
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}")
        return self


class ModelConfig(_Section):
    """A torchvision ResNet. Depth 10 has one block per stage and suits a CPU.

    classes: number of outputs; null takes it from the dataset's manifest, or ImageNet's 1,000 without one.
    """

    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    classes: Positive | None = None


class OptimizerConfig(_Section):
    """SGD. `lr` is the rate for `global_batch_size` as configured; nothing scales it. `decay_norm_and_bias` applies
    weight decay to BatchNorm and biases too, as the original ResNet does."""

    lr: PositiveFloat
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    decay_norm_and_bias: bool = True


class ScheduleConfig(_Section):
    """Linear warm-up over `warmup_epochs`, then a cosine down to `final_lr_fraction` of the learning rate."""

    epochs: Positive
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    final_lr_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is not shorter than the {self.epochs} epochs")
        return self


class MixUpConfig(_Section):
    """MixUp (Zhang et al. 2018)."""

    alpha: PositiveFloat = 0.2


class CutMixConfig(_Section):
    """CutMix (Yun et al. 2019). With MixUp on as well, each batch gets one of the two, by a fair coin."""

    alpha: PositiveFloat = 1.0


class LabelSmoothingConfig(_Section):
    """Label smoothing (Szegedy et al. 2016)."""

    smoothing: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class EMAConfig(_Section):
    """An exponential moving average of the weights, which validation and the saved model use."""

    half_life_batches: Positive = 50


class AlgorithmsConfig(_Section):
    """Algorithms: on where a value is given, off where it is null. Their order is fixed in code."""

    mixup: MixUpConfig | None = None
    cutmix: CutMixConfig | None = None
    label_smoothing: LabelSmoothingConfig | None = None
    ema: EMAConfig | None = None
    blurpool: bool = False
    channels_last: bool = False


class CheckpointConfig(_Section):
    """A checkpoint every `every_batches` and at the end of each epoch, of which the last `keep` are kept, and two at
    least."""

    every_batches: Positive | None = None
    keep: Positive = 2


class SystemConfig(_Section):
    """How the run computes."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` is a GPU where there is one; `gpu` refuses to start without."""

    precision: Literal["auto", "fp32", "amp_fp16", "amp_bf16"] = "auto"
    """`auto` is fp16 on a GPU and fp32 on a CPU."""

    deterministic: bool = False
    """Bit-identical weights with the same number of ranks and threads, at the cost of speed."""

    device_microbatch_size: Positive | None = None
    """Split a rank's batch into parts of this many images, to fit its memory. BatchNorm then sees the parts."""

    dist_timeout_seconds: Positive = 600
    """How long ranks wait for each other before they give up."""


class LoggingConfig(_Section):
    """How often the run reports."""

    every_batches: Positive = 20
    """Batches between lines of the log."""

    print_every_batches: Positive = 20
    """Batches between lines on the screen."""


class TrainConfig(_Section):
    """One training run.

    seed: for initialisation and augmentation, of 32 bits as NumPy takes it; the sample order has a seed of its own,
        `data.order.shuffle_seed`.
    ranks: processes, one per GPU; the command's --ranks overrides it.
    global_batch_size: images of one optimizer step, over all ranks.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 17
    ranks: Positive = 1
    global_batch_size: Positive
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    algorithms: AlgorithmsConfig = AlgorithmsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    system: SystemConfig = SystemConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        if self.global_batch_size % self.ranks:
            raise ValueError(f"global_batch_size {self.global_batch_size} does not divide over {self.ranks} ranks")
        micro = self.system.device_microbatch_size
        if micro and micro < self.device_batch_size and self.device_batch_size % micro:
            raise ValueError(
                f"system.device_microbatch_size {micro} does not divide a rank's batch of {self.device_batch_size}"
            )
        return self

    @property
    def device_batch_size(self) -> int:
        """Images that one rank contributes to a step."""
        return self.global_batch_size // self.ranks

    def recipe(self) -> dict[str, Any]:
        """What must not change within a run: everything that decides the weights, and nothing that only decides where
        and how fast it runs."""
        return self.model_dump(
            mode="json",
            include={
                "seed": True,
                "global_batch_size": True,
                "data": {"subset": True, "order": True},
                "augment": True,
                "model": True,
                "optimizer": True,
                "schedule": True,
                "algorithms": True,
                # A batch in parts has other BatchNorm statistics and is mixed part by part.
                "system": {"device_microbatch_size": True},
            },
        )
