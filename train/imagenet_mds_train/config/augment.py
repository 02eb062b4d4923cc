"""The configuration of the augmentation: what training does to each image."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagenet_mds_train.config.section import EpochAt, Fraction, Positive, PositiveFloat, Section, epoch_of


class ColorJitterConfig(Section):
    """torchvision's ColorJitter."""

    brightness: Fraction = 0.0
    """The brightness is scaled by 1 plus or minus at most this."""

    contrast: Fraction = 0.0
    """The contrast is scaled by 1 plus or minus at most this."""

    saturation: Fraction = 0.0
    """The saturation is scaled by 1 plus or minus at most this."""

    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """The hue is turned by at most this, where 1 is the whole circle."""


class RandAugmentConfig(Section):
    """torchvision's RandAugment."""

    severity: Annotated[int, Field(ge=0, le=30)] = 9
    """Magnitude of each operation, out of 30. Composer's scale is another: 0 to 10, drawn uniformly below it."""

    depth: Positive = 2
    """Operations on an image."""


class ProgressiveConfig(Section):
    """Progressive resizing (Howard 2018): small images until `from_epoch`, then evenly larger ones, and the full size
    from `until_epoch` on. Small images cost less to decode and to train on."""

    start_px: Annotated[int, Field(ge=8)] = 160
    """The size at the start, in pixels on each side."""

    from_epoch: EpochAt = 0
    """The epoch from which images grow, counted from 0, or a share of all epochs such as `40%`."""

    until_epoch: EpochAt
    """The epoch from which images have the full size."""

    step_px: Positive = 32
    """Pixels by which the size grows at a time."""


class AugmentConfig(Section):
    """What training does to an image: a random crop, resized to `size_px`, then a flip, RandAugment, ColorJitter."""

    size_px: Annotated[int, Field(ge=8)] = 224
    """The size of a training image, in pixels on each side."""

    progressive: ProgressiveConfig | None = None
    """Smaller images in the first epochs."""

    resize: Literal["antialias", "linear"] = "antialias"
    """`antialias` weighs every pixel, as Pillow and torchvision do; `linear` takes the nearest four, as tf.data
    does."""

    half_copies: bool = True
    """Decode crops of at least twice the training size from the half-size copies of a dataset made with
    `convert --half`. Set it to false to decode every crop from the whole image."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """The smallest and largest share of the image's area that a crop takes."""

    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """The smallest and largest width by height of a crop."""

    flip_probability: Fraction = 0.5
    """The share of images that are mirrored."""

    color_jitter: ColorJitterConfig | None = None
    """ColorJitter, computed on the device."""

    randaugment: RandAugmentConfig | None = None
    """RandAugment, computed by the loader's workers."""

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
        return self

    def refuse_wrong_steps(self, epochs: int) -> None:
        """Refuse a progressive size that ends before it starts.

        Raises:
            ValueError: it does.
        """
        if (steps := self.progressive) is None:
            return
        first, last = (epoch_of(at, epochs) for at in (steps.from_epoch, steps.until_epoch))
        if first >= last:
            raise ValueError(f"augment.progressive goes from epoch {first} to epoch {last}: choose a later end")

    def size_at(self, epoch: int, epochs: int) -> int:
        """The training size of an epoch, in pixels on each side.

        Args:
            epoch: counted from 0.
            epochs: of the run.
        """
        if (steps := self.progressive) is None:
            return self.size_px
        first, last = (epoch_of(at, epochs) for at in (steps.from_epoch, steps.until_epoch))
        if epoch >= last:
            return self.size_px
        grown = (self.size_px - steps.start_px) * max(0, epoch - first) // (last - first)
        return steps.start_px + grown // steps.step_px * steps.step_px
