"""The documents for people, as tests read them: files, and the code blocks in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n|^\n)+", re.MULTILINE)


class Block(NamedTuple):
    """A piece of code in a document."""

    language: str
    title: str
    text: str


def documents() -> list[Path]:
    """Every Markdown file that people read."""
    folders = (ROOT, ROOT / "docs" / "pages", ROOT / "docs" / "pages" / "tasks")
    found = [path for folder in folders for path in folder.glob("*.md")]
    return sorted([*found, *(ROOT / "experiments").glob("*/*.md"), *(ROOT / "conf").rglob("*.md")])


def fenced(text: str) -> list[Block]:
    """Blocks between fences, in order."""
    return [Block(*found.groups(default="")) for found in FENCE.finditer(text)]


def shell_lines(text: str) -> Iterator[str]:
    """Every line that a reader would type: of `sh` blocks and of indented ones, continued lines joined."""
    blocks = [block.text for block in fenced(text) if block.language == "sh"]
    without = FENCE.sub("", text)
    blocks += [re.sub(r"^    ", "", part[0], flags=re.MULTILINE) for part in INDENTED.finditer(without)]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*$", "", line).strip()
            if command:
                yield " ".join(command.split())
