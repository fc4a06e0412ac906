"""`python -m amd_lightning.evaluate`: a model alone scores as it did in its run."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from amd_lightning import evaluate
from amd_lightning.models import adapters, locating
from amd_lightning.models.loading import load_policy
from amd_lightning.running.outcome import Outcome
from amd_lightning.running.results import assemble, write
from tests.helpers import TINY_RUN, tiny_run

DATA = tuple(text for text in TINY_RUN if text.startswith(("+experiment", "data.")))


class Run(NamedTuple):
    outcome: Outcome
    folder: Path
    student: Path
    teacher: Path
    cache: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    folder, cache = root / "run", root / "cache"
    outcome = tiny_run(folder, cache, "optim.student.updates=1", "trainer.validate_every=0")
    write(folder, assemble(outcome, {"task": "samsum"}), outcome)
    return Run(outcome, folder, folder / "student", cache / "teacher" / outcome.keys["teacher"], cache)


def evaluated(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, data: tuple[str, ...] = DATA
) -> dict[str, Any]:
    places = (f"hydra.run.dir={folder}", f"cache.dir={run.cache}")
    monkeypatch.setattr(sys, "argv", ["evaluate", *data, *places, *arguments])
    evaluate.main()
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def rows(folder: Path, who: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "who"} for row in found if row["who"] == who]


def test_with_its_teacher_a_student_measures_what_its_run_did(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(run, tmp_path / "out", monkeypatch, f"model={run.student}", f"teacher={run.teacher}")
    expected = run.outcome.evaluations["student"].metrics
    assert {name: found["model"][name] for name in expected} == expected
    assert found["model"]["parameters"] == run.outcome.parameters["student"]
    teacher = run.outcome.evaluations["teacher"].metrics
    assert {name: found["teacher"][name] for name in teacher} == teacher
    assert rows(tmp_path / "out", "model") == rows(run.folder, "student")
    assert rows(tmp_path / "out", "teacher") == rows(run.folder, "teacher")
    assert (found["task"], found["rows"], found["quality"]) == ("samsum", {"test": 8}, "rouge_l")
    assert found["path"] == str(run.student)
    out = capsys.readouterr().out
    assert "2TV" in out
    assert "…" not in out.partition("Everything")[0]
    assert f"Everything lies in {tmp_path / 'out'}" in out


def test_alone_it_is_scored_by_its_text(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(run, tmp_path / "out", monkeypatch, f"model={run.student}")
    expected = run.outcome.evaluations["student"].metrics
    text = {"rouge_l", "sampled_rouge_l", "accuracy", "sampled_accuracy"}
    assert set(found["model"]) == {*text, "parameters"}
    assert {name: found["model"][name] for name in text} == {name: expected[name] for name in text}
    assert "teacher" not in found
    assert "2TV" not in capsys.readouterr().out
    assert rows(tmp_path / "out", "model") == rows(run.folder, "student")


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "no model; write model=PATH_OR_ID"),
        (("--model", "DIR"), "options have no dashes here: write model=DIR"),
        (("--model=DIR",), "write model=DIR"),
        (("--model",), "write model=PATH_OR_ID"),
        (("model=x", "--teacher", "DIR"), "write teacher=DIR"),
        (("model=nowhere/", "--multirun"), "--multirun is not for this command"),
        (("model=x", "objective.beta=1"), "objective.beta=1 would be ignored: nothing is trained"),
        (("model=x", "trainer.precision=bf16-true"), "would be ignored"),
        (("model=x", "evaluation.metric=bleu"), "would be ignored"),
        (("model=x", "pair=gpt2"), "would be ignored"),
        (("model=x", "model.lora.rank=4"), "model.lora.rank is not known; choose model.revision"),
        (("model=x", "teacher.dtype=bfloat16"), "teacher.dtype needs teacher=PATH_OR_ID"),
        (("model=x", "model.dtype=float16"), "model.dtype=float16 is not one of"),
        (("model=x", "data.tsak=dolly"), "data.tsak is not a knob; did you mean data.task?"),
        (("model=./nowhere",), "there is no model folder ./nowhere"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "+experiment=samsum", "cache=off", *arguments])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    message = str(caught.value.code)
    assert message.startswith("error: ")
    assert said in message
    assert "pair." not in message.replace("pair=gpt2", "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.glob("runs/samsum/evaluate/*/*"))


@pytest.mark.parametrize(
    "teacher, remedy", [((), "(model=DIR), or"), (("teacher=nobody/other",), "(teacher=DIR model=DIR), or")]
)
def test_a_hub_that_does_not_answer_is_said_in_this_commands_words(
    teacher: tuple[str, ...], remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(locating, "hub_reachable", lambda: False)
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "+experiment=samsum", "cache=off", "model=nobody/nothing", *teacher]
    )
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    assert f"give a model folder {remedy}" in str(caught.value.code)


def test_adapters_are_scored_on_their_base(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(str(run.student))
    adapters.add_adapters(policy.model, adapters.Lora(2, 4.0, 0.0, ("q",)))  # they begin as zero
    (tmp_path / "adapters").mkdir()
    adapters.save_adapters(policy.model, tmp_path / "adapters", str(run.student), None)
    found = evaluated(run, tmp_path / "out", monkeypatch, f"model={tmp_path / 'adapters'}")
    assert found["model"]["rouge_l"] == run.outcome.evaluations["student"].metrics["rouge_l"]
    assert "base" in found["source_files"]
    assert rows(tmp_path / "out", "model") == rows(run.folder, "student")


def test_a_runs_folder_points_to_its_student(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"its model is model=.*student"):
        evaluated(run, tmp_path, monkeypatch, f"model={run.folder}")
    before = rows(run.folder, "student")
    with pytest.raises(SystemExit, match=r"predictions\.jsonl would be lost"):
        evaluated(run, run.folder, monkeypatch, f"model={run.student}")
    assert rows(run.folder, "student") == before


def test_help_is_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "--help"])
    evaluate.main()
    assert "python -m amd_lightning.evaluate model=" in capsys.readouterr().out
