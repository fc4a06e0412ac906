"""Reading a finished run's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from amd_lightning.analysis.runs import heading, level, number, read_metrics, read_results, sampled_metric
from amd_lightning.errors import UserError

RunFolder = Callable[..., Path]


def test_results_come_back_as_they_were_written(run_folder: RunFolder, results: dict[str, Any]) -> None:
    assert read_results(run_folder(results)) == results


@pytest.mark.parametrize("read", [read_results, read_metrics])
def test_an_unfinished_run_is_refused_with_a_remedy(
    read: Callable[[Path], Any], run_folder: RunFolder
) -> None:
    folder = run_folder()
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"no finished run .* start this one again"):
        read(folder)
    with pytest.raises(UserError, match=r"no finished run .* start this one again"):
        read(folder / "nowhere")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('{"teacher": {', "is damaged"),
        ("[1, 2]", "says nothing of teacher, student_start, student"),
        ('{"teacher": {}, "student_start": null}', "says nothing of student_start, student"),
    ],
)
def test_damaged_results_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_results(tmp_path)


def test_split_rows_and_empty_cells(run_folder: RunFolder) -> None:
    folder = run_folder(rows=[{"update": 2, "a": 0.5}, {"update": 2, "b": -1e-3}, {"update": 1, "a": 4.0}])
    assert read_metrics(folder) == {"a": [(1.0, 4.0), (2.0, 0.5)], "b": [(2.0, -0.001)]}


def test_the_later_row_of_an_update_holds(run_folder: RunFolder) -> None:
    folder = run_folder(rows=[{"update": 1, "a": 1.0}, {"update": 1, "a": 2.0}])
    assert read_metrics(folder) == {"a": [(1.0, 2.0)]}


def test_a_row_without_update_has_no_place(run_folder: RunFolder) -> None:
    assert read_metrics(run_folder(rows=[{"a": 1.0}, {"update": 3, "a": 2.0}])) == {"a": [(3.0, 2.0)]}


@pytest.mark.parametrize("text", [None, "", "update,a\n"])
def test_a_run_that_logged_nothing(run_folder: RunFolder, text: str | None) -> None:
    folder = run_folder()
    (folder / "metrics.csv").unlink()
    if text is not None:
        (folder / "metrics.csv").write_text(text)
    assert read_metrics(folder) == {}


@pytest.mark.parametrize("row", ["2,spam", "spam,2", "2,3,4"])
def test_a_damaged_cell_is_named(run_folder: RunFolder, row: str) -> None:
    folder = run_folder()
    (folder / "metrics.csv").write_text(f"update,a\n1,1.0\n{row}\n")
    with pytest.raises(UserError, match=r"metrics.csv, line 3, is damaged"):
        read_metrics(folder)


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_what_lightning_writes_can_be_read(run_folder: RunFolder) -> None:
    folder = run_folder()
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    logger.log_metrics({"update": 1, "train/loss": 2.0}, step=1)
    logger.log_metrics({"update": 1, "valid/tv_on": 0.5}, step=1)
    logger.save()
    assert read_metrics(folder) == {"train/loss": [(1.0, 2.0)], "valid/tv_on": [(1.0, 0.5)]}


def test_levels(results: dict[str, Any]) -> None:
    results["teacher"]["accuracy"] = None
    del results["student"]["kl_off"]
    assert level(results, "student_start", "rouge_l") == 50.0
    assert level(results, "teacher", "accuracy") is None
    assert level(results, "student", "kl_off") is None


def test_samples_are_judged_by_rouge_where_there_is_no_checker(results: dict[str, Any]) -> None:
    assert sampled_metric(results) == "sampled_accuracy"
    results["student"]["sampled_accuracy"] = None
    assert sampled_metric(results) == "sampled_rouge_l"


def test_heading(results: dict[str, Any]) -> None:
    assert heading(results) == (
        "samsum: moment matching, closed form critic α 0.25, β 0.5",
        "scale demo, updates 20, seed 3",
    )
    results |= {"objective": {"distance": "kl", "beta": 1.0}, "seed": 0, "scale": None}
    assert heading(results) == ("samsum: KL, β 1", "updates 20, seed 0")
    assert heading({"objective": {"distance": "brand_new"}}) == ("unknown task: brand new", "")


@pytest.mark.parametrize(
    "value, decimals, text",
    [
        (0.12345, 3, "0.123"),
        (12.345, 3, "12.35"),
        (52.66, 1, "52.7"),
        (-1e-9, 3, "0.000"),
        (-0.5, 3, "-0.500"),
    ],
)
def test_number(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals) == text
