"""What the pictures show, read from matplotlib's own objects, and that the files are whole."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from amd_lightning.analysis.figures import curves_figure, draw_curves, draw_models, models_figure
from amd_lightning.analysis.runs import Curve, read_metrics, read_results
from amd_lightning.errors import UserError

RunFolder = Callable[..., Path]
Metrics = dict[str, Curve]

LOSS, GAP = "Training loss: moment matching", "Training moment gap (the run's critic)"
ACCURACY, DISTANCE = "Validation sampled accuracy", "Validation distance to the teacher"
PROBE = "Validation moment gap (probe critic)"


@pytest.fixture
def metrics(run_folder: RunFolder) -> Metrics:
    return read_metrics(run_folder())


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(): axis for axis in figure.axes}


def lines(axis: Axes) -> dict[str, list[float]]:
    """Label -> values."""
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axis.get_lines()}


def bar_labels(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def words(figure: Figure) -> str:
    title = figure.get_suptitle()
    return " ".join([title, *(text.get_text() for axis in figure.axes for text in axis.texts)])


def assert_nothing_is_clipped(figure: Figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    tight = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert tight.x0 >= 0.0
    assert tight.y0 >= 0.0
    assert tight.x1 <= width
    assert tight.y1 <= height


# -- curves ------------------------------------------------------------------------------------


def test_a_full_run_has_four_panels(results: dict[str, Any], metrics: Metrics) -> None:
    found = panels(curves_figure(results, metrics))
    assert list(found) == [LOSS, GAP, ACCURACY, DISTANCE]
    assert lines(found[LOSS])["loss"] == pytest.approx([1.0, 0.1, 0.05])
    assert lines(found[ACCURACY])["sampled accuracy"] == pytest.approx([0.6, 0.7])
    assert all(axis.get_xlabel() == "update" for axis in found.values())
    assert len({axis.get_xlim() for axis in found.values()}) == 1


def test_2tv_is_twice_tv(results: dict[str, Any], metrics: Metrics) -> None:
    found = panels(curves_figure(results, metrics))
    gap, distance = lines(found[GAP]), lines(found[DISTANCE])
    assert gap["2TV off"] == pytest.approx([0.8, 0.08, 0.04])
    assert gap["2TV on"] == pytest.approx([1.2, 0.12, 0.06])
    assert gap["moment gap on"] == pytest.approx([0.7, 0.07, 0.035])
    assert distance["2TV on"] == pytest.approx([0.4, 0.4])
    assert distance["KL off (nats)"] == pytest.approx([0.3, 0.3])


def test_the_probe_has_a_panel_where_it_was_measured(results: dict[str, Any], metrics: Metrics) -> None:
    metrics["valid/probe_off"], metrics["valid/tv_off"] = [(10.0, -0.01), (20.0, 0.02)], [(10.0, 0.1)]
    found = panels(curves_figure(results, metrics))
    assert list(found) == [LOSS, GAP, ACCURACY, DISTANCE, PROBE]
    assert lines(found[PROBE])["probe off"] == pytest.approx([-0.01, 0.02])
    assert lines(found[PROBE])["2TV off"] == pytest.approx([0.2])
    assert found[PROBE].get_ylim()[0] < -0.01
    assert_nothing_is_clipped(curves_figure(results, metrics))


def test_companions_are_thinner(results: dict[str, Any], metrics: Metrics) -> None:
    axis = panels(curves_figure(results, metrics))[GAP]
    width = {str(line.get_label()): line.get_linewidth() for line in axis.get_lines()}
    assert max(width["2TV off"], width["2TV on"]) < min(width["moment gap off"], width["moment gap on"])


def test_at_beta_1_nothing_is_on_policy(results: dict[str, Any], metrics: Metrics) -> None:
    results["objective"] = {"distance": "kl", "beta": 1.0, "normalise": "token"}
    for key in ("train/moment_gap_on", "train/tv_on"):
        del metrics[key]
    found = panels(curves_figure(results, metrics))
    assert list(found)[:2] == ["Training loss: KL", "Training moment gap (closed-form critic)"]
    assert list(lines(found["Training moment gap (closed-form critic)"])) == ["moment gap off", "2TV off"]


def test_without_a_teacher_in_training_there_is_no_gap_panel(
    results: dict[str, Any], metrics: Metrics
) -> None:
    # A companion alone makes no panel either.
    for key in ("train/moment_gap_off", "train/moment_gap_on"):
        del metrics[key]
    assert list(panels(curves_figure(results, metrics))) == [LOSS, ACCURACY, DISTANCE]


def test_rouge_stands_in_for_sampled_accuracy(results: dict[str, Any], metrics: Metrics) -> None:
    del metrics["valid/sampled_accuracy"]
    found = panels(curves_figure(results, metrics))
    assert lines(found["Validation ROUGE-L"])["ROUGE-L"] == pytest.approx([70.0, 80.0])


def test_test_levels_stay_out_of_the_curves(results: dict[str, Any], metrics: Metrics) -> None:
    def shown() -> dict[str, dict[str, list[float]]]:
        return {title: lines(axis) for title, axis in panels(curves_figure(results, metrics)).items()}

    with_levels = shown()
    results |= {"teacher": {}, "student_start": {}, "student": {}}
    assert shown() == with_levels


def test_the_unit_of_the_loss_follows_the_objective(results: dict[str, Any], metrics: Metrics) -> None:
    def unit(distance: str, normalise: str) -> str:
        results["objective"] = {"distance": distance, "beta": 0.5, "normalise": normalise}
        return curves_figure(results, metrics).axes[0].get_ylabel()

    assert unit("moment_matching", "token") == "mean over tokens"
    assert unit("rkl", "token") == "nats, mean over tokens"
    assert unit("kl", "sequence") == "nats, sum over a response"


def test_values_that_are_not_finite_leave_the_rest_standing(
    results: dict[str, Any], metrics: Metrics
) -> None:
    metrics["train/loss"] = [(1.0, math.nan), (2.0, 0.5), (3.0, math.inf)]
    metrics["valid/sampled_accuracy"] = [(1.0, math.nan)]
    found = panels(curves_figure(results, metrics))
    assert lines(found[LOSS])["loss"] == [0.5]
    assert "Validation ROUGE-L" in found


def test_a_single_point_is_seen(results: dict[str, Any]) -> None:
    axis = panels(curves_figure(results, {"train/loss": [(1.0, 0.5)]}))[LOSS]
    assert axis.get_lines()[0].get_marker() == "o"


def test_a_gap_below_zero_is_not_cut_off(results: dict[str, Any]) -> None:
    curve = [(1.0, -0.2), (2.0, 0.4)]
    axis = panels(curves_figure(results, {"train/moment_gap_off": curve}))[GAP]
    assert axis.get_ylim()[0] < -0.2


def test_nothing_to_draw_is_said(results: dict[str, Any]) -> None:
    assert "logged no curve" in words(curves_figure(results, {}))
    assert "logged no curve" in words(curves_figure(results, {"train/grad_norm": [(1.0, 2.0)]}))


# -- models ------------------------------------------------------------------------------------


def test_every_bar_carries_its_value(results: dict[str, Any]) -> None:
    figure = models_figure(results)
    assert {title: bar_labels(axis) for title, axis in panels(figure).items()} == {
        "ROUGE-L (↑)": ["90.0", "50.0", "80.0"],
        "Sampled accuracy (↑)": ["0.800", "0.200", "0.650"],
        "2TV on (↓)": ["0 by definition", "0.800", "0.200"],
        "KL off (↓)": ["0 by definition", "0.800", "0.100"],
    }
    heights = [[bar.get_height() for bar in axis.patches] for axis in figure.axes]  # type: ignore[attr-defined]
    assert heights[2] == pytest.approx([0.0, 0.8, 0.2])
    assert "samsum: moment matching" in words(figure)
    assert "scale demo, updates 20, seed 3, test split" in words(figure)


def test_bars_without_a_checker(results: dict[str, Any]) -> None:
    for who in ("teacher", "student_start", "student"):
        results[who] |= {"accuracy": None, "sampled_accuracy": None}
    assert bar_labels(panels(models_figure(results))["Sampled ROUGE-L (↑)"]) == ["80.0", "40.0", "70.0"]


def test_bars_of_nothing(results: dict[str, Any]) -> None:
    results["student"] |= {"tv_on": None, "kl_off": math.inf, "rouge_l": 0.0}
    results["student_start"] |= {"tv_on": None, "kl_off": -1e-9}
    found = panels(models_figure(results))
    assert "2TV on (↓)" not in found
    assert bar_labels(found["KL off (↓)"]) == ["0 by definition", "0.000", "inf"]
    assert bar_labels(found["ROUGE-L (↑)"]) == ["90.0", "50.0", "0.0"]


def test_models_without_any_metric(results: dict[str, Any]) -> None:
    results["student_start"] = results["student"] = {}
    assert "measured no student" in words(models_figure(results))


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["samsum", "a task of $^$ many words, " * 6])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_no_text_leaves_the_picture(results: dict[str, Any], metrics: Metrics, task: str, count: int) -> None:
    results["task"] = task
    kept = dict(
        [("train/loss", metrics["train/loss"])]
        + [(key, metrics[key]) for key in list(metrics) if key.startswith("valid/")]
        + [("train/moment_gap_off", metrics["train/moment_gap_off"])]
    )
    keys: list[str] = {0: [], 1: ["train/loss"], 3: [key for key in kept if "gap" not in key], 4: list(kept)}[
        count
    ]
    curves = curves_figure(results, {key: kept[key] for key in keys})
    assert len(curves.axes) == max(count, 1)
    assert_nothing_is_clipped(curves)
    if count == 4:
        assert_nothing_is_clipped(models_figure(results))


def test_both_files_are_written_and_leave_no_trace_in_matplotlib(run_folder: RunFolder) -> None:
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    folder = run_folder()
    for draw, name in ((draw_curves, "curves"), (draw_models, "models")):
        path = draw(folder)
        assert path == folder / "figures" / f"{name}.png"
        height, width, _ = imread(path).shape
        assert min(height, width) >= 1000
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend


def test_a_run_that_logged_nothing_still_yields_a_picture(run_folder: RunFolder) -> None:
    folder = run_folder(rows=[])
    assert draw_curves(folder).is_file()
    assert draw_curves(folder).is_file()  # a second time over the first


@pytest.mark.parametrize("draw", [draw_curves, draw_models])
def test_an_unfinished_run_is_refused(tmp_path: Path, draw: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="no finished run"):
        draw(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_results_are_read_from_the_folder(run_folder: RunFolder, results: dict[str, Any]) -> None:
    results["seed"] = 71
    assert "seed 71" in words(models_figure(read_results(run_folder(results))))
