"""`python -m amd_lightning.evaluate`: a model alone scores as it did in its run."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from amd_lightning import adapters, evaluate
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import UserError
from amd_lightning.evaluation import lm_tasks
from amd_lightning.models import load_policy
from amd_lightning.outcome import Outcome
from amd_lightning.results import assemble, write
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
    assert "2TV on" in out.replace("\n", " ")
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


# -- the lm-evaluation-harness ------------------------------------------------------------------

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["red", "blue"]
doc_to_target: answer
metric_list:
  - metric: acc
"""


def causal_folder(folder: Path) -> None:
    tokenizer = train_tokenizer([f"word{place} red blue" for place in range(40)], 300)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("lm_eval.limit=3",), "lm_eval.* needs lm_eval.tasks=NAME,NAME"),
        (("lm_eval.tasks=a", "lm_eval.shots=3"), "lm_eval.shots is not known; choose lm_eval.tasks"),
        (("lm_eval.tasks=a", "lm_eval.limit=0"), "lm_eval.limit=0 is not a whole number of 1 or more"),
    ],
)
def test_what_is_asked_of_the_harness_is_checked(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate.taken_apart(["model=./m", *arguments])
    assert said in str(caught.value)


def test_without_the_harness_its_tasks_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_tasks, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'amd_lightning"):
        lm_tasks.require_harness()


def test_the_harness_metrics_lose_their_filters_name() -> None:
    values = {
        "alias": "colours",
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
        "em,flexible": 0.25,
        "sample_len": 4,
    }
    assert lm_tasks.plain(values) == {"acc": 0.5, "em (flexible)": 0.25}


def test_tasks_of_the_harness_are_measured_beside_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    model = tmp_path / "model"
    causal_folder(model)
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": f"Is {place} red or blue?", "answer": place % 2} for place in range(6)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "colours.yaml").write_text(TASK.format(file=questions))
    asked = (f"model={model}", "lm_eval.tasks=colours", f"lm_eval.folder={tasks}", "lm_eval.limit=4")
    place = f"hydra.run.dir={tmp_path / 'out'}"
    monkeypatch.setattr(
        sys, "argv", ["evaluate", "+experiment=samsum", "data.test_rows=2", "cache=off", place, *asked]
    )
    evaluate.main()
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["lm_eval"]["colours"]["acc"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "sampled_rouge_l" in found["model"]
