"""The pages of the documentation, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "infra" / "README.md", *sorted((ROOT / "infra").glob("*/README.md"))]

_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|/)imagenet-mds (.+)$")
_INLINE = re.compile(r"`imagenet-mds ([\w-][^`]*)`")


@dataclass(frozen=True)
class Line:
    """A command line of a page, without the program's name."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: imagenet-mds {shlex.join(self.words)}"


def lines_in_blocks() -> list[Line]:
    """Each line of a code block that calls the program, those of systemd units too."""
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for text in block.replace("\\\n", " ").splitlines():
                if command := _COMMAND.search(text):
                    found.append(Line(_name(page), tuple(shlex.split(command[1], comments=True))))
    return found


def lines_in_text() -> Iterator[Line]:
    """Each mention of a command between backticks. Its words may be placeholders."""
    for page in PAGES:
        text = re.sub(_BLOCK, "", page.read_text(encoding="utf-8"))
        for command in _INLINE.findall(text):
            yield Line(_name(page), tuple(command.replace("\\|", "|").replace("\n", " ").split()))


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))
