"""Numbers of things and durations in messages, and messages as one line."""

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Control characters and line separators, each with its escape in Python. Names of files may have them."""


def one_line(text: str) -> str:
    """A message with its control characters escaped, so that it is one line and changes no terminal."""
    return text.translate(_ESCAPES)


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 image`, `1,200 images`.

    Args:
        number: the number.
        one: the noun in the singular.
        many: its plural, `one` with an s if not given.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def duration(hours: float) -> str:
    """A duration: `45 s`, `12 min`, `3.4 h`."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h"
