"""lm_eval beside a run's own metrics: `python -m amd_lightning.evaluate ... lm_eval.tasks=[...]`."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amd_lightning import evaluate
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import UserError
from amd_lightning.evaluation import lm_eval_tasks
from amd_lightning.evaluation.lm_eval_tasks import LmEvalSettings
from amd_lightning.models.loading import build_model, save_policy

TEXTS = ["Adam meets Kate at noon . Is the question right ? yes no cake or soup Q: A:"]
SHAPE = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_decoder_layers": 1, "dropout_rate": 0.0}
TINY = (
    "+experiment=samsum",
    "data.test_rows=4",
    "data.train_rows=8",
    "data.valid_rows=4",
    "data.max_prompt_tokens=64",
    "data.max_response_tokens=4",
    "data.long_responses=truncate",
)
QUESTIONS = [
    {"question": f"Is {name} at {place} right ?", "answer": place == "noon"}
    for name in ("Adam", "Kate")
    for place in ("noon", "soup", "cake")
]


def student(folder: Path, family: str) -> Path:
    """A tiny model folder with random weights, as a run leaves it."""
    tokenizer = train_tokenizer(TEXTS, 280, causal=family == "llama")
    torch.manual_seed(3)
    shape = SHAPE if family == "llama" else {**SHAPE, "num_layers": 1}
    policy = build_model({"family": family, **shape}, tokenizer, len(tokenizer))
    save_policy(policy, tokenizer, folder, 4)
    return folder


def own_task(folder: Path) -> Path:
    """A task of one's own: six questions in a JSONL file, yes or no, by the likelier answer."""
    rows = folder / "questions.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    task = folder / "own_questions.yaml"
    task.write_text(
        "task: own_questions\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: 'Q: {{question}} A:'\n"
        "doc_to_choice: ['no', 'yes']\n"
        "doc_to_target: '{{answer | int}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 2.0}\n",
        encoding="utf-8",
    )
    return task


def right(folder: Path) -> float:
    """The share of questions whose likelier answer is right, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    hits = 0
    for row in QUESTIONS:
        prompt = tokenizer(f"Q: {row['question']} A:", add_special_tokens=False).input_ids
        logits = []
        for answer in (" no", " yes"):
            ids = torch.tensor([prompt + tokenizer(answer, add_special_tokens=False).input_ids])
            scores = model(ids).logits[0, :-1].log_softmax(-1)
            chosen = scores.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
            logits.append(float(chosen.sum()))
        hits += (logits[1] > logits[0]) == row["answer"]
    return hits / len(QUESTIONS)


@pytest.mark.slow
def test_a_task_of_ones_own_is_scored_beside_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    model = student(tmp_path / "student", "llama")
    arguments = [
        *TINY,
        f"model={model}",
        f"cache.dir={tmp_path / 'cache'}",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, f"lm_eval.tasks={own_task(tmp_path)}"])
    evaluate.main()
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found = written["lm_eval"]
    assert found["results"]["own_questions"]["acc,none"] == pytest.approx(right(model))
    assert found["examples"] == {"own_questions": 6}
    assert found["task_versions"] == {"own_questions": 2.0}
    assert found["version"] == importlib.import_module("lm_eval").__version__
    assert "rouge_l" in written["model"]
    assert "lm_eval" in written["cost"]["seconds"]
    assert f"lm_eval own_questions: acc,none {right(model):.3f} ± " in capsys.readouterr().out


def test_tasks_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"lm_eval cannot find a task \(.*no_such_task.*lm-eval ls tasks"
    ) as said:
        lm_eval_tasks.load(LmEvalSettings(["no_such_task"]))
    assert "\n" not in str(said.value)


def test_data_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    task = own_task(tmp_path)
    (tmp_path / "questions.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"lm_eval cannot read what its tasks need .*questions\.jsonl"
    ) as said:
        lm_eval_tasks.load(LmEvalSettings([str(task)]))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("lm_eval.task=x",), "lm_eval.task is not known; choose lm_eval.tasks, lm_eval.num_fewshot"),
        (("lm_eval.limit=3",), "lm_eval has nothing to do; name its tasks"),
        (("lm_eval.tasks=a", "lm_eval.limit=0"), "lm_eval.limit=0 is too small; set at least 1"),
        (("lm_eval.tasks=[a,b]", "lm_eval.batch_size=many"), "batch_size"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "model=x", "+experiment=samsum", *arguments])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    message = str(caught.value.code)
    assert message.startswith("error: ")
    assert said in message
    assert "\n" not in message


def test_a_missing_package_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "lm_eval" else real(name, *of)
    )
    with pytest.raises(
        UserError, match=r"lm_eval\.tasks needs a package .*'amd-lightning\[lm_eval\]'"
    ) as said:
        lm_eval_tasks.require(LmEvalSettings(["arc_easy"]))
    assert "\n" not in str(said.value)


def test_an_encoder_decoder_is_refused_before_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "require", lambda settings: None)  # the package is not needed to say so
    model = student(tmp_path / "student", "t5")
    arguments = [
        *TINY,
        f"model={model}",
        f"cache.dir={tmp_path / 'cache'}",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "lm_eval.tasks=arc_easy"])
    with pytest.raises(SystemExit, match=r"lm_eval scores causal models, and model=.* is an encoder-dec"):
        evaluate.main()
    assert not (tmp_path / "out").exists()
