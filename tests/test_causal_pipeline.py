"""Whole runs of a causal pair in seconds: built from its config, and loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from amd_lightning.models.loading import load_tokenizer
from amd_lightning.running.outcome import Outcome
from tests.helpers import tiny_run

LLAMAS = tuple(f"pair.{who}.architecture.family=llama" for who in ("teacher", "student"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """AMM at β = .5, two Llamas of widths 32 and 16."""
    root = tmp_path_factory.mktemp("causal")
    return tiny_run(root / "run", root / "cache", *LLAMAS), root


def test_distilling_brings_the_student_nearer(base: tuple[Outcome, Path]) -> None:
    outcome, _ = base
    teacher, start, student = (
        outcome.evaluations[who].metrics for who in ("teacher", "student_start", "student")
    )
    assert (student["tv_off"] or 1.0) < (start["tv_off"] or 0.0)
    assert teacher["tv_on"] == pytest.approx(0.0, abs=1e-5)
    for metrics in (teacher, start, student):
        assert all(value is not None and math.isfinite(value) for value in metrics.values())
    assert min(outcome.tokens.values()) > 0


def test_the_student_loads_without_this_project(base: tuple[Outcome, Path]) -> None:
    outcome, root = base
    model: Any = AutoModelForCausalLM.from_pretrained(root / "run" / "student")
    tokenizer = AutoTokenizer.from_pretrained(root / "run" / "student")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.num_parameters() == outcome.parameters["student"]
    inputs = tokenizer(["summarize: Adam: Hi!"], return_tensors="pt")
    assert inputs.input_ids[0, -1] == tokenizer.bos_token_id  # where a response begins
    prompt = inputs.input_ids.shape[1]
    assert model.generate(**inputs, do_sample=False).shape[1] <= prompt + 12


def test_a_loaded_pair_measures_what_the_built_one_did(base: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, root = base
    loaded = []
    for who in ("teacher", "student_start"):
        folder = root / "cache" / who / outcome.keys[who]
        name = "student" if who == "student_start" else who
        loaded += [f"pair.{name}.path={folder}", f"optim.{who}.updates=0"]
        assert load_tokenizer(str(folder)).bos_token_id == 3
    again = tiny_run(tmp_path / "run", tmp_path / "cache", *LLAMAS, *loaded, "objective=kd")
    for who in ("teacher", "student_start"):
        found, expected = again.evaluations[who].metrics, outcome.evaluations[who].metrics
        assert found["tv_off"] == pytest.approx(expected["tv_off"], rel=1e-6)
        assert found["rouge_l"] == expected["rouge_l"]
