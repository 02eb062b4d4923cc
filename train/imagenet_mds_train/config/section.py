"""What every part of the configuration has in common: frozen, strictly typed, each key with a docstring.

`configs explain` and the reference page show the docstrings of the keys.
"""

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]

EpochAt: TypeAlias = NonNegative | Annotated[str, Field(pattern=r"^(100|[0-9]{1,2}(\.[0-9]+)?)%$")]
"""An epoch, counted from 0, or a share of the run's epochs such as `40%`."""


class Section(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def epoch_of(at: EpochAt, epochs: int) -> int:
    """The number of an epoch, counted from 0; of a share, the nearest whole epoch.

    Args:
        at: the number, or a share of the epochs in percent.
        epochs: of the run.
    """
    return at if isinstance(at, int) else round(float(at.removesuffix("%")) / 100 * epochs)
