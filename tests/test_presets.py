"""The methods by name: the table is that of the files, and every one of them trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from amd_lightning import conf_dir
from amd_lightning.build_method import make_module
from amd_lightning.cli import validated
from amd_lightning.config.rules import uses_off_policy
from amd_lightning.config.schema import RunConfig
from amd_lightning.modules.base import DistillationModule
from amd_lightning.policies import Policy
from amd_lightning.presets import header, presets, table
from tests.helpers import t5
from tests.modules.harness import train
from tests.test_config import composed, options

NAMES = options("objective")
FAMILIES: dict[str, Callable[[], tuple[Policy, Policy]]] = {
    "encoder-decoder": lambda: (t5(1), t5(2, d_model=24)),
}
"""Student and teacher of every model family."""

UPDATES = 3


def config_of(name: str) -> RunConfig:
    """The method as a run of three updates on batches of four."""
    overrides = [
        f"objective={name}",
        f"optim.student={{updates: {UPDATES}, batch_size: 4, learning_rate: 1e-2, warmup_updates: 0}}",
        "data.max_response_tokens=6",
        "trainer.log_every=1",
    ]
    if composed(f"objective={name}").rollout.replay.capacity:
        overrides.append("rollout.replay.capacity=4")
    return validated(composed(*overrides), overrides, refuse_ignored=True)


class WorseAndWorse(Callback):
    """Tells the module of a validation loss that rises after every update."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        pl_module.validated({"kl_off": float(pl_module.update)})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains(name: str, family: str, tmp_path: Path) -> None:
    config = config_of(name)
    student, teacher = FAMILIES[family]()
    before = {key: value.clone() for key, value in student.named_parameters()}
    teachers = [value.clone() for value in teacher.parameters()]
    trained = train(make_module(config, student, teacher), tmp_path, callbacks=[WorseAndWorse()])
    assert trained.global_step == UPDATES
    assert all(bool(value.isfinite().all()) for value in student.parameters())
    assert all(
        bool((value == after).all()) for value, after in zip(teachers, teacher.parameters(), strict=True)
    )
    moved = [key for key, value in student.named_parameters() if bool((value != before[key]).any())]
    assert len(moved) > len(before) // 2
    tokens = trained.module.tokens_seen
    assert (tokens["off"] > 0) is uses_off_policy(config.objective)
    assert (tokens["on"] > 0) is (config.objective.beta < 1.0)
    teacherless = config.objective.distance == "nll"
    assert tokens["teacher"] >= (0 if teacherless else tokens["off"] + tokens["on"])


def test_the_table_is_that_of_the_files() -> None:
    written = (conf_dir() / "objective" / "README.md").read_text(encoding="utf-8")
    assert written == table(), "run: python -m amd_lightning.presets"


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_source_and_says_what_differs(name: str) -> None:
    said = header(conf_dir() / "objective" / f"{name}.yaml")
    assert set(said) == {"what", "differs", "source"}
    assert all(len(words) > 5 for words in said.values())
    assert not any("|" in words for words in said.values())  # it ends up in a table


def test_the_words_of_the_table_are_those_of_the_run() -> None:
    found = {row.name: row for row in presets()}
    assert list(found) == NAMES
    assert found["kd"][2:5] == ("kl", "1", "off: the data's")
    assert found["seqkd"][2:5] == ("nll", "1", "off: the teacher's")
    assert found["imitkd"].states == "on: written anew in every update"
    assert found["amm_closed_form"].distance == "moment_matching; critic closed_form"
    assert found["minillm"].distance == "rkl; sampled length-normalised returns, gamma 0.95"
    assert found["minillm"].states == "on: written anew every 4 updates, with 0.2 of the teacher"
    assert found["gkd_trl"].states == "off: the data's; on: written anew in every update, at temperature 0.9"
    assert found["gkd_distillm"].distance == "js, js_mixture 0.1"
    assert found["distillm"].beta.startswith("1, less 0.1 for every rise of the validation loss by 0.1, to 0")
    assert found["distillm"].states.endswith(
        "on: anew with probability 1 falling to 0, else from the last 1000 prompts"
    )
    assert found["kd_dskd"].distance == (
        "kl; teacher at temperature 2; student at temperature 2; and likelihood, share 0.5"
    )
