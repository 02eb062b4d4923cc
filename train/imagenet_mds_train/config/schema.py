"""The training configuration: one tree of frozen, strictly typed models, from one YAML file and `key=value` overrides.

OmegaConf reads and merges (it reads `1e-4` as a number, which PyYAML does not); pydantic checks types and bounds. An
unknown key is an error that names the nearest known one. Everything that changes a result stands in this tree; paths
and operations are flags of the command.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from imagenet_mds.dataset.subsets import SUBSETS

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OrderConfig(_Section):
    """Streaming's ordering knobs, every one of them: the library has two sets of defaults (traps of its own).

    The block within which samples are shuffled is 16,384 where the library has 262,144. The stored order is random and
    balanced already and each epoch has its own order of shards, so that a batch of 512 comes from some 30 of them with
    the classes in equal share; and an epoch of a dataset that lies elsewhere begins when 16 shards are here, not 200.
    """

    shuffle: bool = True
    shuffle_algo: Literal["naive", "py1br", "py1e", "py1s", "py2s"] = "py1e"
    shuffle_seed: NonNegative = 9176
    shuffle_block_size: Positive = 1 << 14
    num_canonical_nodes: Positive = 1
    partition_algo: Literal["orig", "relaxed"] = "relaxed"
    sampling_method: Literal["balanced", "fixed"] = "balanced"
    sampling_granularity: Positive = 1
    batching_method: Literal["random", "stratified", "per_stream", "device_per_stream"] = "random"


class DataConfig(_Section):
    """What is read, and how.

    subset: train on this many images, the first of the dataset; a name, a number, or null for all.
    workers_per_rank: loader processes of each rank; 0 reads in the rank's own process.
    prefetch_batches: batches that each worker keeps ready.
    predownload: samples, over all ranks and workers, whose shards are fetched ahead where the dataset lies elsewhere.
    verify_shards: compare every shard's hash with the manifest before the first start on this dataset.
    damaged: at a stored image that does not decode whole, `stop`, or take a `black` one without weight, counted in the
        log; of an image with restart tiles, what the crop needs must decode.
    """

    subset: Literal["tiny", "small", "medium", "large"] | Positive | None = None
    workers_per_rank: NonNegative = 2
    prefetch_batches: Positive = 2
    predownload: Positive = 16_384
    verify_shards: bool = True
    damaged: Literal["stop", "black"] = "stop"
    order: OrderConfig = OrderConfig()

    def subset_samples(self) -> int | None:
        """The subset as a number of images; None for all."""
        return SUBSETS[self.subset] if isinstance(self.subset, str) else self.subset


class ColorJitterConfig(_Section):
    """Each image's brightness, contrast, saturation scaled by 1 +- at most this, its hue turned by at most this."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0


class RandAugmentConfig(_Section):
    """`depth` operations an image, each of `severity` out of 30."""

    severity: Annotated[int, Field(ge=0, le=30)] = 9
    depth: Positive = 2


class ProgressiveConfig(_Section):
    """Smaller pictures first (Howard 2018; the schedule is ffcv's): `start_px` until `from_epoch`, then evenly more, in
    steps of `step_px`, up to the full size from `until_epoch` on. Epochs count from 0."""

    start_px: Annotated[int, Field(ge=8)] = 160
    from_epoch: NonNegative = 0
    until_epoch: Positive
    step_px: Positive = 32


