"""docs/pages/extend.md does what it says: all recipes in one copy of the project, then their commands."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, Block, fenced

PAGE = ROOT / "docs" / "pages" / "extend.md"
RECIPES = dict(re.findall(r"^## (A .+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S))
IN_SECONDS = (
    "logger=csv trainer.progress=off trainer.threads=1 trainer.validate_every=0 data.train_rows=24 "
    "data.valid_rows=4 data.test_rows=4 data.max_response_tokens=16 optim.student.updates=2 "
    "optim.student.batch_size=4 optim.student.warmup_updates=0"
)
TRAINED_BEFORE = (
    "optim.teacher.updates=1 optim.teacher.batch_size=4 optim.teacher.warmup_updates=0 "
    "optim.student_start.updates=1 optim.student_start.batch_size=4 optim.student_start.warmup_updates=0"
)
RUN = "python -m amd_lightning.run "
DRIVER = """
import runpy, shlex, sys
from amd_lightning import run
for line in sys.stdin.read().splitlines():
    name, _, rest = line.partition(" ")
    if name == "script":
        runpy.run_path(rest)
    else:
        sys.argv = ["run.py", *shlex.split(rest)]
        run.main()
"""
"""All commands in one process: the libraries are imported once."""


def apply(block: Block, folder: Path) -> None:
    """Write a whole file, or put a diff where the lines around it are; they must be there exactly once."""
    path = folder / block.title
    if block.language != "diff":
        assert not path.exists(), f"{block.title} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return
    lines = block.text.splitlines()
    old = "\n".join(line[1:] for line in lines if line[:1] != "+") + "\n"
    new = "\n".join(line[1:] for line in lines if line[:1] != "-") + "\n"
    text = path.read_text(encoding="utf-8")
    assert ("\n" + text).count("\n" + old) == 1, f"{block.title} has not exactly once:\n{old}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every recipe in it."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("amd_lightning", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for text in RECIPES.values():
        for block in fenced(text):
            if block.title:
                apply(block, folder)
    return folder


def test_there_are_four() -> None:
    assert list(RECIPES) == ["A distance", "A critic", "A data set", "A model"]
    assert all(any(block.language == "sh" for block in fenced(text)) for text in RECIPES.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_command_of_the_recipes_runs(extended: Path) -> None:
    lines = []
    for place, text in enumerate(RECIPES.values()):
        for command in next(block.text for block in fenced(text) if block.language == "sh").splitlines():
            if command.startswith(RUN):
                own = command.removeprefix(RUN)
                before = "" if "optim.teacher.updates" in own else TRAINED_BEFORE
                lines.append(f"run {own} {IN_SECONDS} {before} hydra.run.dir=run{place}")
            else:
                lines.append(f"script {command.removeprefix('python ')}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(extended), *map(os.path.abspath, sys.path)]),
        "AMD_LIGHTNING_CACHE": str(extended / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=extended,
        env=environment,
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for place in range(len(RECIPES)):
        assert (extended / f"run{place}" / "results.json").is_file(), done.stderr[-3000:]
