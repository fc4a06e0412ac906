"""Whole runs in seconds: what they leave behind, what they share, and what changes no number."""

import csv
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from amd_lightning.data.embedded import samsum_rows
from amd_lightning.running import results
from amd_lightning.running.outcome import Outcome
from tests.helpers import tiny_run

SAMPLES = ("teacher_samples_valid", "teacher_samples_test")
SHARED = ("tokenizer", "teacher", "student_start", *SAMPLES, "evaluate_teacher", "evaluate_student_start")


class Run(NamedTuple):
    """A finished run and where it lies."""

    outcome: Outcome
    folder: Path
    cache: Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """AMM at β = .5, with an empty cache."""
    root = tmp_path_factory.mktemp("base")
    return Run(tiny_run(root / "run", root / "cache"), root / "run", root / "cache")


def numbers(outcome: Outcome) -> dict[str, Any]:
    """Everything a run measured, times apart."""
    return {
        "evaluations": outcome.evaluations,
        "validation": outcome.validation,
        "parameters": outcome.parameters,
        "tokens": outcome.tokens,
    }


def curve(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without its clocks."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


# -- what a run leaves -------------------------------------------------------------------------------


def test_nothing_is_found_in_an_empty_cache(base: Run) -> None:
    assert base.outcome.cached == dict.fromkeys([*SHARED, "distil", "evaluate_student"], False)
    assert all(seconds > 0.0 for seconds in base.outcome.seconds.values())
    assert base.outcome.rows == {"train": 40, "valid": 8, "test": 8}


def test_the_student_loads_without_this_project(base: Run) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(base.folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(base.folder / "student")
    assert model.num_parameters() == base.outcome.parameters["student"]
    inputs = tokenizer(["summarize: Adam: Hi!"], return_tensors="pt")
    assert model.generate(**inputs, do_sample=False).shape[-1] <= 13  # the start token and 12 more


def test_the_checkpoint_holds_the_student_that_was_saved(base: Run) -> None:
    saved = torch.load(base.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["progress"] == {"update": 4, "tokens_seen": base.outcome.tokens}
    model = AutoModelForSeq2SeqLM.from_pretrained(base.folder / "student")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved["state_dict"][f"student.model.{name}"], value, rtol=0, atol=0)


def test_the_curve_has_every_update_and_validation(base: Run) -> None:
    rows = curve(base.folder)
    assert [row["update"] for row in rows if row["train/loss"]] == ["1", "2", "3", "4"]
    validations = [row for row in rows if row["valid/rouge_l"]]
    assert [row["update"] for row in validations] == ["2", "4"]
    measured = {
        name.removeprefix("valid/"): value for name, value in validations[-1].items() if "valid" in name
    }
    assert {name: float(value) for name, value in measured.items()} == base.outcome.validation


def test_distilling_brings_the_student_nearer(base: Run) -> None:
    start, student = (base.outcome.evaluations[who].metrics for who in ("student_start", "student"))
    assert (student["tv_off"] or 1.0) < (start["tv_off"] or 0.0)
    assert base.outcome.evaluations["teacher"].metrics["tv_on"] == pytest.approx(0.0, abs=1e-5)


def test_a_package_that_is_missing_fails_no_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PACKAGES", ("torch", "no-such-package"))
    assert set(results.versions()) == {"python", "amd_lightning", "torch"}


def test_results_have_the_documented_keys(base: Run, tmp_path: Path) -> None:
    found = results.assemble(base.outcome, {"task": "samsum", "seed": 0})
    assert set(found) == {
        *results.MODELS,
        *("quality", "metric_signatures", "evaluation_sets", "vocabulary"),
        *("task", "seed", "validation", "rows", "cost", "cache_keys", "versions", "git_commit"),
    }
    metrics = {"rouge_l", "accuracy", "sampled_accuracy", "tv_off", "tv_on", "kl_off", "rkl_on", "js_on"}
    metrics |= {"kl_sequence_off", "probe_off", "probe_train_on", "exact_match", "mmd_squared", "worst_case"}
    gaps = {f"{name}_{side}" for name in ("moment_gap", "gap_over_tv") for side in ("off", "on")}
    assert metrics - {"response_tokens"} | gaps <= set(found["validation"])
    for who in results.MODELS:
        assert metrics | {"parameters", "response_tokens", "seconds"} <= set(found[who])
        assert all(math.isfinite(value) for value in found[who].values())
    assert set(found["cost"]) == {"seconds", "cached", "tokens", "peak_memory_mb"}
    assert found["cost"]["peak_memory_mb"]["cpu"] > 100
    assert set(found["cache_keys"]) == set(SHARED)
    assert {"python", "amd_lightning", "torch", "transformers"} <= set(found["versions"])

    results.write(tmp_path, found, base.outcome)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["who"], row["kind"]) for row in rows[::8]] == [
        (who, kind) for who in results.MODELS for kind in ("greedy", *["sampled"] * 4)
    ]
    assert set(rows[0]) == {"who", "id", "kind", "prompt", "references", "response", "scores"}


