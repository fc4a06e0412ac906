"""What a run tells while it runs: W&B offline, lines of the log, and nothing that asks or distracts."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from amd_lightning.running import results
from amd_lightning.running.description import without_secrets
from amd_lightning.training import tracking
from amd_lightning.training.fitting import quiet_libraries
from amd_lightning.training.loggers import WandbSettings, finish, wandb_logger
from amd_lightning.training.tracking import StageLines
from tests.helpers import tiny_run
from tests.wandb_files import records

pytest.importorskip("wandb")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An AMM and a KL run with W&B offline, and what its own reader finds in them."""
    root = tmp_path_factory.mktemp("runs")
    for name, method in {"amm": "objective=amm", "imitkd": "objective=imitkd"}.items():
        folder = root / name
        outcome = tiny_run(folder, root / "cache", method, "logger=wandb", "optim.student.updates=2")
        found = results.assemble(outcome, {"task": "samsum"})
        predictions = {who: evaluation.predictions for who, evaluation in outcome.evaluations.items()}
        finish(outcome.loggers, found, predictions, figures=[])
    return {name: root / name for name in ("amm", "imitkd")}


def history(folder: Path) -> list[dict[str, Any]]:
    return [record["history"]["item"] for record in records(folder) if record["type"] == "history"]


def test_the_run_is_named_grouped_and_complete(runs: dict[str, Path]) -> None:
    found = records(runs["amm"])
    (run,) = [record["run"] for record in found if record["type"] == "run"]
    assert run["run_group"] == "samsum/t5_demo/demo"
    assert run["job_type"] == "moment_matching_residual beta 0.5"
    assert run["display_name"] == "moment_matching_residual beta 0.5 seed 0"
    assert run["project"] == "amd_lightning"
    assert set(run["tags"]) == {"samsum", "t5_demo", "demo", "moment_matching", "beta=0.5"}
    assert run["config"]["update"]["objective"]["distance"] == "moment_matching"
    assert [record["exit"].get("exit_code", 0) for record in found if record["type"] == "exit"] == [0]


def test_methods_log_the_same_keys_over_the_update(runs: dict[str, Path]) -> None:
    amm, imitkd = (history(runs[name]) for name in ("amm", "imitkd"))
    keys = [{key for row in rows for key in row} for rows in (amm, imitkd)]
    critic = {"critic/loss", "critic/grad_norm", "critic/support_error"}
    assert keys[0] - keys[1] == critic | {"train/moment_gap_off", "train/tv_off"}
    assert keys[1] <= keys[0]
    assert {"train/loss", "valid/rouge_l", "valid/kl_on"} <= keys[0]
    assert any(key.startswith("test/responses") for key in keys[0])  # a table, one key a property
    assert [row["update"] for row in amm if "train/loss" in row] == [1, 2]
    axes = [record["metric"] for record in records(runs["amm"]) if record["type"] == "metric"]
    assert {axis.get("step_metric") for axis in axes if axis.get("glob_name") == "*"} == {"update"}


def test_the_summary_has_the_test_results(runs: dict[str, Path]) -> None:
    updates = [record["summary"]["update"] for record in records(runs["amm"]) if record["type"] == "summary"]
    summary = {key: value for update in updates for key, value in update.items()}
    assert {"test/teacher/rouge_l", "test/student/tv_on", "cost/seconds/distil"} <= set(summary)


def test_no_secret_and_no_too_long_tag_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "c" + "anary" * 8)
    monkeypatch.setenv("HF_TOKEN", "c" + "anary" * 8)
    config = without_secrets({"judge": {"api_key": "canary" * 7, "headers": [{"password": "canary" * 7}]}})
    logger = wandb_logger(tmp_path, replace(settings(), config=config, tags=("t" * 70,)))
    assert logger is not None
    logger.experiment.log({"update": 1})
    logger.experiment.finish()
    written = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path for path in written if b"canary" in path.read_bytes()] == []


def settings(mode: str = "offline") -> WandbSettings:
    return WandbSettings(mode=mode, project="p", group="g", job_type="j", name="n")


def test_disabled_is_no_logger_and_no_folder(tmp_path: Path) -> None:
    assert wandb_logger(tmp_path, settings("disabled")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_left_open_is_not_taken_over(tmp_path: Path) -> None:
    first = wandb_logger(tmp_path / "one", settings())
    second = wandb_logger(tmp_path / "two", settings())
    assert first is not None
    assert second is not None
    try:
        assert first.experiment.id != second.experiment.id
        assert len(list((tmp_path / "two" / "wandb").glob("offline-run-*"))) == 1
    finally:
        second.experiment.finish()


def test_nothing_is_said_and_nothing_asked(
    runs: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """W&B's, Lightning's and transformers' own words stay unsaid; there is nobody at the keyboard."""

    def asked(*_: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.delenv("WANDB_SILENT")
    monkeypatch.delenv("WANDB_MODE")
    quiet_libraries()
    cache = runs["amm"].parent / "cache"
    more = ("pair.seed=1", "logger=wandb", "optim.student.updates=1")  # trains, saves and loads the pair anew
    for logger in tiny_run(tmp_path, cache, *more).loggers[1:]:
        assert isinstance(logger, WandbLogger)
        logger.experiment.finish()
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn.list] == []


# -- lines of the log --------------------------------------------------------------------------------


class Module:
    """As much of a module as progress looks at."""

    updates = 25

    def __init__(self, update: int) -> None:
        self.update = update
        self.latest = {"train/loss": 1.5, "train/tv_on": 0.25, "train/grad_norm": 9.0}


def test_about_ten_lines_a_stage(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "DistillationModule", Module)
    lines = StageLines("distil")
    trainer: Any = SimpleNamespace()
    with caplog.at_level(logging.INFO, logger="amd_lightning.training.tracking"):
        for update in range(1, 26):
            module: Any = Module(update)
            lines.on_train_batch_end(trainer, module, None, None, update - 1)
    assert len(caplog.messages) == 13
    assert caplog.messages[0].startswith("distil: update 2/25, ")
    assert caplog.messages[-1].startswith("distil: update 25/25, ")
    assert caplog.messages[-1].endswith("updates/s, loss 1.500, 2TV on 0.500")
