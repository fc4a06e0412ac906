"""The documentation: its pages from the code say all that the code has, and it builds offline, without a
warning."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from amd_lightning import reference
from amd_lightning.presets import presets
from tests.documents import ROOT
from tests.helpers import tiny_run
from tests.test_config import knobs, options

DOCS = ROOT / "docs"


def test_every_knob_is_in_the_reference_with_its_meaning() -> None:
    page = reference.configuration()
    hidden = ("experiment", "scale", "output_dir")
    for name, field in knobs():
        if name in hidden:
            continue
        assert name in page, name
        start = field.metadata["meaning"].split("|")[0].split("<")[0].split("*")[0][:40]
        assert " ".join(start.split()) in page, name
    assert "one of moment_matching, kl" in page
    assert "≥ 0.0; ≤ 1.0" in page


def test_every_option_of_every_group_is_in_the_reference() -> None:
    page = reference.configuration()
    for group in ("objective", "critic", "pair", "rollout", "scale", "cluster", "sweep", "experiment"):
        assert all(f"`{option}`" in page for option in options(group)), group


def test_every_method_is_there_with_what_differs_and_its_source() -> None:
    page = reference.methods()
    for row in presets():
        assert all(words in page for words in (f"## {row.name}\n", row.what, row.differs, row.source)), (
            row.name
        )


@pytest.mark.slow
def test_every_metric_that_a_run_logs_is_in_the_glossary(tmp_path: Path) -> None:
    outcome = tiny_run(tmp_path / "run", tmp_path / "cache")
    page = reference.metrics()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = set(next(file).strip().split(",")) - {"update", "step"}
    names = {name.removeprefix("valid/") for name in logged} | set(outcome.evaluations["student"].metrics)
    assert len(names) > 30
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_the_glossary_is_written_in_whole_sentences() -> None:
    meanings = reference.logged_names()
    assert meanings["train/tv_on"].startswith("total variation between teacher and student")
    assert meanings["train/tv_off"].endswith("(half the L1 distance)")
    assert meanings["train/eos_share"].endswith("within the limit")
    assert meanings["time/updates_per_second"] == "since the line before"
    words = "seconds an update since the line before, by part (`modules/clock.py`): of an update"
    assert meanings["time/rest"] == words


def test_every_page_is_in_the_navigation() -> None:
    text = (DOCS / "mkdocs.yml").read_text(encoding="utf-8")
    written = {str(path.relative_to(DOCS / "pages")) for path in (DOCS / "pages").rglob("*.md")}
    assert written | set(reference.pages()) == set(re.findall(r": ([\w/]+\.md)$", text, re.M))


def test_the_citation_is_one() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["references"][0]["identifiers"][0]["value"] == "arXiv:2406.02959"


def test_pictures_are_small_and_shown() -> None:
    pictures = sorted((DOCS / "pages" / "images").glob("*.png"))
    page = (DOCS / "pages" / "method.md").read_text(encoding="utf-8")
    assert len(pictures) >= 4
    assert all(path.stat().st_size < 100_000 and f"images/{path.name}" in page for path in pictures)


class _Fetched(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses.append(given.get("href") or "")


def fetched(site: Path) -> Iterator[tuple[str, str]]:
    for page in sorted(site.rglob("*.html")):
        parser = _Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        yield from ((page.name, address) for address in parser.addresses)


@pytest.mark.slow
def test_it_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the docs extra is not installed: pip install -e '.[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    site = tmp_path / "build" / "docs"
    assert len(list(site.rglob("*.html"))) >= 15
    assert [place for place in fetched(site) if "//" in place[1]] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", style.read_text(encoding="utf-8")), style
    assert "objective.js_mixture" in (site / "reference" / "config.html").read_text(encoding="utf-8")
