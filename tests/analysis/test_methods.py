"""Methods side by side: what the bars and dots show, read from matplotlib's own objects."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from amd_lightning.analysis.methods import draw_methods, group, methods_figure
from amd_lightning.errors import UserError

TV, PROBE, ACCURACY = "Total variation (↓)", "Probe moment distance (↓)", "Sampled accuracy (↑)"
MATCH, MMD = "Exact match with the teacher (↑)", "MMD² to the teacher (↓)"

Run = dict[str, Any]


@pytest.fixture
def runs(results: Run) -> list[Run]:
    """Two methods, three seeds and one; of every number it is known what it is."""
    results["teacher"] |= {"exact_match": 0.3, "mmd_squared": 0.001}
    results["student"] |= {"probe_off": -0.01, "probe_on": 0.02, "exact_match": 0.2, "mmd_squared": -0.002}
    found = []
    for seed in range(3):
        run = copy.deepcopy(results)
        run["seed"] = seed
        run["student"]["tv_off"] = 0.1 * (seed + 1)
        found.append(run)
    other = copy.deepcopy(results)
    other["objective"] = {"distance": "kl", "beta": 1.0, "normalise": "token"}
    return [*found, other]


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes}


def widths(axis: Axes) -> list[float]:
    return [bar.get_width() for bar in axis.patches]  # type: ignore[attr-defined]


def dots(axis: Axes) -> list[list[float]]:
    return [np.asarray(line.get_xdata()).tolist() for line in axis.get_lines() if line.get_marker() == "o"]


def labels(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.get_yticklabels()]


def names(runs: Sequence[Run]) -> list[str]:
    return [method.label for method in group(runs)]


def test_bars_are_means_and_dots_are_seeds(runs: list[Run]) -> None:
    found = panels(methods_figure(runs))
    assert list(found) == [TV, PROBE, ACCURACY, MATCH, MMD]
    assert widths(found[TV]) == pytest.approx([0.2, 0.1, 0.05, 0.1])  # off and on, off and on
    assert dots(found[TV])[0] == pytest.approx([0.1, 0.2, 0.3])
    assert [len(values) for values in dots(found[TV])] == [3, 3, 1, 1]
    assert widths(found[PROBE]) == pytest.approx([-0.01, 0.02] * 2)
    assert widths(found[ACCURACY]) == pytest.approx([0.65, 0.65])
    assert widths(found[MMD]) == pytest.approx([-0.002, -0.002])


def test_methods_are_named_once_in_a_row_from_the_top(runs: list[Run]) -> None:
    found = panels(methods_figure(runs))
    assert labels(found[TV]) == ["moment matching, β 0.5", "KL, β 1"]
    assert labels(found[MATCH]) == labels(found[TV])
    assert labels(found[PROBE]) == labels(found[MMD]) == ["", ""]
    assert all(axis.get_ylim()[0] > axis.get_ylim()[1] for axis in found.values())
    places = [bar.get_y() for bar in found[ACCURACY].patches]  # type: ignore[attr-defined]
    assert places == sorted(places)


def test_the_teachers_level_stands_where_it_is_not_zero(runs: list[Run]) -> None:
    for title, axis in panels(methods_figure(runs)).items():
        dashed = [line.get_xdata() for line in axis.get_lines() if line.get_linestyle() == "--"]
        expected = {ACCURACY: 0.8, MATCH: 0.3, MMD: 0.001}.get(title)
        assert [float(np.asarray(x)[0]) for x in dashed] == (
            [] if expected is None else [pytest.approx(expected)]
        )


def test_off_and_on_differ_in_more_than_colour(runs: list[Run]) -> None:
    off, on = panels(methods_figure(runs))[TV].patches[:2]
    assert off.get_facecolor() != on.get_facecolor()
    assert off.get_hatch() != on.get_hatch()


def test_a_method_without_a_value_has_no_bar(runs: list[Run]) -> None:
    runs[3]["student"] |= {"probe_on": None, "tv_on": float("nan")}
    found = panels(methods_figure(runs))
    assert len(widths(found[PROBE])) == len(widths(found[TV])) == 3
    for run in runs:
        run["student"] |= {"probe_on": None, "probe_off": None}
        del run["student"]["mmd_squared"]
    assert list(panels(methods_figure(runs))) == [TV, ACCURACY, MATCH]


def test_without_a_checker_rouge_stands_in(runs: list[Run]) -> None:
    for run in runs:
        run["student"]["sampled_accuracy"] = None
    assert widths(panels(methods_figure(runs))["Sampled ROUGE-L (↑)"]) == [70.0, 70.0]


def test_what_tells_methods_apart_is_in_their_names(runs: list[Run]) -> None:
    base = runs[0]

    def changed(**fields: Any) -> Run:
        return copy.deepcopy(base) | fields

    critic = base["objective"] | {"critic": {"kind": "residual", "alpha": 0.25}}
    assert names([base, changed(objective=critic)]) == [
        "moment matching, β 0.5\nclosed form critic",
        "moment matching, β 0.5\nresidual critic",
    ]
    alpha = base["objective"] | {"critic": {"kind": "closed_form", "alpha": 0.5}}
    assert names([base, changed(objective=alpha), runs[3]]) == [
        "moment matching, β 0.5\nα 0.25",
        "moment matching, β 0.5\nα 0.5",
        "KL, β 1",
    ]
    written = changed(cache_keys={"teacher_responses": "key"})
    assert names([base, written]) == [
        "moment matching, β 0.5\ndata's responses",
        "moment matching, β 0.5\nteacher's responses",
    ]
    assert names([base, changed(updates=40)])[1].endswith("updates 40")
    novel = changed(objective=base["objective"] | {"novel_knob": 0.1})
    assert names([base, novel])[1].endswith("novel knob 0.1")
    assert len(names([base, changed(objective=base["objective"] | {"novel_knob": None})])) == 1
    assert len(names([base, changed(seed=9, command="x", rows={})])) == 1


def test_the_title_says_what_was_run(runs: list[Run]) -> None:
    assert (
        methods_figure(runs).get_suptitle() == "samsum: scale demo, updates 20, 1 to 3 runs each, test split"
    )
    assert methods_figure(runs[:3]).get_suptitle().endswith("3 runs each, test split")
    runs[1]["scale"] = "laptop"
    assert "scale demo/laptop" in methods_figure(runs).get_suptitle()


def test_no_text_leaves_the_picture(runs: list[Run]) -> None:
    many = []
    for place, distance in enumerate(["kl", "alpha_beta", "skew_rkl", "moment_matching", "a $^$ name"]):
        for beta in (0.0, 0.5):
            run = copy.deepcopy(runs[place % 3])
            run["objective"] |= {"distance": distance, "beta": beta}
            many.append(run)
    for some in (runs[:1], many):
        figure = methods_figure(some)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        tight = figure.get_tightbbox(canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert min(tight.x0, tight.y0) >= 0.0
        assert tight.x1 <= width
        assert tight.y1 <= height


def test_nothing_to_compare(runs: list[Run]) -> None:
    with pytest.raises(UserError, match="no run to compare"):
        methods_figure([])
    for run in runs:
        run["student"] = {}
    assert methods_figure(runs).axes == []


def test_the_picture_is_written(runs: list[Run], tmp_path: Path) -> None:
    before, given = dict(matplotlib.rcParams), json.dumps(runs)
    path = draw_methods(runs, tmp_path / "new" / "methods.png")
    assert path == tmp_path / "new" / "methods.png"
    assert min(imread(path).shape[:2]) >= 500
    assert dict(matplotlib.rcParams) == before
    assert json.dumps(runs) == given
