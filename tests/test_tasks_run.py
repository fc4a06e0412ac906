"""Whole runs of the tasks beside SAMSum: their own metric, and Dolly's further test sets."""

import json
from pathlib import Path

import pytest

from amd_lightning.errors import DataError
from amd_lightning.running import results
from tests.helpers import tiny_run

QUICK = ("optim.teacher.updates=2", "optim.student_start.updates=1", "optim.student.updates=1")
SHORT = ("evaluation.samples=2", "objective=kd", "evaluation.diagnose_every=0")


@pytest.mark.parametrize("task, quality", [("iwslt", "bleu"), ("strategyqa", "accuracy")])
def test_a_task_is_scored_by_its_own_metric(task: str, quality: str, tmp_path: Path) -> None:
    # TINY_RUN is of SAMSum; the later choice of a group wins.
    found = tiny_run(tmp_path / "run", tmp_path / "cache", f"data={task}", *QUICK, *SHORT)
    content = results.assemble(found, {})
    assert content["quality"] == found.quality == quality
    for who in results.MODELS:
        assert {quality, f"sampled_{quality}", "accuracy"} <= set(content[who])
        assert "rouge_l" not in content[who] or task == "strategyqa"
    assert set(content["metric_signatures"]) == ({"bleu"} if task == "iwslt" else set())
    if task == "strategyqa":
        assert 0.0 <= content["student"]["unparsed"] <= 1.0
    assert found.validation[quality] is not None


def test_dolly_is_tested_on_further_sets(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": ["A cat.", "A dog."]} for n in range(9)]
    (tmp_path / "vicuna.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ("data=dolly", "data.evaluation_sets=[vicuna]", f"data.evaluation_path={tmp_path}")
    found = tiny_run(tmp_path / "run", tmp_path / "cache", *sets, *QUICK, *SHORT)
    content = results.assemble(found, {})
    assert set(content["evaluation_sets"]) == {"vicuna"}
    for who in results.MODELS:
        assert content["evaluation_sets"]["vicuna"][who]["sampled_rouge_l"] is not None
    assert found.rows["vicuna"] == 8, "test_rows holds for it too"
    results.write(tmp_path / "run", content, found)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    written = [row for row in map(json.loads, lines) if row.get("evaluation_set") == "vicuna"]
    assert len(written) == 3 * 8 * 3  # models, rows, the best and two draws
    with pytest.raises(DataError, match="no evaluation set s_ni"):
        tiny_run(
            tmp_path / "other", tmp_path / "cache", "data=dolly", *QUICK, *SHORT,
            "data.evaluation_sets=[s_ni]", f"data.evaluation_path={tmp_path}",
        )  # fmt: skip