# -- what runs share ---------------------------------------------------------------------------------


def test_a_second_run_finds_everything_and_measures_the_same(base: Run, tmp_path: Path) -> None:
    again = tiny_run(tmp_path, base.cache)
    assert [stage for stage, cached in again.cached.items() if cached] == list(SHARED)
    assert numbers(again) == numbers(base.outcome)
    assert curve(tmp_path) == curve(base.folder)
    assert again.keys == base.outcome.keys


def test_a_run_without_the_cache_measures_the_same(base: Run, tmp_path: Path) -> None:
    again = tiny_run(tmp_path / "run", tmp_path / "unused", "cache=off")
    assert not any(again.cached.values())
    assert not (tmp_path / "unused").exists()
    assert (tmp_path / "run" / "artifacts" / "teacher").is_dir()
    assert numbers(again) == numbers(base.outcome)


@pytest.mark.parametrize(
    "method",
    [
        ("objective=kd",),
        ("objective.beta=1", "critic=closed_form", "seed=7", "optim.student.updates=1"),
        ("objective=seqkd", "optim.student.updates=1"),
    ],
    ids=["kd", "another critic", "seqkd"],
)
def test_methods_share_the_pair_and_its_evaluations(
    method: tuple[str, ...], base: Run, tmp_path: Path
) -> None:
    other = tiny_run(tmp_path, base.cache, *method)
    assert {stage: other.cached[stage] for stage in SHARED} == dict.fromkeys(SHARED, True)
    assert {stage: other.keys[stage] for stage in SHARED} == base.outcome.keys
    assert other.evaluations["teacher"] == base.outcome.evaluations["teacher"]
    assert other.evaluations["student"] != base.outcome.evaluations["student"]
    assert other.tokens["on"] == 0
    assert ("teacher_responses" in other.keys) is (method[0] == "objective=seqkd")


def test_the_seed_of_the_pair_makes_another_pair(base: Run, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, base.cache, "pair.seed=1", "optim.student.updates=1")
    assert [stage for stage in SHARED if other.cached[stage]] == ["tokenizer"]


def test_another_teacher_leaves_the_student_start(base: Run, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, base.cache, "optim.teacher.updates=2", "optim.student.updates=1")
    assert [stage for stage in SHARED if other.cached[stage]] == ["tokenizer", "student_start"]


def test_seqkd_learns_what_the_teacher_wrote(base: Run, tmp_path: Path) -> None:
    found = tiny_run(tmp_path, base.cache, "objective=seqkd", "optim.student.updates=1")
    path = base.cache / "teacher_responses" / found.keys["teacher_responses"] / "responses.json"
    responses = json.loads(path.read_text())
    assert len(responses) == 40
    assert all(1 <= len(ids) <= 12 for ids in responses)
    assert found.tokens["off"] <= 8 * 12
    assert "teacher_responses" in found.seconds


# -- the teacher's samples, and what is measured with them --------------------------------------------


def test_the_teachers_samples_are_draws_to_every_row(base: Run) -> None:
    for name in SAMPLES:
        path = base.cache / "teacher_samples" / base.outcome.keys[name] / "samples.json"
        draws = json.loads(path.read_text())
        assert [len(draw) for draw in draws] == [8] * 4
        assert all(1 <= len(ids) <= 12 for draw in draws for ids in draw)
        assert len({tuple(map(tuple, draw)) for draw in draws}) == 4
    assert base.outcome.keys[SAMPLES[0]] != base.outcome.keys[SAMPLES[1]]


