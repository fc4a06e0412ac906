"""`resume=` from the command line: what is gone on with, refused and said, and real signals and kills."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from amd_lightning.analysis.compare.methods import HARMLESS, NO_DIFFERENCE
from amd_lightning.errors import Interrupted, UserError
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.pipeline import Pipeline
from amd_lightning.running.outcome import Outcome
from amd_lightning.running.resume import FREE, completed, start, unfinished_beside, with_command
from amd_lightning.training.loggers import wandb_logger
from tests.test_run import MICRO, Command, Said, command  # noqa: F401
from tests.test_tracking import settings

# -- the rules -----------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "seed": 0,
    "output_dir": "somewhere",
    "resume": "auto",
    "optim": {
        "student": {"updates": 8, "learning_rate": 0.003, "schedule": "cosine"},
        "critic": {"schedule": "constant"},
    },
    "objective": {"distance": "moment_matching", "adaptive_beta": {"step": 0.0}},
    "critic": {"alpha_start": None},
    "rollout": {"replay": {"capacity": 0, "decay": False}},
    "trainer": {"threads": 1, "progress": "auto", "validate_every": 4, "time_budget": None},
    "logger": {"wandb": {"mode": "offline"}},
}


def changed(**values: Any) -> dict[str, Any]:
    """CONFIG with some knobs set, `optim__student__updates=9`."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for name, value in values.items():
        *sections, last = name.split("__")
        inner = config
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return config


