"""Fabricated run folders, as small as a run folder can be."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

RunFolder = Callable[..., Path]


def fabricated_results() -> dict[str, Any]:
    """results.json of a run in which every number is another one."""

    def model(rouge_l: float, accuracy: float, tv: float, kl: float, parameters: int) -> dict[str, Any]:
        return {
            "rouge_l": rouge_l,
            "sampled_rouge_l": rouge_l - 10.0,
            "accuracy": accuracy,
            "sampled_accuracy": accuracy - 0.1,
            "tv_off": tv,
            "tv_on": 2.0 * tv,
            "kl_off": kl,
            "kl_on": 2.0 * kl,
            "rkl_off": 3.0 * kl,
            "rkl_on": 4.0 * kl,
            "response_tokens": 9.0,
            "parameters": parameters,
            "seconds": 12.34,
        }

    return {
        "teacher": model(90.0, 0.9, 0.0, 0.0, 1_034_112),
        "student_start": model(50.0, 0.3, 0.2, 0.8, 12_345),
        "student": model(80.0, 0.75, 0.05, 0.1, 12_345),
        "task": "samsum",
        "scale": "demo",
        "seed": 3,
        "updates": 20,
        "objective": {
            "distance": "moment_matching",
            "beta": 0.5,
            "normalise": "token",
            "critic": {"kind": "closed_form", "alpha": 0.25},
        },
    }


FABRICATED_ROWS: list[dict[str, float]] = [
    {
        "update": update,
        "train/loss": 1.0 / update,
        "train/moment_gap_off": 0.5 / update,
        "train/moment_gap_on": 0.7 / update,
        "train/tv_off": 0.4 / update,
        "train/tv_on": 0.6 / update,
    }
    for update in (1, 10, 20)
] + [
    {
        "update": update,
        "valid/rouge_l": 60.0 + update,
        "valid/sampled_accuracy": 0.5 + update / 100.0,
        "valid/tv_on": 0.2,
        "valid/kl_off": 0.3,
    }
    for update in (10, 20)
]


@pytest.fixture
def results() -> dict[str, Any]:
    """The content of a results.json, to be changed at will."""
    return fabricated_results()


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    """Writes a run folder: `run_folder(results, rows)`; rows without some keys leave these cells empty."""

    def write(
        results: Mapping[str, Any] | None = None, rows: Sequence[Mapping[str, float]] = FABRICATED_ROWS
    ) -> Path:
        found = fabricated_results() if results is None else results
        (tmp_path / "results.json").write_text(json.dumps(found), encoding="utf-8")
        keys = sorted({key for row in rows for key in row} | {"step"})
        with (tmp_path / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows({"step": row.get("update", 0), **row} for row in rows)
        return tmp_path

    return write
