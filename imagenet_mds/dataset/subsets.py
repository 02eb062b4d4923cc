"""Subsets of the training images, by name or by number."""

from imagenet_mds.errors import UserError

SUBSETS = {"tiny": 1_000, "small": 10_000, "medium": 100_000, "large": 500_000}
"""Number of training images of each named subset. Each subset is a prefix of the next."""


def parse_subset(text: str | None) -> int | None:
    """Return the number of images of a subset given by name or number, None for all.

    Raises:
        UserError: the text is neither a name nor a number.
    """
    if text is None or text == "full":
        return None
    if text in SUBSETS:
        return SUBSETS[text]
    number = text.replace("_", "").replace(",", "")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--subset {text}: give {', '.join(SUBSETS)}, full or a number of images, 1 or more")
    return int(number)