def left_behind(folder: Path, config: dict[str, Any] = CONFIG, **results: Any) -> Path:
    """A run's directory with a checkpoint (of no content), and with results if any are given."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(json.dumps(config))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def began_by(folder: Path, line: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(with_command(line, "seed: 7\n"))
    return folder


def test_a_killed_run_goes_on_by_its_directory_alone(tmp_path: Path) -> None:
    line = "python -m amd_lightning.run +experiment=samsum objective=kd 'optim.student.betas=[0.9, 0.98]'"
    folder = began_by(tmp_path / "run", line)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"seed": 7}
    before = ["+experiment=samsum", "objective=kd", "optim.student.betas=[0.9, 0.98]"]
    for place in (folder, folder / "checkpoints" / "last.ckpt"):
        assert completed([f"resume={place}"]) == [*before, f"resume={place}"]
    more = [f"resume={folder}", "trainer.progress=off", "objective=rkl"]
    assert completed(more) == [before[0], before[2], *more]  # what is said beside it holds, and is checked


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=samsum", "resume=DIR"],
        ["resume=auto"],
        ["resume=never", "objective=kd"],
        ["objective=kd"],
        ["resume=DIR/nowhere"],
    ],
)
def test_other_command_lines_stay_as_they_are(arguments: list[str], tmp_path: Path) -> None:
    folder = began_by(tmp_path / "run", "python -m amd_lightning.run +experiment=samsum seed=3")
    said = [text.replace("DIR", str(folder)) for text in arguments]
    assert completed(said) == said


def test_a_run_of_an_earlier_version_has_no_command(tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run")
    assert completed([f"resume={folder}"]) == [f"resume={folder}"]


def test_a_new_directory_is_begun_whatever_is_wanted(tmp_path: Path) -> None:
    for wanted in ("auto", "never"):
        assert start(wanted, tmp_path / "new", CONFIG) == (tmp_path / "new", None, None)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml").write_text("seed: 7\n")  # while the teacher was trained
    assert start("auto", tmp_path / "killed", CONFIG).checkpoint is None


def test_an_unfinished_run_is_gone_on_with(tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run")
    checkpoints = folder / "checkpoints"
    assert start("auto", folder, CONFIG) == (folder, checkpoints, None)
    assert start(str(folder), tmp_path / "new", CONFIG) == (folder, checkpoints, None)
    file = checkpoints / "last.ckpt"
    assert start(str(file), tmp_path / "new", CONFIG) == (folder, file, None)
    with pytest.raises(UserError, match="holds a run: choose another"):
        start("never", folder, CONFIG)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run", validation={}, quality="rouge_l")
    assert start("auto", folder, CONFIG).finished == {"validation": {}, "quality": "rouge_l"}
    stopped = left_behind(tmp_path / "stopped", stopped_at=3)
    assert start("auto", stopped, CONFIG).finished is None


@pytest.mark.parametrize(
    "path, words", [("nowhere", "there is no such directory"), ("plain", "is no run's directory")]
)
def test_a_path_without_a_run_is_refused(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=words):
        start(str(tmp_path / path), tmp_path / "new", CONFIG)


def test_a_changed_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        start("auto", folder, changed(seed=1, optim__student__learning_rate=0.1))
    heading, *lines = str(refused.value).splitlines()
    assert heading.startswith(f"{folder} holds a run of another configuration")
    assert lines == ["  - optim.student.learning_rate: 0.003 -> 0.1", "  - seed: 0 -> 1"]


@pytest.mark.parametrize(
    "values",
    [
        {"trainer__threads": 2, "trainer__progress": "off", "trainer__time_budget": 5.0},
        {"logger__wandb__mode": "disabled", "output_dir": "elsewhere", "resume": "elsewhere"},
    ],
)
def test_what_is_shown_and_where_it_lies_may_change(values: dict[str, Any], tmp_path: Path) -> None:
    folder = left_behind(tmp_path / "run")
    assert start("auto", folder, changed(**values)).checkpoint == folder / "checkpoints"


@pytest.mark.parametrize(
    "before, values, words",
    [
        ({}, {"optim__student__updates": 9}, "optim.student.schedule=cosine spans the whole run"),
        ({}, {"optim__student__updates": 7}, "8 -> 7 .fewer than it was begun with"),
        (
            {"optim__student__schedule": "constant", "optim__critic__schedule": "linear"},
            {"optim__student__updates": 9},
            "optim.critic.schedule=linear spans the whole run",
        ),
        (
            {"optim__student__schedule": "constant", "critic__alpha_start": 0.01},
            {"optim__student__updates": 9},
            "critic.alpha_start spans the whole run",
        ),
        (
            {
                "optim__student__schedule": "constant",
                "rollout__replay__capacity": 9,
                "rollout__replay__decay": True,
            },
            {"optim__student__updates": 9},
            "rollout.replay.decay spans the whole run",
        ),
        (
            {
                "optim__student__schedule": "constant",
                "objective__adaptive_beta__step": 0.1,
                "trainer__validate_every": 3,
            },
            {"optim__student__updates": 9},
            "objective.adaptive_beta looked at a validation after update 8",
        ),
        (
            {"optim__student__schedule": "constant", "objective__adaptive_beta__step": 0.1},
            {"optim__student__updates": 9},
            None,
        ),
        ({"optim__student__schedule": "constant"}, {"optim__student__updates": 9}, None),
    ],
)
def test_a_budget_is_extended_where_nothing_spans_it(
    before: dict[str, Any], values: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    folder = left_behind(tmp_path / "run", changed(**before), validation={})
    if words is None:
        found = start("auto", folder, changed(**before, **values))
        assert (found.checkpoint, found.finished) == (folder / "checkpoints", None)
        return
    with pytest.raises(UserError, match=words):
        start("auto", folder, changed(**before, **values))


def test_an_unfinished_run_beside_is_told_of(tmp_path: Path) -> None:
    left_behind(tmp_path / "01")
    newer = left_behind(tmp_path / "02")
    left_behind(tmp_path / "03", changed(seed=1))
    left_behind(tmp_path / "04", validation={})
    assert unfinished_beside(tmp_path / "05", CONFIG) == newer
    assert unfinished_beside(tmp_path / "05", changed(seed=2)) is None
    assert unfinished_beside(Path("/nowhere/05"), CONFIG) is None


def test_comparisons_know_the_knobs_of_resuming() -> None:
    known = {*HARMLESS, *NO_DIFFERENCE, *(f"{name}." for name in FREE)}
    assert [name for name in FREE if name not in known and f"{name}." not in NO_DIFFERENCE] == []


# -- whole runs ----------------------------------------------------------------------------------------

RUN = (
    f"{MICRO} optim.student.updates=6 trainer.checkpoint_every=2 trainer.validate_every=3 "
    "trainer.log_every=1 rollout.replay.capacity=8 rollout.replay.refresh=0.5"
)


def outcome(folder: Path) -> tuple[Any, ...]:
    """The student's weights, metrics.csv without its clocks, what was written and measured."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((folder / "results.json").read_text())
    for name in ("cost", "command"):
        results.pop(name)
    for who in ("teacher", "student_start", "student"):
        results[who].pop("seconds")
    return (
        (folder / "student" / "model.safetensors").read_bytes(),
        [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows],
        (folder / "predictions.jsonl").read_bytes(),
        results,
    )


