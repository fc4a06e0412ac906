"""The dashboard: its specification against what runs of every kind of method really log, and its refusals."""

import json
import sys
from collections.abc import Iterator
from csv import DictReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from amd_lightning import dashboard
from amd_lightning.analysis.compare.wandb_runs import wandb_runs
from amd_lightning.analysis.dashboard import METRICS, parts
from amd_lightning.errors import UserError
from amd_lightning.running import results
from amd_lightning.training.loggers import finish
from tests.helpers import tiny_run
from tests.wandb_files import Logged, read_back

pytest.importorskip("wandb")

METHODS = ("sft", "kd", "gkd", "minillm", "amm")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Logged]:
    """A tiny run of each method with W&B offline, read back by W&B's own reader."""
    root = tmp_path_factory.mktemp("dashboard")
    for name in METHODS:
        folder = root / name
        figures = folder / "figures"
        figures.mkdir(parents=True)
        pictures = [figures / "curves.png", figures / "models.png"]
        for picture in pictures:
            _picture(picture)
        outcome = tiny_run(
            folder, root / "cache", f"objective={name}", "logger=wandb", "optim.student.updates=2"
        )
        found = results.assemble(outcome, {"task": "samsum"})
        predictions = {who: evaluation.predictions for who, evaluation in outcome.evaluations.items()}
        finish(outcome.loggers, found, predictions, pictures)
    return {name: read_back(root / name) for name in METHODS}


def _picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(path)


# -- the keys ----------------------------------------------------------------------------------------


def of_a_teacher(key: str) -> bool:
    """Whether a method has it only where it asks a teacher while training."""
    return key.startswith(("train/moment_gap", "train/tv", "train/gap", "train/critic_abs"))


@pytest.mark.slow
def test_every_method_logs_the_same_keys(logged: dict[str, Logged]) -> None:
    keys = {name: one.history_keys for name, one in logged.items()}
    every = set.union(*keys.values())
    of_critics = {"critic/loss", "critic/grad_norm", "critic/support_error"}
    of_own = {"train/response_length", "train/eos_share", "train/moment_gap_on", "train/tv_on"}
    of_replay = {"rollout/age", "rollout/writings", "rollout/buffer"}
    off = {"train/moment_gap_off", "train/tv_off"}
    lacking = {
        "sft": of_critics | of_own | of_replay | {key for key in every if of_a_teacher(key)},
        "kd": of_critics | of_own | of_replay,
        "gkd": of_critics | of_replay,
        "minillm": of_critics | off,
        "amm": of_replay,
    }
    for name in METHODS:
        assert every - keys[name] == lacking[name] & every, name
    assert all(
        one.summary_keys - one.history_keys == logged["amm"].summary_keys - logged["amm"].history_keys
        for one in logged.values()
    )


@pytest.mark.slow
def test_every_row_has_every_axis(logged: dict[str, Logged]) -> None:
    axes = {"update", "train/response_tokens", "time/seconds", "cost/teacher_tokens"}
    for name, one in logged.items():
        rows = [row for row in one.history if any(key.startswith(("train/", "valid/")) for key in row)]
        assert len(rows) >= 4
        assert all(axes <= set(row) for row in rows), name
        tokens = [row["train/response_tokens"] for row in rows]
        assert tokens == sorted(tokens)
        assert tokens[-1] > tokens[0] > 0
        assert axes <= one.defined
    reads = {name: one.history[0]["cost/teacher_tokens"] for name, one in logged.items()}
    assert reads["sft"] == 0 < reads["kd"]


@pytest.mark.slow
def test_validations_show_responses_and_the_spread_of_gaps(logged: dict[str, Logged]) -> None:
    for one in logged.values():
        (row,) = [row for row in one.history if "valid/responses.nrows" in row]
        table = json.loads((one.files / row["valid/responses.path"]).read_text())
        assert table["columns"] == ["update", "id", "prompt", "reference", "teacher", "student"]
        assert len(table["data"]) == 8
        assert {line[0] for line in table["data"]} == {2}
        assert all(isinstance(cell, str) for line in table["data"] for cell in line[1:])
        counts, edges = row["valid/tv_on_tokens.values"], row["valid/tv_on_tokens.bins"]
        assert (edges[0], edges[-1], len(edges)) == (0, 1, len(counts) + 1)
        middle = sum(n * (low + high) / 2 for n, low, high in zip(counts, edges, edges[1:], strict=False))
        (valid,) = [row for row in one.history if "valid/tv_on" in row]
        assert middle / sum(counts) == pytest.approx(valid["valid/tv_on"], abs=0.01)


@pytest.mark.slow
def test_group_job_type_and_tags(logged: dict[str, Logged]) -> None:
    assert {one.run["run_group"] for one in logged.values()} == {"samsum/t5_demo/demo"}
    assert {name: one.run["job_type"] for name, one in logged.items()} == {
        "sft": "nll beta 1",
        "kd": "kl beta 1",
        "gkd": "js beta 0.5",
        "minillm": "rkl beta 0 replay gamma 0.95",
        "amm": "moment_matching_residual beta 0.5",
    }
    assert set(logged["gkd"].run["tags"]) == {"samsum", "t5_demo", "demo", "js", "beta=0.5"}


