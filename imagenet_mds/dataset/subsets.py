"""Subsets by name."""

from imagenet_mds.errors import UserError

SUBSETS = {"tiny": 1_000, "small": 10_000, "medium": 100_000, "large": 500_000}
"""Subsets by name, in training images. They are nested: each is a prefix of the next."""


def parse_subset(text: str | None) -> int | None:
    """A subset by name or number.

    Raises:
        UserError: neither.
    """
    if text is None or text == "full":
        return None
    if text in SUBSETS:
        return SUBSETS[text]
    number = text.replace("_", "").replace(",", "")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--subset {text}: give {', '.join(SUBSETS)}, full or a number of images, 1 or more")
    return int(number)
