"""A sweep's table and heat map."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import AxesImage
from rich.console import Console

from amd_lightning.analysis.compare.measures import KNOWN
from amd_lightning.analysis.sweeps import collected, draw_heat_map, heat_map, sweep_table
from amd_lightning.metric_direction import rises
from amd_lightning.sweeps.index import Row, Status


def grid(folder: Path) -> list[Row]:
    """kl and rkl at beta 0, .5 and 1, two seeds each; one point failed, and so did both of rkl at 1."""
    rows = []
    points = [(d, b, s) for d in ("kl", "rkl") for b in (0.0, 0.5, 1.0) for s in (0, 1)]
    for number, (distance, beta, seed) in enumerate(points):
        run = folder / str(number)
        run.mkdir()
        who: dict[str, object] = {"teacher": {}, "student_start": {}, "student": {}}
        objective = {"distance": distance, "beta": beta}
        (run / "results.json").write_text(json.dumps({**who, "objective": objective}))
        words = f"objective.distance={distance} objective.beta={beta:g} seed={seed}"
        row = Row(number, words, str(number), Status.done, "rouge_l", 10 * beta + seed, 12.3, "7/7")
        failed = (distance, beta) == ("rkl", 1.0) or number == 0
        rows.append(row._replace(status=Status.failed, value=None, error="x") if failed else row)
    return rows


def test_cells_are_the_finished_points_of_a_distance_and_a_beta(tmp_path: Path) -> None:
    cells, metric = collected(tmp_path, grid(tmp_path))
    assert metric == "rouge_l"
    assert cells == {
        ("kl", 0.0): [1.0],
        ("kl", 0.5): [5.0, 6.0],
        ("kl", 1.0): [10.0, 11.0],
        ("rkl", 0.0): [0.0, 1.0],
        ("rkl", 0.5): [5.0, 6.0],
    }


def test_every_cell_says_its_mean_and_what_is_missing_a_dash(tmp_path: Path) -> None:
    cells, metric = collected(tmp_path, grid(tmp_path))
    figure = heat_map(cells, metric)
    axis, bar = figure.axes
    assert [text.get_text() for text in axis.texts] == ["1.000", "5.500", "10.50", "0.500", "5.500", "–"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "0.5", "1"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["KL", "reverse KL"]
    assert axis.get_title() == "ROUGE-L (more is better)\nvalidation split, mean of up to 2 points"
    assert axis.images[0].get_clim() == (0.5, 10.5)
    assert bar.get_ylim() == (0.5, 10.5)


def lightness(image: AxesImage, value: float) -> float:
    return float(sum(image.to_rgba(np.array(value))[:3]))


@pytest.mark.parametrize("metric, rising", [("sampled_accuracy", True), ("tv_on", False)])
def test_dark_is_better_whichever_way_a_metric_goes(metric: str, rising: bool) -> None:
    cells = {("kl", 0.0): [0.1], ("kl", 1.0): [0.2], ("rkl", 0.0): [0.3], ("rkl", 1.0): [0.9]}
    axis, bar = heat_map(cells, metric).axes
    assert ("(more is better)" if rising else "(less is better)") in axis.get_title()
    image = axis.images[0]
    best, worst = (0.9, 0.1) if rising else (0.1, 0.9)
    assert lightness(image, best) < lightness(image, 0.3) < lightness(image, worst) == 3.0
    white = [text.get_text() for text in axis.texts if text.get_color() == "white"]
    assert white == (["0.900"] if rising else ["0.100", "0.200"])
    assert bar.get_ylim() == (worst, best)  # better is the upper end
    assert bar.get_ylabel() == "better →"


def test_a_single_level_is_not_called_good() -> None:
    for metric in ("rouge_l", "kl_on"):
        image = heat_map({("kl", 0.0): [2.0], ("rkl", 1.0): [2.0]}, metric).axes[0].images[0]
        assert lightness(image, 2.0) == 3.0


def test_the_report_knows_the_same_directions() -> None:
    assert [m.key for m in KNOWN.values() if m.better and (m.better > 0) != rises(m.key)] == []


def test_the_map_is_drawn_where_both_vary_alone(tmp_path: Path) -> None:
    rows = grid(tmp_path)
    path = draw_heat_map(tmp_path, rows)
    assert path == tmp_path / "beta_by_distance.png"
    assert path.read_bytes()[:4] == b"\x89PNG"
    path.unlink()
    assert draw_heat_map(tmp_path, rows[:6]) is None
    assert draw_heat_map(tmp_path, []) is None
    assert not path.exists()


def test_the_table_has_every_point(tmp_path: Path) -> None:
    console = Console(width=100, record=True)
    console.print(sweep_table(grid(tmp_path)))
    text = console.export_text()
    assert "sweep: 9 of 12 points done" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "0 distance=kl beta=0 seed=0 failed – 12 7/7" in lines
    assert "11 distance=rkl beta=1 seed=1 failed – 12 7/7" in lines
    assert "5 distance=kl beta=1 seed=1 done 11.00 12 7/7" in lines
