"""TensorBoard, MLflow and CSV in place of W&B: what they hold, and what a missing package is told."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from amd_lightning.errors import UserError
from amd_lightning.running import results
from amd_lightning.running.outcome import Outcome
from amd_lightning.training.loggers import WandbSettings, finish, mlflow_logger
from amd_lightning.training.metrics_file import csv_logger
from tests.helpers import tiny_run


def finished(folder: Path, *overrides: str) -> Outcome:
    """A tiny run of two updates that has told its loggers how it ended."""
    outcome = tiny_run(folder, folder / "cache", "optim.student.updates=2", *overrides)
    found = results.assemble(outcome, {"task": "samsum", "updates": 2})
    predictions = {who: evaluation.predictions for who, evaluation in outcome.evaluations.items()}
    finish(outcome.loggers, found, predictions, figures=[])
    return outcome


def test_tensorboard_holds_what_metrics_csv_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = finished(tmp_path, "logger=tensorboard")
    assert [type(logger) for logger in outcome.loggers] == [CSVLogger, TensorBoardLogger]
    assert not (tmp_path / "wandb").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    shown = set(events.Tags()["scalars"])
    assert set(names) - {"step"} <= shown
    assert {"test/student/rouge_l", "test/teacher/tv_on"} <= shown
    loss = names.index("train/loss")
    told = {
        int(float(row.split(",")[names.index("update")])): float(row.split(",")[loss])
        for row in rows
        if row.split(",")[loss]
    }
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx(told)
    assert [event.step for event in events.Scalars("test/student/rouge_l")] == [2]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_refused_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *of: None if one == name else real(one, *of))
    with pytest.raises(
        UserError, match=rf"logger.{name} needs a package .*amd-lightning\[{name}\]"
    ) as refused:
        tiny_run(tmp_path / "run", tmp_path / "cache", f"logger={name}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "cache").exists()


def settings() -> WandbSettings:
    return WandbSettings("disabled", "p", "g", "kl beta 1", "n", tags=("a", "b"), config={"seed": 3})


def test_mlflow_holds_metrics_and_configuration(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    logger = mlflow_logger(tmp_path, None, "mine", settings())
    assert isinstance(logger, MLFlowLogger)
    logger.log_metrics({"train/loss": 2.5, "update": 7}, step=7)
    results_ = {"student": {"rouge_l": 40.0, "accuracy": None}, "updates": 8}
    finish([logger], results_, {"student": []}, [])
    client, run = logger.experiment, logger.run_id
    assert run is not None
    kept = client.get_run(run).data
    assert kept.metrics == {"train/loss": 2.5, "update": 7.0, "test/student/rouge_l": 40.0}
    assert kept.params == {"seed": "3"}
    assert kept.tags["job_type"] == "kl beta 1"
    assert (tmp_path / "mlflow").is_dir()


def test_mlflow_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import amd_lightning.training.loggers as module

    class Dead(SimpleNamespace):
        def log_hyperparams(self, _: Any) -> None:
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(module, "MLFlowLogger", Dead)
    with pytest.raises(UserError, match=r"refuses logger.mlflow.uri=http://x \(no route to host\): set"):
        mlflow_logger(tmp_path, "http://x", "mine", settings())


def test_csv_is_told_nothing_of_the_end(tmp_path: Path) -> None:
    logger = csv_logger(tmp_path)
    logger.log_metrics({"update": 1, "train/loss": 2.0}, step=1)
    finish([logger], {"student": {"rouge_l": 1.0}, "updates": 1}, {"student": []}, [])
    assert "test/" not in (tmp_path / "metrics.csv").read_text()