class AugmentConfig(_Section):
    """What training does to an image: a random crop of `scale` of the area and `ratio` of the sides, resized to
    `size_px`; with `progressive` to less in the first epochs.

    resize: `antialias` weighs every pixel, as Pillow and torchvision do; `linear` takes the nearest four, as tf.data.
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
                raise ValueError(f"{name} goes from {low} down to {high}: give the smaller number first")
        if self.scale[1] > 1:
            raise ValueError(f"scale ends at {self.scale[1]}: a crop has at most all of the area, 1.0")
        if (steps := self.progressive) and steps.start_px > self.size_px:
            raise ValueError(f"progressive.start_px {steps.start_px} is larger than size_px {self.size_px}")
        if steps and steps.from_epoch >= steps.until_epoch:
            raise ValueError(
                f"progressive goes from epoch {steps.from_epoch} to epoch {steps.until_epoch}: give a later end"
            )
        return self

    def size_at(self, epoch: int) -> int:
        """The training size of an epoch (from 0), pixels on each side."""
        steps = self.progressive
        if steps is None or epoch >= steps.until_epoch:
            return self.size_px
        gone = max(0, epoch - steps.from_epoch)
        grown = (self.size_px - steps.start_px) * gone // (steps.until_epoch - steps.from_epoch)
        return steps.start_px + grown // steps.step_px * steps.step_px


class EvaluationConfig(_Section):
    """Validation: the shorter side to `resize_px`, the centre `crop_px`; every `every_epochs` and at the end.

    resize: `reference` is Pillow's result exactly; `antialias` and `linear` take training's fast way.
    """

    resize_px: Annotated[int, Field(ge=8)] = 256
    crop_px: Annotated[int, Field(ge=8)] = 224
    resize: Literal["reference", "antialias", "linear"] = "reference"
    device_batch_size: Positive = 128
    workers_per_rank: NonNegative = 2
    every_epochs: Positive = 1

    @model_validator(mode="after")
    def _crop_fits(self) -> "EvaluationConfig":
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}")
        return self


class ModelConfig(_Section):
    """A torchvision ResNet; depth 10 is one block a stage, for a CPU.

    classes: outputs; null for those of the dataset's manifest, or ImageNet's 1,000 where it has none.
    """

    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    classes: Positive | None = None


class OptimizerConfig(_Section):
    """SGD. `lr` is for `global_batch_size` as configured; nothing scales it. `decay_norm_and_bias` puts weight decay on
    BatchNorm and biases too, as the original ResNet does."""

    lr: PositiveFloat
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    decay_norm_and_bias: bool = True


class ScheduleConfig(_Section):
    """Linear warm-up over `warmup_epochs`, then a cosine to `final_lr_fraction` of the rate."""

    epochs: Positive
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    final_lr_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        return self


class MixUpConfig(_Section):
    """MixUp (Zhang et al. 2018)."""

    alpha: PositiveFloat = 0.2


class CutMixConfig(_Section):
    """CutMix (Yun et al. 2019). With MixUp too, each batch gets one of the two, by a fair coin."""

    alpha: PositiveFloat = 1.0


class LabelSmoothingConfig(_Section):
    """Label smoothing (Szegedy et al. 2016)."""

    smoothing: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class EMAConfig(_Section):
    """A moving average of the weights, which validation and the checkpoint's model use."""

    half_life_batches: Positive = 50


class AlgorithmsConfig(_Section):
    """Each is on where it is given, off where it is null. Their order is fixed in code."""

    mixup: MixUpConfig | None = None
    cutmix: CutMixConfig | None = None
    label_smoothing: LabelSmoothingConfig | None = None
    ema: EMAConfig | None = None
    blurpool: bool = False
    channels_last: bool = False


class CheckpointConfig(_Section):
    """A checkpoint every `every_batches` and at each epoch's end; the last `keep` stay."""

    every_batches: Positive | None = None
    keep: Positive = 2


class SystemConfig(_Section):
    """How it runs. `auto` precision is fp16 on a GPU, fp32 on a CPU. `deterministic` gives bit-identical weights for
    the same ranks, and costs speed. `device_microbatch_size` splits a rank's batch to fit its memory; BatchNorm then
    sees the parts."""

    precision: Literal["auto", "fp32", "amp_fp16", "amp_bf16"] = "auto"
    deterministic: bool = False
    device_microbatch_size: Positive | None = None
    dist_timeout_seconds: Positive = 600


class LoggingConfig(_Section):
    """A line in the log every `every_batches`, and one on the screen every `print_every_batches`."""

    every_batches: Positive = 20
    print_every_batches: Positive = 20


class TrainConfig(_Section):
    """One training run.

    seed: of initialisation and augmentation, of 32 bits as NumPy takes it; the sample order has its own,
        `data.order.shuffle_seed`.
    ranks: processes, one a GPU; the command's --ranks wins.
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
        """What must not change within a run: all that decides the weights, nothing of where and how fast it runs."""
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
                # A batch in parts has other BatchNorm statistics, and is mixed part by part.
                "system": {"device_microbatch_size": True},
            },
        )
