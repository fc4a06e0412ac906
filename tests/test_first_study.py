"""The study's runs: each composes, learning rates are chosen by validation alone, and runs come in order."""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from hydra import compose, initialize_config_dir

from amd_lightning import conf_dir
from amd_lightning.cli import validated

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "first_study"))
import choosing  # noqa: E402
import collect  # noqa: E402
import grid  # noqa: E402
import prepare  # noqa: E402
import standings  # noqa: E402
import study  # noqa: E402
from choosing import Choice  # noqa: E402
from grid import Point  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choosing, "RECORD", tmp_path / "results")


def options(out: Path, **changes: Any) -> argparse.Namespace:
    asked = {"out": out, "data": Path("data"), "tasks": ["multi30k"], "methods": None, "seeds": [0, 1, 2]}
    asked["set"] = []
    return argparse.Namespace(**(asked | changes))


def finish(out: Path, point: Point, score: float, test: float = 0.0) -> None:
    folder = out / point.place
    folder.mkdir(parents=True, exist_ok=True)
    results = {"task": "iwslt", "validation": {"sampled_bleu": score}, "student": {"sampled_bleu": test}}
    (folder / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize("task", grid.TASKS)
def test_every_method_of_every_task_composes(task: str, tmp_path: Path) -> None:
    asked = options(tmp_path)
    for method in study.methods_of(task, asked):
        point = Point(task, method, grid.LEARNING_RATES[task][0], 0)
        overrides = study.command(point, asked)[3:]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("config", overrides=["output_dir=.", *overrides])
            config = validated(composed, overrides, refuse_ignored=True)
        assert config.optim.student.learning_rate == point.learning_rate
        assert config.data.source == "files"


def test_the_first_seed_climbs_the_grid_and_the_others_run_at_its_choice(tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["kd"])
    begun = list(study.points(asked))
    assert [(point.learning_rate, point.seed) for point in begun] == [(1e-3, 0), (3e-3, 0)]
    for point, score, test in zip(begun, (20.0, 22.0), (9.0, 1.0), strict=True):
        finish(tmp_path, point, score, test)
    more = list(study.points(asked))
    assert [(point.learning_rate, point.seed) for point in more] == [(1e-3, 0), (3e-3, 0), (1e-2, 0)]
    assert Choice(tmp_path, "multi30k", "kd", asked.seeds).chosen is None
    finish(tmp_path, more[-1], 20.0, 9.0)
    assert [(point.learning_rate, point.seed) for point in study.points(asked)][3:] == [(3e-3, 1), (3e-3, 2)]


def test_all_seeds_decide_between_rates_that_are_close(tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["kd"], seeds=[0, 1, 2, 3])
    for rate, score in {1e-3: 20.0, 3e-3: 20.5, 1e-2: 15.0}.items():
        finish(tmp_path, Point("multi30k", "kd", rate, 0), score)
    further = [(p.learning_rate, p.seed) for p in study.points(asked) if p.seed]
    assert further == [(3e-3, 1), (1e-3, 1), (3e-3, 2), (1e-3, 2)]  # 3 chooses nothing, and waits
    assert Choice(tmp_path, "multi30k", "kd", asked.seeds).chosen is None
    assert Choice(tmp_path, "multi30k", "kd", asked.seeds).best_so_far == 3e-3
    for rate, score in ((1e-3, 20.0), (3e-3, 19.0)):
        for seed in (1, 2):
            finish(tmp_path, Point("multi30k", "kd", rate, seed), score)
    assert Choice(tmp_path, "multi30k", "kd", asked.seeds).chosen == 1e-3
    assert [(p.learning_rate, p.seed) for p in study.points(asked)][-1] == (1e-3, 3)


def test_what_is_tried_at_one_rate_has_no_grid(tmp_path: Path) -> None:
    name, rate = next(iter(grid.AT_ONE_RATE["multi30k"].items()))
    asked = options(tmp_path, methods=[name])
    (first,) = study.points(asked)
    assert first.learning_rate == rate
    finish(tmp_path, first, 20.0)
    assert [(p.learning_rate, p.seed) for p in study.points(asked)] == [(rate, seed) for seed in (0, 1, 2)]


def test_a_critic_learns_in_its_proportion_to_the_student(tmp_path: Path) -> None:
    asked = options(tmp_path, set=["trainer.accelerator=gpu"], data=tmp_path)
    for method, rate in (("amm_beta.5", "0.003"), ("amm_slow_critic_beta1", "0.000333333")):
        words = study.command(Point("dolly", method, 1e-3, 0), asked)
        assert [word for word in words if word.startswith("optim.critic")] == [
            f"optim.critic.learning_rate={rate}"
        ]
        assert words[-1] == "trainer.accelerator=gpu"
    words = study.command(Point("dolly", "kd", 1e-3, 0), asked)
    assert not any("optim.critic" in word for word in words)


def test_a_free_worker_waits_for_what_hangs_on_a_run_under_way(tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["kd"], tasks=["dolly"], workers=3, hours=1.0, data=tmp_path)
    at_once, most, lock = 0, 0, threading.Lock()

    def launch(words: list[str], log: IO[str]) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        (folder,) = (
            word.removeprefix("hydra.run.dir=") for word in words if word.startswith("hydra.run.dir")
        )
        task, method, rate, seed = Path(folder).relative_to(tmp_path).parts
        point = Point(task, method, float(rate.removeprefix("lr")), int(seed.removeprefix("seed")))
        finish(tmp_path, point, point.learning_rate)
        with lock:
            at_once -= 1
        return 0

    assert study.run(asked, launch) == 0
    # Two rates, the one beside the best, then two further seeds at it, which no worker is lost for.
    assert {p.name for p in (tmp_path / "dolly" / "kd").iterdir()} == {"lr0.0005", "lr0.001", "lr0.002"}
    assert len(list((tmp_path / "dolly/kd/lr0.002").iterdir())) == 3
    assert most == 2


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_run_that_could_not_be_started(tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["kd"], tasks=["dolly"], workers=3, hours=1.0, data=tmp_path)

    def launch(words: list[str], log: IO[str]) -> int:
        time.sleep(0.05)
        raise OSError("no process can be started")

    study.run(asked, launch)  # comes back


def test_the_best_rate_at_the_end_of_the_grid_is_chosen(tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["kd"], seeds=[0])
    for rate, score in ((1e-3, 20.0), (3e-3, 19.0), (3e-4, 21.0)):
        finish(tmp_path, Point("multi30k", "kd", rate, 0), score)
    assert Choice(tmp_path, "multi30k", "kd", [0]).chosen == 3e-4
    assert [point.learning_rate for point in study.points(asked)] == [1e-3, 3e-3, 3e-4]


def test_what_another_machine_wrote_down_is_not_run_again(tmp_path: Path) -> None:
    head = "task,method,beta,learning_rate,seed,regime,updates,seconds,split,metric,value\n"
    line = "multi30k,kd,1.0,{},0,few_updates,200,88,{},sampled_bleu,{}\n".format
    choosing.RECORD.mkdir()
    (choosing.RECORD / "multi30k.csv").write_text(
        head + line(0.001, "valid", 20) + line(0.001, "test", 30) + line(0.01, "valid", 21)
    )
    asked = options(tmp_path, methods=["kd"], seeds=[0])
    left = [p.learning_rate for p in study.points(asked) if choosing.validated(tmp_path, p) is None]
    assert left == [3e-3]
    finish(tmp_path, Point("multi30k", "kd", 3e-3, 0), 19.0)
    assert Choice(tmp_path, "multi30k", "kd", [0]).tried == [1e-3, 3e-3, 3e-4]
    finish(tmp_path, Point("multi30k", "kd", 3e-4, 0), 18.0)
    assert Choice(tmp_path, "multi30k", "kd", [0]).chosen == 1e-3


def test_facts_stand_in_the_question_and_not_in_the_response() -> None:
    row = {"qid": "1", "facts": ["Ice is cold", "Fire is hot."], "question": "Is ice hot?", "answer": False}
    given = prepare.facts_given(row)
    assert given["question"] == "Ice is cold. Fire is hot. Is ice hot?"
    assert given["facts"] == []
    assert given["answer"] is False


def test_the_summary_has_every_task_and_says_of_how_many_seeds() -> None:
    def compared(judge: str, teacher: float, **means: float) -> SimpleNamespace:
        return SimpleNamespace(
            judge=judge,
            estimates={(name, judge): SimpleNamespace(mean=mean) for name, mean in means.items()},
            levels={judge: (teacher, None)},
            methods=[SimpleNamespace(label=name, runs=[None, None]) for name in means],
        )

    one, other = (
        compared("sampled_bleu", 20.0, kd=7.126),
        compared("sampled_accuracy", 0.64, kd=0.5, gkd=0.25),
    )
    lines = collect.summary({"multi30k": one, "strategyqa": other}).splitlines()
    assert "| teacher | 20.00 | 0.640 |" in lines
    assert "| student before | – | – |" in lines
    assert "| kd | 7.13 (2) | 0.500 (2) |" in lines
    assert "| gkd | – | 0.250 (2) |" in lines


def test_the_best_rate_so_far_is_told_before_it_is_chosen(tmp_path: Path) -> None:
    finish(tmp_path, Point("dolly", "kd", 5e-4, 0), 20.0)
    assert Choice(tmp_path, "dolly", "kd", grid.SEEDS).best_so_far == 5e-4
    assert Choice(tmp_path, "dolly", "kd", grid.SEEDS).chosen is None
    assert Choice(tmp_path, "dolly", "gkd", grid.SEEDS).best_so_far is None


def results(test: float, validation: float, seed: int, seconds: float = 60.0) -> SimpleNamespace:
    student = dict.fromkeys(("tv_off", "tv_on", "kl_off", "rkl_on", "response_tokens"), 0.5)
    return SimpleNamespace(
        seed=seed,
        results={
            "learning_rate": 3e-3,
            "validation": {"sampled_bleu": validation},
            "student": student | {"sampled_bleu": test, "bleu": 2 * test},
            "cost": {"seconds": {"distil": seconds}},
        },
    )


def standing_of(**methods: list[SimpleNamespace]) -> Any:
    found = [SimpleNamespace(label=name, runs=runs) for name, runs in methods.items()]
    return SimpleNamespace(judge="sampled_bleu", methods=found, ranked=lambda: found)


def test_a_standing_has_the_best_first_and_says_what_waits(tmp_path: Path) -> None:
    for rate, score in {1e-3: 1.0, 3e-3: 3.0, 1e-2: 2.0}.items():
        finish(tmp_path, Point("multi30k", "kd", rate, 0), score)
    found = standing_of(
        kd=[results(7.0, 3.0, 0), results(9.0, 4.0, 1, 50.0)], amm_beta1=[results(8.5, 5.0, 0)]
    )
    header, _, *rows = standings.standing(tmp_path, "multi30k", found).splitlines()
    assert header.startswith("| method | learning rate | seeds | validation, sampled | sampled BLEU | BLEU |")
    assert [row.split(" | ")[:6] for row in rows] == [
        ["| amm_beta1", "0.003 (so far)", "1", "5.00", "8.50", "17.00"],
        ["| kd", "0.003", "2", "3.50", "8.00 ± 1.41", "16.00 ± 2.83"],
    ]
    assert rows[1].endswith("| 0.5 | 50 |")


def test_a_lead_is_of_the_seeds_that_both_have() -> None:
    mine = SimpleNamespace(label="amm_beta1", runs=[results(8.0, 5.0, 0), results(9.0, 6.0, 1)])
    theirs = SimpleNamespace(
        label="kd", runs=[results(7.0, 5.0, 1), results(7.0, 4.0, 0), results(0.0, 0.0, 2)]
    )
    assert standings.lead(mine, theirs, "sampled_bleu") == "1.50 (0.50; 1.00, 2.00); 1.00"
    alone = SimpleNamespace(label="gkd", runs=[results(7.0, 5.0, 1)])
    assert standings.lead(mine, alone, "sampled_bleu") == "–"
    lines = list(standings.led_by_seed(standing_of(amm_beta1=mine.runs, kd=theirs.runs, gkd=alone.runs)))
    assert lines[-3:] == [
        "| | kd |",
        "| :-- | --: |",
        "| amm_beta1 | 1.50 (0.50; 1.00, 2.00); 1.00 |",
    ]


def test_a_table_goes_between_its_marks_and_nowhere_else() -> None:
    text = "a\n<!-- standing: dolly -->\nold\n<!-- end -->\nb\n<!-- standing: samsum -->\nold\n<!-- end -->\n"
    assert standings.into(text, "samsum", "new") == text[::-1].replace("dlo", "wen", 1)[::-1]
    with pytest.raises(ValueError, match="no <!-- standing: multi30k -->"):
        standings.into(text, "multi30k", "new")


def test_every_task_with_a_table_in_the_readme_has_its_marks() -> None:
    text = (ROOT / "experiments/first_study/README.md").read_text(encoding="utf-8")
    assert [task for task in grid.TASKS if standings.MARK.format(task) in text] == [
        "multi30k", "samsum", "dolly", "multi30k_long", "samsum_long",
    ]  # fmt: skip
    for task in ("multi30k", "samsum", "dolly", "multi30k_long", "samsum_long"):
        assert standings.into(text, task, "new") != text


def test_a_directory_without_runs_empties_no_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        collect.asked([str(tmp_path)])
    assert refused.value.code == 2
    assert f"no finished run lies in {tmp_path}" in capsys.readouterr().err
    finish(tmp_path, Point("dolly", "kd", 5e-4, 0), 20.0)
    assert collect.asked([str(tmp_path)]) == tmp_path