def told(found: Said) -> str:
    """The command line that goes on, as it was said."""
    (line,) = [line for line in found.err.splitlines() if line.startswith("stopped after")]
    return line.partition("python -m amd_lightning.run ")[2]


def test_a_terminated_run_says_how_to_go_on_and_ends_as_one_that_was_left_alone(
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert command(f"{RUN} hydra.run.dir=alone").status == 0
    handler = signal.getsignal(signal.SIGTERM)
    own = AdversarialModule.critic_steps

    def hit(self: AdversarialModule, batch: Any) -> Any:
        if self.update + 1 == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(AdversarialModule, "critic_steps", hit)
        found = command(f"{RUN} hydra.run.dir=hit")
    assert found.status == 128 + signal.SIGTERM
    assert "stopped after update 3 of 6; go on with: python -m amd_lightning.run" in found.err
    assert "Traceback" not in found.err
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not Path("hit/results.json").exists()

    assert command(f"{RUN} hydra.run.dir=hit seed=1").error.endswith("  - seed: 0 -> 1")
    again = command(told(found))
    assert again.status == 0, again.err
    assert "distil: going on after update 3 of 6" in again.err
    assert outcome(Path("hit")) == outcome(Path("alone"))
    saved = (Path("hit/results.json").stat().st_mtime_ns, sorted(path.name for path in Path().iterdir()))
    finished = command(f"{RUN} hydra.run.dir=hit")
    assert (finished.status, "finished: nothing to do" in finished.err) == (0, True)
    assert saved == (Path("hit/results.json").stat().st_mtime_ns, sorted(p.name for p in Path().iterdir()))
    assert saved[1] == ["alone", "hit"]  # nor an empty runs/

    refused = command(f"{RUN} resume=hit hydra.run.dir=other")
    assert refused.error.endswith("hydra.run.dir would be ignored with resume=hit; leave one of them out")
    assert command(f"{RUN} -m seed=0,1 resume=hit").status == 1

    killed_run(tmp_path / "work", "killed")
    again = command(f"{RUN} hydra.run.dir=killed")
    assert again.status == 0, again.err
    assert "distil: going on after update" in again.err
    assert outcome(Path("killed")) == outcome(Path("alone"))

    budget = command(f"{RUN} hydra.run.dir=short trainer.time_budget=0.0001 logger=csv")
    assert budget.status == 0, budget.err
    assert "Stopped by trainer.time_budget after update 1" in budget.out
    assert json.loads(Path("short/results.json").read_text())["stopped_at"] == 1


def test_a_signal_to_another_stage_keeps_its_status(
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(self: Pipeline) -> Outcome:
        try:
            raise Interrupted(signal.SIGTERM)
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(Pipeline, "run", stop)
    found = command(MICRO)
    assert found.status == 143
    assert "interrupted; stages that were finished are in the cache" in found.err


def killed_run(work: Path, name: str) -> None:
    """A run in a process of its own, killed within its fourth update or a later one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "amd_lightning.run", *shlex.split(RUN), f"hydra.run.dir={name}"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics, deadline = work / name / "metrics.csv", time.monotonic() + 250
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") > 4:
            break
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (work / name / "results.json").exists()


def test_offline_wandb_goes_on_under_the_same_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    first = wandb_logger(tmp_path, settings())
    assert first is not None
    number = first.experiment.id
    first.experiment.finish()
    second = wandb_logger(tmp_path, settings(), number)
    assert second is not None
    assert second.experiment.id == number
    second.experiment.finish()
