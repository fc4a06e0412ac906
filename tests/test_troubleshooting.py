"""Every message that docs/pages/troubleshooting.md quotes is one that the code has, word for word."""

import ast
import re
import shlex
from functools import cache

import pytest

from amd_lightning.cli import check_command_line
from amd_lightning.errors import ConfigError
from tests.documents import ROOT, fenced

BLOCKS = fenced((ROOT / "docs" / "pages" / "troubleshooting.md").read_text(encoding="utf-8"))
QUOTED = [block.text.strip() for block in BLOCKS if block.language == "text"]
TYPED = [block.text for block in BLOCKS if block.language == "console"]
HOLE = "…"


@cache
def literals() -> tuple[str, ...]:
    """Every text in the package, with a hole for whatever is filled in."""
    found = []
    for path in sorted((ROOT / "amd_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]", HOLE, node.value))
    return tuple(found)


def test_there_is_something_to_check() -> None:
    assert len(QUOTED) >= 15
    assert len(TYPED) >= 5


@pytest.mark.parametrize("message", QUOTED, ids=lambda message: message[:50])
def test_a_quoted_message_stands_in_the_code(message: str) -> None:
    assert len(message.replace(HOLE, "")) > 20
    assert any(message in text for text in literals()), message


@pytest.mark.parametrize("block", TYPED, ids=lambda block: block.partition("\n")[0][-40:])
def test_a_refused_command_line_is_refused_in_these_words(block: str) -> None:
    command, _, said = block.partition("\n")
    start = "$ python -m amd_lightning.run "
    assert command.startswith(start)
    with pytest.raises(ConfigError) as refused:
        check_command_line(shlex.split(command.removeprefix(start)))
    assert said.strip() == f"error: {refused.value}"
