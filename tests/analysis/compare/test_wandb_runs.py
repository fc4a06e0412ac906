"""Runs of a W&B project, from a stub of its public API."""

import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from amd_lightning.analysis.compare.comparison import comparison
from amd_lightning.analysis.compare.methods import methods
from amd_lightning.analysis.compare.wandb_runs import wandb_runs
from amd_lightning.errors import UserError


class Stub:
    """`wandb.Api`, as far as it is used."""

    def __init__(self, runs: list[Any]) -> None:
        self.found = runs
        self.asked: list[str] = []

    def runs(self, path: str) -> list[Any]:
        self.asked.append(path)
        return self.found


def stored(name: str, seed: int, state: str = "finished", tv: float = 0.1) -> Any:
    config = {
        "seed": seed,
        "scale": "demo",
        "data": {"task": "samsum", "source": "embedded"},
        "objective": {"distance": "moment_matching", "beta": 0.5},
        "critic": {"kind": "residual", "alpha": 0.5},
        "optim": {"student": {"updates": 20}},
    }
    summary = {
        "test/student/tv_on": tv,
        "test/student/rouge_l": 50.0,
        "test/student_start/tv_on": 0.3,
        "test/teacher/tv_on": 0.0,
        "test/responses": {"_type": "table-file"},
        "cost/seconds/distil": 12.0,
        "_step": 20,
    }
    history = [
        {"update": 10, "valid/rouge_l": 40.0, "train/loss": None},
        {"update": 20, "valid/rouge_l": 50.0, "figures/curves": {"_type": "image"}},
        {"_step": 21, "valid/rouge_l": 99.0},
    ]
    return SimpleNamespace(
        name=name,
        id=name,
        state=state,
        url=f"https://wandb.ai/e/p/runs/{name}",
        config=config,
        summary=summary,
        scan_history=lambda: iter(history),
    )


def test_runs_are_read_like_folders() -> None:
    api = Stub([stored("a", 0, tv=0.1), stored("b", 1, tv=0.2), stored("c", 2, state="crashed")])
    runs, others = wandb_runs("wandb:e/p", api)
    assert api.asked == ["e/p"]
    assert others == ["e/p/c"]
    assert runs[0].results["student"] == {"tv_on": 0.1, "rouge_l": 50.0}
    assert runs[0].results["objective"]["critic"] == {"kind": "residual", "alpha": 0.5, "learning_rate": None}
    assert runs[0].curves == {"valid/rouge_l": [(10.0, 40.0), (20.0, 50.0)]}
    assert runs[0].config["optim.student.updates"] == 20
    found = comparison(*methods(runs))
    assert found.mean("moment matching, β 0.5", "tv_on") == pytest.approx(0.15)
    assert found.budgets["moment matching, β 0.5"].seconds == 12.0
    assert found.estimates["moment matching, β 0.5", "tv_on"].seeds == 2


def test_who_wrote_the_responses_and_the_critics_rate_are_read() -> None:
    one, two, three = stored("a", 0), stored("b", 0), stored("c", 0)
    one.config["rollout"], two.config["rollout"] = {"off_policy": "data"}, {"off_policy": "teacher"}
    three.config["optim"] = {"student": {"updates": 20}, "critic": {"learning_rate": 1.0}}
    three.summary["stopped_at"] = 7
    runs, _ = wandb_runs("wandb:e/p", Stub([one, two, three]))
    assert [run.updates for run in runs] == [20, 20, 7]
    assert len(methods(runs)[0]) == 3


def test_a_nested_summary_says_the_same() -> None:
    run = stored("a", 0)
    run.summary = {"test": {"student": {"tv_on": 0.1}, "teacher": {"tv_on": 0.0}}}
    runs, _ = wandb_runs("wandb:e/p", Stub([run]))
    assert runs[0].results["student"] == {"tv_on": 0.1}


@pytest.mark.parametrize("address", ["wandb:", "wandb:e", "wandb:e/p/r", "wandb:e/"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match="write wandb:ENTITY/PROJECT"):
        wandb_runs(address, Stub([]))


def test_no_answer_is_one_line_with_a_remedy() -> None:
    class Dead(Stub):
        def runs(self, path: str) -> list[Any]:
            raise ConnectionError("no route\nto host")

    with pytest.raises(UserError, match=r"gives nothing of e/p \(no route to host\): check the name"):
        wandb_runs("wandb:e/p", Dead([]))


def test_a_server_that_does_not_answer_is_given_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setattr(
            "wandb.setup", lambda: SimpleNamespace(settings=SimpleNamespace(base_url=address))
        )
        monkeypatch.setattr("wandb.Api", lambda **_: pytest.fail("was asked all the same"))
        started = time.monotonic()
        with pytest.raises(UserError, match=rf"W&B does not answer at {address} \(.*refused.*\): check the"):
            wandb_runs("wandb:e/p")
    assert time.monotonic() - started < 10.0


def test_offline_it_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="stay offline"):
        wandb_runs("wandb:e/p")
