"""The real entry, from the command line to the run's directory: what is said, returned and left behind."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import OmegaConf

from amd_lightning import pipeline, run
from amd_lightning.errors import DataError
from amd_lightning.running import one_run
from amd_lightning.running.description import describe, objective_name, without_secrets
from amd_lightning.running.outcome import Outcome
from tests.test_rules import demo

MICRO = (
    "+experiment=samsum logger=csv trainer.progress=off trainer.threads=1 trainer.validate_every=0 "
    "data.train_rows=48 data.valid_rows=4 data.test_rows=4 "
    "data.max_prompt_tokens=64 data.max_response_tokens=16 "
    "optim.teacher.updates=1 optim.teacher.batch_size=4 optim.teacher.warmup_updates=0 "
    "optim.student_start.updates=1 optim.student_start.batch_size=4 optim.student_start.warmup_updates=0 "
    "optim.student.updates=2 optim.student.batch_size=4 optim.student.warmup_updates=0 critic.steps=1"
)


class Said(NamedTuple):
    """What a command line came to."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """What stands behind `error: `, to the end."""
        return self.err.partition("error: ")[2].strip()


Command = Callable[[str], Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`main` with a command line, in an empty working directory and a cache of its own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("AMD_LIGHTNING_CACHE", str(tmp_path / "cache"))

    def call(line: str) -> Said:
        for state in ("_begun", "_refusals"):
            monkeypatch.setattr(run, state, [])
        monkeypatch.setattr(sys, "argv", ["run.py", *shlex.split(line)])
        capfd.readouterr()
        status: int | str | None = 0
        try:
            run.main()
        except SystemExit as stopped:
            status = stopped.code
        out, err = capfd.readouterr()
        # The interpreter prints a message that is no number, and ends with status 1.
        return Said(status if isinstance(status, int) else int(bool(status)), out, err + str(status or ""))

    return call


def anything_in(folder: str | Path) -> list[str]:
    """But for the lock, which stays where a run was."""
    found = (path for path in Path(folder).rglob("*") if path.name != ".lock")
    return sorted(str(path.relative_to(folder)) for path in found)


# -- the command line ------------------------------------------------------------------------------


def in_a_process(folder: Path, *arguments: str, seconds: float = 250) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "amd_lightning.run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


def test_a_refused_command_line_says_all_and_writes_nothing(tmp_path: Path) -> None:
    found = in_a_process(tmp_path, "objective.bta=0.5", "seed=a", "critic.steps=0")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == (
        "error: the configuration has 3 problems:\n"
        "  - objective.bta is not a knob; did you mean objective.beta?\n"
        "  - seed=a must be a whole number\n"
        "  - critic.steps=0 must be at least 1\n"
    )
    assert anything_in(tmp_path) == []


@pytest.mark.parametrize("line", ["objective.beta=0,1", "--multirun objective.beta=0,7", "objective=zkd"])
def test_nothing_is_written_before_a_refusal(command: Command, line: str) -> None:
    found = command(line)
    assert found.status == 1
    assert found.error.startswith("the configuration is refused:\n  - objective")
    assert "Traceback" not in found.err
    assert anything_in(".") == []


@pytest.mark.parametrize("line", ["--help", "-h"])
def test_help_is_in_words_and_nothing_runs(command: Command, line: str) -> None:
    found = command(line)
    assert (found.status, found.err.strip("0")) == (0, "")
    assert found.out.startswith("Distil a teacher")
    assert anything_in(".") == []


@pytest.mark.parametrize(
    "line, start",
    [
        ("--hydra-help", "Hydra (1.3"),
        ("--cfg job objective=kd", "experiment: custom"),
        ("--info defaults", "\nDefaults List"),
        ("--version", "Hydra 1.3"),
    ],
)
def test_hydras_own_questions_are_answered_and_nothing_runs(tmp_path: Path, line: str, start: str) -> None:
    """In a process of their own: Hydra answers by way of a logging set-up that outlives the answer."""
    found = in_a_process(tmp_path, *shlex.split(line))
    assert found.returncode == 0
    assert found.stdout.startswith(start)
    assert anything_in(tmp_path) == []


@pytest.mark.parametrize("line", ["+experiment=samsum", "+experiment=samsum +sweep=beta"])
def test_a_configuration_is_shown_with_the_directory_that_a_run_would_have(tmp_path: Path, line: str) -> None:
    found = in_a_process(tmp_path, *line.split(), "--cfg", "job", "--resolve")
    assert (found.returncode, found.stderr) == (0, "")
    shown = OmegaConf.create(found.stdout)
    assert shown.output_dir.startswith("runs/samsum/moment_matching_beta0.5_seed0/")
    assert "${" not in found.stdout
    assert anything_in(tmp_path) == []


def test_what_no_run_would_take_is_not_shown(command: Command) -> None:
    found = command("objective.beta=7 --cfg job")
    assert (found.status, found.out) == (1, "")
    assert found.error == "the configuration is refused:\n  - objective.beta=7.0 must be at most 1.0"


def test_an_unknown_flag_is_refused(command: Command) -> None:
    found = command("--multirn seed=0,1")
    assert found.status == 2
    assert "unrecognized arguments: --multirn" in found.err


# -- bad data and models ---------------------------------------------------------------------------


def write_rows(folder: Path, *, column: str = "summary", summary: str = "ok", valid: int = 3) -> None:
    folder.mkdir()
    for split, count in (("train", 3), ("valid", valid), ("test", 3)):
        rows = [{"id": f"{i}", "dialogue": f"A: hi {i}", column: summary} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_bad_data_is_one_line_and_leaves_no_directory(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "column", column="resume")
    write_rows(tmp_path / "split", valid=0)
    write_rows(tmp_path / "summary", summary="  ")
    said = {
        "nowhere": "does not exist: give the directory that holds train.jsonl",
        "column": "train.jsonl has no column summary: it has id, dialogue, resume",
        "split": "valid.jsonl has no rows",
        "summary": "row id 0 has an empty summary",
    }
    for name, words in said.items():
        found = command(f"{MICRO} data.source=files data.path={tmp_path / name}")
        assert found.status == 1
        assert words in found.error
        assert "\n" not in found.error
        assert "Traceback" not in found.err
        assert "Error executing" not in found.err
        assert anything_in(".") == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("pair.teacher.path=/nowhere/teacher", "there is no model folder /nowhere/teacher"),
        ("pair.teacher.path=some/model", "the hub cannot be reached for tokenizer some/model"),
        ("data.source=hub", "the hub cannot be reached for data set knkarthick/samsum"),
        ("cache.dir=/proc/nowhere", "the artifact cache /proc/nowhere cannot be used"),
        ("hydra.run.dir=/proc/nowhere", "the run's directory cannot be used"),
    ],
)
def test_what_is_not_there_is_one_line(command: Command, line: str, words: str) -> None:
    found = command(f"{MICRO} {line}")
    assert found.status == 1
    assert found.error.startswith(words)
    assert "\n" not in found.error
    assert "Traceback" not in found.err
    assert anything_in(".") == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("data.source=hub", "error: the hub cannot be reached for data set knkarthick/samsum"),
        ("pair.teacher.path=some/model", "error: the hub cannot be reached for tokenizer some/model"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_said_within_20_seconds(
    tmp_path: Path, line: str, words: str
) -> None:
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_ENDPOINT": "http://192.0.2.1",  # an address that never answers (RFC 5737)
        "AMD_LIGHTNING_CACHE": str(tmp_path / "cache"),
    }
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "amd_lightning.run", *shlex.split(MICRO), line],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        begun = None
        while process.poll() is None:
            if begun is None and "samsum: " in (tmp_path / "err").read_text():
                begun = time.monotonic()  # everything is imported: the question begins
            time.sleep(0.05)
        ended = time.monotonic()
    said = (tmp_path / "err").read_text()
    assert process.returncode == 1
    assert words in said
    assert "Traceback" not in said
    assert begun is not None
    assert ended - begun < 20.0


def test_a_gpu_that_is_not_there_is_said(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    found = command(f"{MICRO} trainer.accelerator=gpu")
    assert found.error == "trainer.accelerator=gpu, but torch sees no GPU here; set trainer.accelerator=cpu"


@pytest.mark.parametrize(
    "experiment, shown", [("custom", "dolly"), ("mine", "mine")], ids=["none chosen", "chosen"]
)
def test_the_demo_names_an_experiment_that_there_is(
    experiment: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = demo()
    config.data.task, config.experiment = "dolly", experiment
    with caplog.at_level(logging.INFO, logger="amd_lightning"):
        one_run._say_what_it_is(config)
    assert f"The real data: python -m amd_lightning.run +experiment={shown} scale=laptop" in caplog.text


# -- the run's directory ---------------------------------------------------------------------------


def test_a_run_leaves_its_log_and_its_configuration(command: Command, tmp_path: Path) -> None:
    found = command(f"{MICRO} hydra.run.dir=mine seed=3 'optim.student.betas=[0.5, 0.9]'")
    assert found.status == 0, found.err
    folder = (tmp_path / "work" / "mine").resolve()
    assert f"Everything lies in {folder}: " in found.out  # absolute, and not folded
    assert {"config.yaml", "run.log", "results.json", "metrics.csv"} <= {p.name for p in folder.iterdir()}
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.seed, config.output_dir, config.objective.distance) == (3, str(folder), "moment_matching")
    log = (folder / "run.log").read_text()
    assert f"samsum: moment_matching, beta 0.5, seed 3 -> {folder}" in log
    assert "This is the DEMO" in log
    assert "Traceback" not in log
    card = (folder / "student" / "README.md").read_text()
    assert "seed=3 'optim.student.betas=[0.5, 0.9]'" in card
    results = json.loads((folder / "results.json").read_text())
    assert (results["seed"], results["scale"], results["experiment"]) == (3, "demo", "samsum")
    assert shlex.split(results["command"])[-1] == "optim.student.betas=[0.5, 0.9]"  # to be pasted in a shell


def test_a_refused_run_leaves_the_users_files_alone(command: Command) -> None:
    mine = Path("mine")
    mine.mkdir()
    (mine / "config.yaml").write_text("of the user\n")
    assert command(f"{MICRO} hydra.run.dir=mine data.source=files data.path=nowhere").status == 1
    assert (mine / "config.yaml").exists()
    assert anything_in(".")[:2] == ["mine", "mine/config.yaml"]


def test_a_run_that_stops_halfway_keeps_its_files_and_the_reason(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: pipeline.Pipeline) -> Outcome:
        (self.spec.folder / "metrics.csv").touch()
        raise DataError("row 7 is broken: mend it")

    monkeypatch.setattr(pipeline.Pipeline, "run", stop)
    found = command(f"{MICRO} hydra.run.dir=mine")
    assert (found.status, found.error) == (1, "row 7 is broken: mend it")
    assert anything_in("mine") == ["config.yaml", "metrics.csv", "run.log"]
    assert "DataError: row 7 is broken: mend it" in Path("mine/run.log").read_text()
    assert "Traceback" not in found.err


def test_a_bug_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(self: pipeline.Pipeline) -> Outcome:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(pipeline.Pipeline, "run", bug)
    with pytest.raises(ZeroDivisionError, match="ours"):
        command(MICRO)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), SystemExit(1)])  # Lightning makes the second of it
def test_an_interrupted_run_says_what_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch, stopped: BaseException
) -> None:
    def interrupt(self: pipeline.Pipeline) -> Outcome:
        raise stopped

    monkeypatch.setattr(pipeline.Pipeline, "run", interrupt)
    found = command(MICRO)
    assert found.status == 130
    assert "interrupted; stages that were finished are in the cache" in found.err
    assert "Traceback" not in found.err
    assert anything_in(".") == []


# -- a sweep ---------------------------------------------------------------------------------------


def test_a_sweep_goes_on_after_a_failing_point(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def some_fail(self: pipeline.Pipeline) -> Outcome:
        seeds.append(self.spec.seed)
        (self.spec.folder / "metrics.csv").touch()
        if self.spec.seed == 0:
            raise DataError("row 7 is broken: mend it")
        if self.spec.seed == 1:
            raise ZeroDivisionError("ours")
        raise DataError("this one too")

    monkeypatch.setattr(pipeline.Pipeline, "run", some_fail)
    found = command(f"{MICRO} --multirun seed=0,1,2 hydra.sweep.dir=sweep")
    assert seeds == [0, 1, 2]
    assert found.status == 1
    assert found.error == (
        "3 of the sweep's points failed:\n"
        "  - 0_moment_matching_beta0.5_seed0: row 7 is broken: mend it\n"
        "  - 1_moment_matching_beta0.5_seed1: ZeroDivisionError: ours\n"
        "  - 2_moment_matching_beta0.5_seed2: this one too\n"
        f"run them again: python -m amd_lightning.run sweep_resume={Path('sweep').absolute()}"
    )
    assert found.err.count("Traceback") == 1  # the bug's
    for seed in range(3):
        assert Path(f"sweep/{seed}_moment_matching_beta0.5_seed{seed}/run.log").exists()


def test_a_point_of_a_sweep_that_is_refused_leaves_no_directory(command: Command) -> None:
    found = command(f"{MICRO} -m data.source=files data.path=nowhere,elsewhere hydra.sweep.dir=sweep")
    assert found.status == 1
    assert found.error.startswith(
        "2 of the sweep's points failed:\n  - 0_moment_matching_beta0.5_seed0: data"
    )
    assert sorted(path.name for path in Path("sweep").iterdir()) == [
        ".locks",
        "index.csv",
        "multirun.yaml",
        "sweep.json",
    ]


# -- parts -----------------------------------------------------------------------------------------


def test_secrets_are_masked_and_nothing_else() -> None:
    plain = {
        "logger": {"wandb": {"api_key": "abc", "WANDB_API_KEY": "abc", "mode": "offline"}},
        "hf_token": "abc",
        "password": None,
        "data": {"max_prompt_tokens": 96},
        "objective": {"normalise": "token"},
    }
    assert without_secrets(plain) == {
        "logger": {"wandb": {"api_key": "***", "WANDB_API_KEY": "***", "mode": "offline"}},
        "hf_token": "***",
        "password": None,
        "data": {"max_prompt_tokens": 96},
        "objective": {"normalise": "token"},
    }


def test_a_run_describes_its_method() -> None:
    described = describe(demo(), "command")
    critic = described["objective"]["critic"]
    assert (critic["kind"], critic["alpha"], critic["steps"], critic["learning_rate"]) == (
        "residual",
        0.25,
        3,
        9e-3,
    )
    closed = describe(demo(critic__kind="closed_form"), "command")["objective"]["critic"]
    assert closed == {"kind": "closed_form", "alpha": 0.25, "ridge": 2.0}
    moved = describe(demo(critic__kind="closed_form", critic__alpha_start=0.01), "command")
    assert moved["objective"]["critic"] == closed | {"alpha_start": 0.01, "alpha_path": "geometric"}
    assert "alpha_start" not in critic
    assert objective_name(demo(critic__alpha_start=0.01)) == "moment_matching_residual rising beta 0.5"
    assert {"skew", "horizon", "kernel"}.isdisjoint(described["objective"])
    skewed = describe(demo(objective__distance="skew_kl", objective__horizon__gamma=1.0), "command")
    assert skewed["objective"]["skew"] == 0.1
    assert skewed["objective"]["horizon"]["baseline"] == "time_step"
    assert "critic" not in describe(demo(objective__distance="kl"), "command")["objective"]
    assert json.loads(json.dumps(described)) == described