def test_another_number_of_samples_leaves_the_models(base: Run, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, base.cache, "evaluation.samples=1", "optim.student.updates=1")
    assert [stage for stage in SHARED if other.cached[stage]] == ["tokenizer", "teacher", "student_start"]
    metrics = other.evaluations["student"].metrics
    assert metrics["mmd_squared"] is None
    assert metrics["exact_match"] is not None


@pytest.mark.parametrize(
    "options, diagnosed",
    [
        (("evaluation.diagnose_every=2",), ["2", "4"]),
        (("evaluation.diagnose_every=3",), ["3", "4"]),
        (("evaluation.diagnose_every=0",), ["4"]),
        (("evaluation.diagnose_every=0", "trainer.validate_every=0"), ["4"]),
    ],
)
def test_the_costly_part_of_a_validation_comes_at_its_interval(
    options: tuple[str, ...], diagnosed: list[str], base: Run, tmp_path: Path
) -> None:
    other = tiny_run(tmp_path, base.cache, "trainer.validate_every=1", *options)
    rows = curve(tmp_path)
    assert [row["update"] for row in rows if row["valid/probe_on"]] == diagnosed
    assert [row["update"] for row in rows if row["valid/worst_case"]] == diagnosed
    every = ["4"] if "trainer.validate_every=0" in options else ["1", "2", "3", "4"]
    assert [row["update"] for row in rows if row["valid/js_on"]] == every
    # Neither the interval nor what is measured changes what is learned.
    assert other.validation == base.outcome.validation
    assert other.evaluations == base.outcome.evaluations


# -- other sources of models and data ----------------------------------------------------------------


def pair(base: Run) -> list[str]:
    """The base's teacher and student start, as folders."""
    folders = {who: base.cache / who / base.outcome.keys[who] for who in ("teacher", "student_start")}
    return [f"pair.teacher.path={folders['teacher']}", f"pair.student.path={folders['student_start']}"]


def test_loaded_models_are_taken_as_they_are_at_zero_updates(base: Run, tmp_path: Path) -> None:
    as_is = ("optim.teacher.updates=0", "optim.student_start.updates=0", "optim.teacher.warmup_updates=0")
    loaded = tiny_run(tmp_path / "run", tmp_path / "cache", *pair(base), *as_is)
    assert set(loaded.keys) == {*SAMPLES, "evaluate_teacher", "evaluate_student_start"}
    assert numbers(loaded) == numbers(base.outcome)

    narrow = (*as_is, "pair.teacher.dtype=bfloat16", "optim.student.updates=1")
    other = tiny_run(tmp_path / "narrow", tmp_path / "cache", *pair(base), *narrow)
    assert not other.cached["evaluate_teacher"]
    assert other.parameters == loaded.parameters


def test_loaded_models_are_fine_tuned(base: Run, tmp_path: Path) -> None:
    tuned = tiny_run(tmp_path / "run", base.cache, *pair(base), "optim.student.updates=1")
    assert {stage: tuned.cached[stage] for stage in ("teacher", "student_start")} == {
        "teacher": False,
        "student_start": False,
    }
    before, after = (outcome.evaluations["teacher"].metrics for outcome in (base.outcome, tuned))
    assert before["response_tokens"] is not None
    assert before != after
    assert tuned.keys["teacher"] != base.outcome.keys["teacher"]


def test_rows_may_come_from_files_in_the_hubs_format(base: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, split, rows in (("train", "train", 24), ("validation", "valid", 8), ("test", "test", 8)):
        lines = [
            json.dumps({column: row[column] for column in ("id", "dialogue", "summary")})
            for row in samsum_rows(split, rows, seed=1)  # type: ignore[arg-type]
        ]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    found = tiny_run(
        tmp_path / "run", base.cache, "data.source=files", f"data.path={data}", "optim.student.updates=1"
    )
    assert found.rows == {"train": 24, "valid": 8, "test": 8}
    assert not any(found.cached.values())
    for evaluation in found.evaluations.values():
        assert evaluation.metrics["accuracy"] is None
        assert evaluation.metrics["rouge_l"] is not None
