"""Every command that the documents for people have: composed and checked as a run would be, parsed by its own
parser, or run where it takes seconds; what is left is listed with its reason."""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable

import pytest

from amd_lightning import cli, compare, dashboard, evaluate, judge, plan, presets, push
from amd_lightning.cli import check_command_line, knobs
from amd_lightning.errors import UserError
from amd_lightning.sweeps.sweep import resumed
from tests.documents import ROOT, documents, shell_lines

INLINE = re.compile(r"`(python -m amd_lightning[^`…]*)`")
SYNTAX = re.compile(r"for \w+ in .*; do|done")
ELSEWHERE = {"docs/pages/extend.md": "tests/test_recipes.py runs them, in a copy that knows the new names"}
"""Documents whose commands need more than this checkout -> who runs them."""
STANDS_FOR = {"$seed": "0", "TASK": "iwslt", "SCALE": "laptop"}


def commands() -> list[str]:
    """All of them, once each, with variables of the shell filled in."""
    found: dict[str, None] = {}
    for path in documents():
        if str(path.relative_to(ROOT)) in ELSEWHERE:
            continue
        text = path.read_text(encoding="utf-8")
        variables: dict[str, str] = {}
        for line in [*shell_lines(text), *INLINE.findall(" ".join(text.split()))]:
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[f"${assigned[1]}"] = assigned[2]
                continue
            for name, value in {**variables, **STANDS_FOR}.items():
                line = re.sub(rf"{re.escape(name)}\b", value.replace("\\", r"\\"), line)
            found[line] = None
    return list(found)


def of_run(arguments: list[str]) -> None:
    if "--help" in arguments:
        assert "objective.beta" in knobs()
    elif any(text.startswith("sweep_resume=") for text in arguments):
        with pytest.raises(UserError, match="holds no sweep"):  # of the directory that the document names
            resumed(arguments)
    else:
        check_command_line(arguments)


def of_plan(arguments: list[str]) -> None:
    plan.main([text for text in arguments if text != "--help"])


def of_evaluate(arguments: list[str]) -> None:
    asked = evaluate.taken_apart(arguments)
    check_command_line(asked.rest)


def of_parser(parser: Callable[[], object]) -> Callable[[list[str]], None]:
    def check(arguments: list[str]) -> None:
        found = parser()
        if arguments == ["--help"]:
            assert "usage" in found.format_help()  # type: ignore[attr-defined]
        else:
            found.parse_args(arguments)  # type: ignore[attr-defined]

    return check


def of_presets(arguments: list[str]) -> None:
    assert not arguments
    assert callable(presets.main)  # tests/test_presets.py holds what it writes


MODULES: dict[str, Callable[[list[str]], None]] = {
    "run": of_run,
    "data": check_command_line,
    "plan": of_plan,
    "evaluate": of_evaluate,
    "compare": of_parser(compare.parser),
    "dashboard": of_parser(dashboard.parser),
    "judge": of_parser(judge.parser),
    "push": of_parser(push.parser),
    "presets": of_presets,
}


def check(command: str) -> None:
    """Fails where the command does not work as it stands."""
    words = shlex.split(command)
    if words == ["python", "-m", "amd_lightning"]:
        assert importlib.util.find_spec("amd_lightning.__main__")
    elif words[:2] == ["python", "-m"] and words[2].startswith("amd_lightning."):
        name, arguments = words[2].removeprefix("amd_lightning."), words[3:]
        if arguments or name == "presets":
            MODULES[name](arguments)
        else:
            assert importlib.util.find_spec(words[2]), name
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:.*## ", makefile, re.M) for target in targets), command
    elif words[0] == "sbatch":
        check(words[words.index("--wrap") + 1].removeprefix("srun "))
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), "a script that is not there"
    elif words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), "a script that is not there"
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests")), command
    elif words[:2] == ["pip", "install"]:
        # An installation is what CI begins with; here only that its extras are there.
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.findall(r"\[(.*?)\]", command)
        assert all(extra in extras for group in asked for extra in group.split(",")), command
    else:
        assert SYNTAX.fullmatch(command), f"nobody checks {command!r}: say here how, or why not"


def test_they_are_found() -> None:
    found = commands()
    assert len(found) > 60
    assert sum(command.startswith("python -m amd_lightning.run ") for command in found) > 30


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[-60:])
def test_a_documented_command_is_right(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "POINTS_CHECKED", 3)  # of a sweep; all of them would take minutes
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python -m amd_lightning.run +experiment=samsun",
        "python -m amd_lightning.judge RUN --basurl x --model m",
        "python -m amd_lightning.evaluate model=X objective=kd",
        "make demoo",
        "pip install -e '.[clusters]'",
        "curl x",
    ],
)
def test_a_wrong_command_would_be_found(command: str) -> None:
    with pytest.raises((UserError, AssertionError)):
        check(command)
