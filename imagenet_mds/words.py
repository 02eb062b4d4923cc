"""Numbers of things in messages."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 image`, `1,200 images`.

    Args:
        number: the number.
        one: the noun in the singular.
        many: its plural, `one` with an s if not given.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