@pytest.mark.slow
def test_compare_reads_from_wandb_what_it_reads_from_the_folder(logged: dict[str, Logged]) -> None:
    one = logged["amm"]
    config = one.run["config"]["update"]
    stored = SimpleNamespace(
        name=one.run["display_name"],
        id="x",
        state="finished",
        url="",
        config={key: value for key, value in config.items() if key != "_wandb"},
        summary=one.summary,
        scan_history=lambda: iter(one.history),
    )
    ((run,), others) = wandb_runs("wandb:e/p", SimpleNamespace(runs=lambda path: [stored]))
    assert others == []
    assert run.results["task"] == "samsum"
    assert run.results["objective"]["critic"]["kind"] == "residual"
    assert {"rouge_l", "sampled_accuracy", "tv_on", "probe_on", "worst_case"} <= set(run.results["student"])
    assert set(run.results["student"]) == set(run.results["teacher"])
    assert run.results["cost"]["seconds"]["distil"] > 0
    folder = one.files.parents[2]
    csv = {key: curve for key, curve in read_metrics_csv(folder / "metrics.csv").items() if curve}
    assert set(csv) <= set(run.curves)
    for key, curve in csv.items():
        if not key.startswith("time/"):
            assert dict(run.curves[key]) == pytest.approx(dict(curve)), key


def read_metrics_csv(path: Path) -> dict[str, list[tuple[float, float]]]:
    """What stands in metrics.csv, by key, the later row of an update holding."""
    found: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        for row in DictReader(file):
            for key, cell in row.items():
                if cell and key not in ("update", "step"):
                    found.setdefault(key, {})[float(row["update"])] = float(cell)
    return {key: sorted(curve.items()) for key, curve in found.items()}


# -- the specification -------------------------------------------------------------------------------


def written(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    out = tmp_path / "d.json"
    options = dashboard.parser().parse_args(["--dry-run", "--out", str(out), *arguments])
    (said,) = dashboard.dashboard(options)
    assert said.endswith(f"-> {out}; nothing was sent")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def panels(node: Any) -> Iterator[dict[str, Any]]:
    """Every panel of a specification, wherever it stands."""
    if isinstance(node, dict):
        if "viewType" in node and "config" in node:
            yield node
        for value in node.values():
            yield from panels(value)
    elif isinstance(node, list):
        for value in node:
            yield from panels(value)


def asked(panel: dict[str, Any]) -> set[str]:
    """The keys that a panel reads, as `Logged.known` writes them."""
    config = panel["config"]
    match panel["viewType"]:
        case "Run History Line Plot":
            return {config["xAxis"], *config["metrics"]}
        case "Scatter Plot":
            return {config["xAxis"], config["yAxis"]}
        case "Bar Chart":
            return {f"summary:{key.removeprefix('summary:')}" for key in config["metrics"]}
        case "Media Browser":
            return set(config["mediaKeys"])
        case "Weave":
            table = config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
            return {f"summary:{table}"}
    raise AssertionError(panel["viewType"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["workspace", "report"])
def test_every_key_of_the_specification_is_logged(
    logged: dict[str, Logged], tmp_path: Path, what: str
) -> None:
    found = list(panels(written(tmp_path)[what]["spec"]))
    assert len(found) == sum(len(part.panels) for part in parts("rouge_l"))
    known = set.union(*(one.known for one in logged.values()))
    assert {key for panel in found for key in asked(panel)} - known == set()
    for name in ("kd", "gkd", "minillm", "amm"):  # and nothing is empty for a method without need
        missing = {key for panel in found for key in asked(panel)} - logged[name].known
        assert missing <= {f"train/{of}_{source}" for of in ("moment_gap", "tv") for source in ("off", "on")}


def test_the_workspace_groups_runs_by_objective_over_the_update(tmp_path: Path) -> None:
    found = written(tmp_path, "mine", "--entity", "us")
    section = found["workspace"]["spec"]["section"]
    assert (found["entity"], found["project"]) == ("us", "mine")
    assert section["settings"]["xAxis"] == "update"
    assert section["runSets"][0]["grouping"] == [{"section": "run", "name": "jobType"}]
    titles = [part["name"] for part in section["panelBankConfig"]["sections"]]
    assert titles[:5] == [
        "AMMD against KL and reverse KL",
        "The β curve",
        "Both moment distances",
        "Step-wise total variation",
        "Cost against quality",
    ]
    assert "moment_matching" in json.dumps(found["report"]["spec"])  # the first section's filter


@pytest.mark.parametrize("metric", METRICS)
def test_every_task_has_its_own_metric(tmp_path: Path, metric: str) -> None:
    text = json.dumps(written(tmp_path, "--metric", metric))
    assert f"test/student/sampled_{metric}" in text
    assert all(f"valid/{other}" not in text for other in METRICS if other != metric)


# -- what is refused ---------------------------------------------------------------------------------


REFUSED = {
    "a/b": "a/b is no project's name: write PROJECT --entity ENTITY",
    "--metric f1": "--metric f1 is none of rouge_l, bleu, accuracy",
    "--out x.json": "--out would be ignored without --dry-run",
    "--dry-run --out nowhere/x.json": "cannot write nowhere/x.json (No such file or directory): set --out",
    "--wrong": "unrecognized arguments: --wrong; see python -m amd_lightning.dashboard --help",
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_is_one_line(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        dashboard.main(line.split())
    assert str(left.value.code).startswith(f"error: {REFUSED[line]}")
    assert "\n" not in str(left.value.code)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"wandb-workspaces is not there .*\.\[dashboard\]'"):
        dashboard.dashboard(dashboard.parser().parse_args(["--dry-run"]))


def test_without_an_account_or_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="told to stay offline"):
        dashboard.dashboard(dashboard.parser().parse_args([]))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))  # whoever runs the test may be logged in
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"W&B takes no dashboard \(.*\): log in with `wandb login`"):
        dashboard.dashboard(dashboard.parser().parse_args(["--entity", "us"]))
