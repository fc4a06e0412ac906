"""The table of teacher, student before and student after."""

import math
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from amd_lightning.analysis.runs import MODELS
from amd_lightning.analysis.tables import (
    evaluation_table,
    gap_closed,
    models_markdown,
    models_table,
    sets_table,
)


def rendered(results: dict[str, Any], width: int, table: Table | None = None) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(models_table(results) if table is None else table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(results: dict[str, Any]) -> dict[str, list[str]]:
    """First cell -> the other cells of the Markdown table."""
    lines = [line for line in models_markdown(results).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells if first != ":--"}


def test_every_cell(results: dict[str, Any]) -> None:
    found = rows(results)
    assert found[""] == [
        "ROUGE-L",
        "accuracy",
        "sampled accuracy",
        "2TV off",
        "2TV on",
        "KL off",
        "reverse KL on",
        "parameters",
        "seconds",
    ]
    assert found["teacher"] == ["90.0", "0.900", "0.800", "–", "–", "–", "–", "1.03M", "12.3"]
    assert found["student before"] == [
        "50.0", "0.300", "0.200", "0.400", "0.800", "0.800", "3.200", "12.3k", "12.3",
    ]  # fmt: skip
    assert found["student after"] == [
        "80.0", "0.750", "0.650", "0.100", "0.200", "0.100", "0.400", "12.3k", "12.3",
    ]  # fmt: skip


def test_null_and_missing_are_dashes(results: dict[str, Any]) -> None:
    results["student"] |= {"accuracy": None, "seconds": None}
    del results["student"]["rkl_on"]
    assert rows(results)["student after"] == [
        "80.0", "–", "0.650", "0.100", "0.200", "0.100", "–", "12.3k", "–",
    ]  # fmt: skip


def test_a_zero_is_no_dash(results: dict[str, Any]) -> None:
    results["student"] |= {"sampled_accuracy": 0.0, "tv_on": 0.0}
    assert rows(results)["student after"][2] == "0.000"
    assert rows(results)["student after"][4] == "0.000"


def test_numbers_of_many_digits(results: dict[str, Any]) -> None:
    results["teacher"] |= {"parameters": 2_849_757_184, "seconds": 86_400.2}
    results["student_start"]["parameters"] = 247_577_856
    results["student"]["parameters"] = 640
    found = rows(results)
    assert found["teacher"][-2:] == ["2.85B", "86400"]
    assert found["student before"][-2] == "248M"
    assert found["student after"][-2] == "640"


def test_the_share_that_was_closed_stands_in_both_captions(results: dict[str, Any]) -> None:
    sentence = "Distance to the teacher that distillation closed: 75% in sampled accuracy, 75% in 2TV on."
    assert sentence in models_markdown(results)
    assert sentence in " ".join(rendered(results, 120).split())


def test_without_a_checker_the_caption_speaks_of_rouge(results: dict[str, Any]) -> None:
    for who in ("teacher", "student_start", "student"):
        results[who] |= {"accuracy": None, "sampled_accuracy": None}
    results["student"]["tv_on"] = None
    assert "closed: 75% in sampled ROUGE-L, – in 2TV on." in models_markdown(results)


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_cell(results: dict[str, Any], width: int) -> None:
    results["student_start"] |= {"kl_off": 12.3456, "rkl_on": 123.456, "rouge_l": 100.0}
    text = rendered(results, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for name, cells in rows(results).items():
        for cell in [name, *cells]:
            assert all(word in words for word in cell.split()), cell


def test_a_model_beside_its_teacher_is_legible_on_a_narrow_terminal(results: dict[str, Any]) -> None:
    results |= {"model": results["student"] | {"sampled_rouge_l": 55.5}, "path": "runs/mine/student"}
    results["model"] |= {"kl_off": 12.3456, "rkl_on": 123.456, "rouge_l": 100.0}
    text = rendered(results, 80, evaluation_table(results))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    _, first, second, _, *models = text.splitlines()
    assert first.split() == "sampled sampled 2TV 2TV KL reverse".split()
    assert second.split() == "ROUGE-L ROUGE-L accuracy accuracy off on off KL on".split()
    cells = "model 55.5 100.0 0.750 0.650 0.100 0.200 12.35 123.46".split()
    assert [line.split()[0] for line in models] == ["teacher", "model"]
    assert models[1].split() == cells


def test_names_are_no_markup(results: dict[str, Any]) -> None:
    results["task"] = "mine[/bold]"
    assert "mine[/bold]: moment matching" in rendered(results, 120)


@pytest.mark.parametrize(
    "teacher, start, student, share",
    [
        (0.9, 0.5, 0.7, 0.5),
        (0.9, 0.5, 0.9, 1.0),
        (0.9, 0.5, 0.4, -0.25),
        (0.75, 0.5, 1.0, 2.0),
        (0.5, 0.0, 0.0, 0.0),
        (0.5, 0.5, 0.7, None),
        (0.4, 0.5, 0.4, None),
        (None, 0.5, 0.7, None),
        (0.9, None, 0.7, None),
        (0.9, 0.5, None, None),
        (0.9, 0.5, math.nan, None),
        (math.inf, 0.5, 0.7, None),
    ],
)
def test_gap_closed(teacher: Any, start: Any, student: Any, share: float | None) -> None:
    levels = {"teacher": teacher, "student_start": start, "student": student}
    results = {who: {"sampled_accuracy": value} for who, value in levels.items()}
    assert gap_closed(results) == pytest.approx(share)
    assert gap_closed(results, "rouge_l") is None


@pytest.mark.parametrize("teacher", [0.0, None, 1e-9])
def test_a_distance_closes_towards_zero(teacher: float | None) -> None:
    levels = {"teacher": teacher, "student_start": 0.4, "student": 0.1}
    results = {who: {"tv_on": value} for who, value in levels.items()}
    assert gap_closed(results, "tv_on") == pytest.approx(0.75)
    results["student_start"]["tv_on"] = 0.0
    assert gap_closed(results, "tv_on") is None


def test_the_tasks_own_metric_comes_first(results: dict[str, Any]) -> None:
    for who in MODELS:
        results[who] |= {"bleu": 31.0, "sampled_bleu": 20.0}
    assert "| ROUGE-L | accuracy |" in models_markdown(results)
    assert "| BLEU | accuracy |" in models_markdown({**results, "quality": "bleu"})
    own = models_markdown({**results, "quality": "accuracy"})
    assert "|  | accuracy | sampled accuracy |" in own
    unchecked = {**results, "quality": "bleu", "student": {**results["student"], "sampled_accuracy": None}}
    assert "in sampled BLEU," in models_markdown(unchecked)


def test_further_test_sets_have_a_table_of_their_own(results: dict[str, Any]) -> None:
    levels = {who: {"sampled_rouge_l": 20.0 + place, "rouge_l": 25.0} for place, who in enumerate(MODELS)}
    sets = {"vicuna": levels, "s_ni": {who: {"sampled_rouge_l": None} for who in MODELS}}
    console = Console(width=100, file=StringIO(), color_system=None)
    console.print(sets_table({**results, "evaluation_sets": sets}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "student after" in text
    assert "22.0 (25.0)" in text
    assert "– (–)" in text
