"""The report: what its figures show, that it stands alone, and what its script does."""

import copy
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from amd_lightning.analysis.compare.collect import find_runs
from amd_lightning.analysis.compare.comparison import Comparison, comparison
from amd_lightning.analysis.compare.curves import beta_figure, learning_figure
from amd_lightning.analysis.compare.methods import methods
from amd_lightning.analysis.compare.panels import (
    cost_figure,
    heat_figure,
    pairs_figure,
    yardstick_figure,
)
from amd_lightning.analysis.compare.published import published_rows
from amd_lightning.analysis.compare.report import MOST_BYTES, write_report
from amd_lightning.analysis.compare.report_rows import budget_rows, in_short, metric_rows, pair_rows
from amd_lightning.analysis.compare.responses import side_by_side
from amd_lightning.analysis.compare.style import grid, legend_below

MM1, KL1 = "moment matching, β 1", "KL, β 1"
VOID = {"meta", "img", "input", "br", "link", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def found(sweep: Path) -> Comparison:
    return comparison(*methods(find_runs([sweep]).runs), seed=1)


@pytest.fixture(scope="module")
def page(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(found, tmp_path_factory.mktemp("report"), "python -m amd_lightning.compare <here>")


class Page(HTMLParser):
    """Tags that are open, attributes, the text of what is read, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


# -- figures -----------------------------------------------------------------------------------


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def test_beta_curves_are_the_means(found: Comparison) -> None:
    axes = drawn(beta_figure(found)).axes
    assert [axis.get_title() for axis in axes[:2]] == ["moment matching", "KL"]
    own = [line for line in axes[0].get_lines() if line.get_marker() == "o"]
    assert np.asarray(own[0].get_xdata()).tolist() == [0.0, 1.0]
    assert np.asarray(own[0].get_ydata()).tolist() == pytest.approx([26 / 40, 35 / 40])
    assert len(axes[0].collections) == 1  # the band
    assert len(axes[0].get_lines()) == 3  # its own, the other distance's, the teacher's


def test_heat_maps_have_their_numbers_and_one_star(found: Comparison) -> None:
    axis = drawn(heat_figure(found)).axes[0]
    assert axis.get_title() == "sampled accuracy (↑)"
    assert [text.get_text() for text in axis.texts] == ["0.650", "0.875 ★", "0.225", "0.425"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["β 0", "β 1"]


def test_learning_curves_are_validations_where_there_are_enough(found: Comparison) -> None:
    figure, what = learning_figure(found)
    assert "training TV" in what  # two validations are no curve
    line = drawn(figure).axes[0].get_lines()[0]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.195, 0.175, 0.15, 0.125, 0.1])
    changed = copy.deepcopy(found)
    for method in changed.methods:
        for run in method.runs:
            run.curves["valid/sampled_accuracy"].insert(0, (5.0, 0.1))
    figure, what = learning_figure(changed)
    assert "validation sampled accuracy" in what
    assert np.asarray(drawn(figure).axes[0].get_lines()[0].get_xdata()).tolist() == [5.0, 10.0, 20.0]


def test_cost_has_the_front_of_the_best(found: Comparison) -> None:
    axis = drawn(cost_figure(found)).axes[0]
    assert axis.get_xlabel().startswith("seconds")
    assert [line for line in axis.get_lines() if line.get_linestyle() == "--"] == []  # all cost the same
    budgets = {**found.budgets, KL1: found.budgets[KL1]._replace(seconds=1.0)}
    axis = drawn(cost_figure(replace(found, budgets=budgets))).axes[0]
    (front,) = [line for line in axis.get_lines() if line.get_linestyle() == "--"]
    assert np.asarray(front.get_xdata()).tolist() == [1.0, 10.5]


def test_yardsticks_shade_a_methods_own(found: Comparison) -> None:
    axes = {axis.get_title(): axis for axis in drawn(yardstick_figure(found)).axes}
    assert list(axes) == ["TV (↓)", "KL (↓)", "probe distance (↓)"]
    shaded = {title: len(axis.patches) for title, axis in axes.items()}
    assert shaded == {"TV (↓)": 0, "KL (↓)": 2, "probe distance (↓)": 2}
    labels = [label.get_text() for label in axes["TV (↓)"].get_yticklabels()]
    assert labels == [method.label for method in found.methods]


def test_who_beats_whom_is_antisymmetric(found: Comparison) -> None:
    image = drawn(pairs_figure(found)).axes[0].images[0].get_array()
    values = np.asarray(image)
    assert values[0, -1] == pytest.approx((35 - 9) / 40)
    off = ~np.eye(4, dtype=bool)
    assert values[off] == pytest.approx(-values.T[off])


def test_one_method_alone_draws_what_it_can(found: Comparison, sweep: Path) -> None:
    one = comparison(found.methods[:1])
    assert beta_figure(one) is None
    assert heat_figure(one) is None
    assert pairs_figure(one) is None
    assert "nothing to compare" in in_short(one)[0]


# -- rows and sentences ------------------------------------------------------------------------


def test_tests_are_told_from_the_best_methods_side(found: Comparison) -> None:
    rows = pair_rows(found)
    assert [row["name"] for row in rows] == [m.label for m in found.ranked()[1:]]
    assert all(row["difference"].startswith("+") for row in rows)
    assert rows[-1]["difference"] == "+0.650"
    assert (rows[-1]["wins"], rows[-1]["losses"]) == ("100 %", "0 %")


def test_only_what_a_test_tells_apart_is_not_underlined(found: Comparison) -> None:
    table = metric_rows(found, ["sampled_accuracy"])
    told = {
        pair.second
        for pair in found.pairs
        if pair.metric == "sampled_accuracy" and pair.first == MM1 and (pair.p_holm or 1.0) < 0.05
    }
    assert {row["name"] for row in table["rows"] if not row["cells"][0]["tied"]} == told
    assert [row["cells"][0]["best"] for row in table["rows"]] == [True, False, False, False]


def test_sentences_claim_no_more_than_the_tests(found: Comparison) -> None:
    first, *others = in_short(found)
    assert first.startswith(f"{MM1} has the best mean sampled accuracy: 0.875 ± ")
    assert any("2 seeds are few" in sentence for sentence in others)
    listed = " ".join(others)
    assert all(method.label in listed for method in found.methods if method.label != MM1)


def test_a_better_mean_is_no_lead_where_the_shared_seeds_say_otherwise(
    tmp_path: Path, write_run: Any
) -> None:
    for seed, right in enumerate((8, 8, 8, 20, 20)):
        write_run(tmp_path / f"kl{seed}", "kl", 1.0, seed, right=right)
    for seed in range(3):
        write_run(tmp_path / f"js{seed}", "js", 1.0, seed, right=12 - seed % 2)
    found = comparison(*methods(find_runs([tmp_path]).runs))
    (pair,) = (pair for pair in found.pairs if pair.metric == found.judge)
    told = replace(found, pairs=[pair._replace(p_holm=0.001)])
    assert told.ranked()[0].label == "KL, β 1"
    first, *others = in_short(told)
    assert first.startswith("KL, β 1 has the best mean")
    assert not any("It is ahead of" in sentence for sentence in others)
    assert any(
        "On the seeds that both have it is behind 1" in sentence and "JS, β 1" in sentence
        for sentence in others
    )
    rows = metric_rows(told, [found.judge])["rows"]
    assert [row["cells"][0]["tied"] for row in rows] == [True, True]  # nothing beats it from the best's side


def test_one_seed_claims_nothing_of_others(found: Comparison) -> None:
    cut = [replace(m, runs=m.runs[:1], replicates=m.replicates[:1]) for m in found.methods]
    listed = " ".join(in_short(comparison(cut)))
    assert "over examples; some pairs share one seed" in listed
    assert "over seeds" not in listed
    assert "says nothing of other seeds" in listed


def test_budgets_are_ranked_and_relative(found: Comparison) -> None:
    rows = budget_rows(found)
    assert rows[0]["name"] == MM1
    assert {row["times"] for row in rows} == {"× 1.00"}
    assert rows[0]["closed"] == f"{100 * (0.875 - 0.05) / 0.9 * 60 / 10.5:.0f} %"


def test_published_numbers_stand_beside_the_nearest_of_ours(found: Comparison) -> None:
    rows, caveats = published_rows(found)
    assert [(row.method, row.value) for row in rows] == [("AMMD (the paper)", "52.7"), ("DistiLLM", "52.1")]
    assert rows[0].ours == MM1  # β 0.5 was not run: the best of the distance
    assert rows[1].ours == "–"
    assert len(caveats) == 2  # settings differ, and it is generated text


def test_responses_are_of_one_seed_and_cut_to_size(found: Comparison) -> None:
    said = side_by_side(found.methods)
    assert said is not None
    assert said["writers"][:3] == ["teacher", "student before", MM1]
    assert (said["seed"], len(said["rows"]), said["left_out"]) == (0, 10, 0)
    assert said["rows"][9]["said"][2] == [["Bob will bring nothing at all.", 0], ["Ann will bring tea.", 1]]
    cut = side_by_side(found.methods, limit=2000)
    assert cut is not None
    assert len(cut["rows"]) + cut["left_out"] == 10
    assert cut["left_out"] > 0


# -- the page ----------------------------------------------------------------------------------


def test_the_page_stands_alone(parsed: Page, page: Path) -> None:
    assert parsed.open == []
    sources = [value for _, key, value in parsed.attributes if key in ("src", "href")]
    assert sources
    assert all(value.startswith(("data:image/svg+xml;base64,", "#")) for value in sources)
    anchors = {value[1:] for value in sources if value.startswith("#")}
    assert anchors <= {value for _, key, value in parsed.attributes if key == "id"}
    styles = re.sub(r"data:[^\"]+", "", page.read_text(encoding="utf-8"))
    assert "url(" not in styles
    assert "@import" not in styles
    assert page.stat().st_size < MOST_BYTES


def test_every_picture_says_what_it_is(parsed: Page, page: Path) -> None:
    texts = [value for tag, key, value in parsed.attributes if (tag, key) == ("img", "alt")]
    assert len(texts) == 6
    assert all(texts)
    assert len(list((page.parent / "figures").glob("*.svg"))) == 6


def test_the_page_says_what_made_it(parsed: Page) -> None:
    words = " ".join(" ".join(parsed.words).split())
    assert "python -m amd_lightning.compare <here>" in words
    assert "python -m amd_lightning.run objective.distance=kl seed=1" in words
    assert "0123456789abcdef" in words
    assert "teacher=abc" in words
    assert "results.json=" in words
    assert "torch 2.0" in words


def test_text_of_runs_is_text(sweep: Path, found: Comparison, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(sweep, folder)
    evil = "</script><script>alert(1)</script><b>"
    for path in folder.rglob("predictions.jsonl"):
        path.write_text(path.read_text().replace("shall I bring <b>", evil))
    runs = find_runs([folder]).runs
    for run in runs:
        run.results["command"] = evil  # type: ignore[index]
    text = write_report(comparison(*methods(runs)), tmp_path, evil).read_text(encoding="utf-8")
    read = Page(text)
    assert len(read.scripts) == 2
    assert evil in json.loads(read.scripts[0])["rows"][0]["prompt"]
    assert evil in "".join(read.words)


DOM = """
const made = {};
function node(name) {
  return { name, children: [], textContent: "", value: "", hidden: false, listeners: {},
    appendChild(child) { this.children.push(child); return child; },
    addEventListener(kind, call) { this.listeners[kind] = call; } };
}
globalThis.document = {
  createElement: node,
  createTextNode: (text) => ({ text }),
  getElementById(id) { return made[id] || (made[id] = node(id)); },
};
made.data = node("script"); made.data.textContent = DATA;
made.kind = node("select"); made.kind.value = "0";
Object.defineProperty(document.getElementById("examples"), "textContent", { set() { this.children = []; } });
"""
CHECKS = """
const shown = () => made.examples.children.length;
const out = [shown(), made.count.textContent, made.writers.children.length];
made.search.value = "Dialogue 3"; made.search.listeners.input(); out.push(shown());
made.search.value = "nothing"; made.search.listeners.input(); out.push(shown());
made.search.value = ""; made.differ.checked = true; made.differ.listeners.change(); out.push(shown());
made.kind.value = "1"; made.kind.listeners.change(); out.push(shown());
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_the_search_box_finds(parsed: Page, tmp_path: Path) -> None:
    data, script = parsed.scripts
    path = tmp_path / "page.js"
    path.write_text("const DATA = " + json.dumps(data) + ";" + DOM + script + CHECKS)
    done = subprocess.run(["node", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    everything, count, writers, third, wrong, differing, sampled = json.loads(done.stdout)
    assert (everything, count, writers) == (10, "10 of 10 examples", 6)
    assert third == 1
    assert wrong == 9  # somebody was wrong everywhere but where all are right: the first
    assert differing == 9
    assert 0 < sampled <= 10


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_chromium_draws_the_page(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    alone = "quic background-networking component-update sync".split()  # nothing is fetched
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", *(f"--disable-{name}" for name in alone)]
    command = [str(BROWSER), *flags]
    size = "--window-size=1200,3000"
    done = subprocess.run(
        [*command, size, f"--screenshot={shot}", "--virtual-time-budget=3000", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shot.stat().st_size > 50_000
    dump = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert dump.stdout.count('class="example"') == 10


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_a_legend_stays_within_its_figure(columns: int) -> None:
    figure, axes = grid(1, 1, (4.6, 2.5))
    axes[0][0].plot([0, 1])
    words = ["mean, band: 95 % interval", "the other distances", "the teacher itself", "β 0.5", "β 1"]
    legend_below(figure, [Line2D([], [], label=word) for word in words], columns)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
