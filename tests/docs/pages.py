"""What the documentation says, in pieces that a test can hold against the code."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its text."""

    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines of a shell block, without comments and blank ones."""
        return [words for line in self.text.splitlines() if (words := shlex.join(shlex.split(line, comments=True)))]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages; all of them where none is named."""
    found = [Block(*match.groups()) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def inline(page: Path) -> list[str]:
    """What stands in single backticks outside the fenced blocks."""
    return _INLINE.findall(_prose(page))


def commands(page: Path, program: str) -> set[str]:
    """Every call of a program that a page shows, in a shell block or in backticks."""
    shown = inline(page) + [line for block in blocks(page, "sh") for line in block.lines]
    return {text for text in shown if text.split()[0] == program and len(text.split()) > 1}


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that stay in the repository."""
    return [link for link in _LINK.findall(_prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in _HEADING.findall(_prose(page))}


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
