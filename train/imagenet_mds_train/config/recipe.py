"""The configuration of the recipe: network, loss, optimizer, schedule, algorithms."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from imagenet_mds_train.config.section import EpochAt, Fraction, Positive, PositiveFloat, Section


class ModelConfig(Section):
    """A torchvision ResNet."""

    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    """Layers of the network. Depth 10 has one block per stage and suits a CPU."""

    classes: Positive | None = None
    """Number of outputs; null takes it from the dataset's manifest, or ImageNet's 1,000 without one."""


class OptimizerConfig(Section):
    """SGD with momentum."""

    lr: PositiveFloat
    """The learning rate after the warm-up, for `lr_batch_size` images a step."""

    lr_batch_size: Positive | None = None
    """With a number, the rate is `lr` times `global_batch_size` by this number (Goyal et al. 2017). With null, it is
    `lr` for any `global_batch_size`."""

    momentum: Fraction = 0.9
    """Momentum."""

    nesterov: bool = False
    """Nesterov's momentum."""

    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight decay: added to the gradient, or with `decoupled` taken off the weights."""

    decay_norm_and_bias: bool = True
    """Apply weight decay to BatchNorm and biases too, as the original ResNet does."""

    decoupled: bool = False
    """Take `weight_decay` off the weights in each step, in proportion to the schedule but not to `lr` (Loshchilov,
    Hutter 2019)."""

    def scaled_lr(self, global_batch_size: int) -> float:
        """The learning rate after the warm-up for a number of images a step."""
        return self.lr if self.lr_batch_size is None else self.lr * global_batch_size / self.lr_batch_size

    def configured_lr(self, scaled_lr: float, global_batch_size: int) -> float:
        """The value of `lr` that gives this learning rate for a number of images a step."""
        return scaled_lr if self.lr_batch_size is None else scaled_lr * self.lr_batch_size / global_batch_size


class ScheduleConfig(Section):
    """A linear warm-up, then a cosine."""

    epochs: Positive
    """Epochs of the run."""

    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Epochs over which the learning rate rises linearly."""

    final_lr_fraction: Fraction = 0.0
    """What the cosine falls to, as a share of the learning rate."""

    @model_validator(mode="after")
    def _warmup_ends(self) -> "ScheduleConfig":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is not shorter than the {self.epochs} epochs")
        return self


class MixUpConfig(Section):
    """MixUp (Zhang et al. 2018)."""

    alpha: PositiveFloat = 0.2
    """Of the beta distribution that an image's share is drawn from; 0.2 leaves most images nearly whole."""


class CutMixConfig(Section):
    """CutMix (Yun et al. 2019). With MixUp on as well, each batch gets one of the two, by a fair coin."""

    alpha: PositiveFloat = 1.0
    """Of the beta distribution that the share of the area is drawn from; 1 is uniform."""


class ColOutConfig(Section):
    """ColOut (MosaicML): random rows and columns of a batch's images are left out, so that a step costs less."""

    rows: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """The share of rows left out."""

    columns: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.15
    """The share of columns left out."""


class LabelSmoothingConfig(Section):
    """Label smoothing (Szegedy et al. 2016)."""

    smoothing: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of the label that is spread evenly over all classes."""


class StochasticDepthConfig(Section):
    """Stochastic depth (Huang et al. 2016), sample by sample: a residual branch is left out of a step at random, the
    last one with `drop_rate` and those before it in proportion to their depth."""

    drop_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The share of samples without the last branch."""


class EMAConfig(Section):
    """An exponential moving average of the weights, which validation and the saved model use."""

    half_life_batches: Positive = 50
    """Batches after which a weight counts half."""

    every_batches: Positive = 1
    """Batches between updates of the average."""


class SWAConfig(Section):
    """An even average of the weights at the ends of the last epochs (Izmailov et al. 2018), which validation and the
    saved model use. Statistics of BatchNorm are averaged like weights."""

    from_epoch: EpochAt = "70%"
    """The epoch from whose end on weights are averaged, counted from 0, or a share of all epochs."""


class SAMConfig(Section):
    """Sharpness-aware minimization (Foret et al. 2021): the gradient of a step is taken where the loss is highest
    nearby, which takes a second pass. Each rank goes there by its own part of the batch."""

    rho: PositiveFloat = 0.5
    """How far away the gradient is taken, as a norm over all weights."""

    every_batches: Positive = 10
    """A step with SAM, of this many. With 1, training takes twice as long."""


BlurPool = Literal["convolutions", "all"]


class AlgorithmsConfig(Section):
    """Algorithms: on where a value is given, off where it is null. Their order is fixed in code."""

    mixup: MixUpConfig | None = None
    """Mixes each image with another one of its batch."""

    cutmix: CutMixConfig | None = None
    """Pastes a rectangle of another image of the batch into each."""

    colout: ColOutConfig | None = None
    """Leaves rows and columns of the images out."""

    label_smoothing: LabelSmoothingConfig | None = None
    """Softens the labels."""

    stochastic_depth: StochasticDepthConfig | None = None
    """Leaves residual branches out at random."""

    ema: EMAConfig | None = None
    """Averages the weights over the last batches."""

    swa: SWAConfig | None = None
    """Averages the weights over the last epochs."""

    sam: SAMConfig | None = None
    """Looks for flat minima."""

    blurpool: BlurPool | None = None
    """Filter before each stride (Zhang 2019): of `convolutions`, or of `all` with the max pool, which takes 11% of a
    step on an H200 without a known gain. `true` is `all`, as in earlier versions."""

    channels_last: bool = False
    """Keep the weights in the memory format that GPUs compute in fastest."""

    @field_validator("blurpool", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: "all", False: None}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_average(self) -> "AlgorithmsConfig":
        if self.ema and self.swa:
            raise ValueError(
                "ema and swa are both on, and a run has one average of its weights: set one of them to null"
            )
        return self


Loss = Literal["cross_entropy", "binary_cross_entropy"]
