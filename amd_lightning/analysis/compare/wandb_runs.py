"""Finished runs of a W&B project, through its public API: summaries, configurations and curves."""

from collections.abc import Mapping
from typing import Any, Protocol

import httpx

from amd_lightning.analysis.compare.collect import Run, flat
from amd_lightning.analysis.runs import MODELS, Curve
from amd_lightning.errors import UserError

SCHEME = "wandb:"
PROBE_SECONDS = 5.0
REMEDY = "check the name and `wandb login`, or compare the runs' own folders, which need no network"
SECTIONS = ("objective", "rollout", "critic")
CURVES = ("train/", "valid/", "time/", "cost/", "critic/", "rollout/")


class Api(Protocol):
    """What is used of `wandb.Api`."""

    def runs(self, path: str) -> Any:
        """The runs of "entity/project": each has name, id, state, url, config, summary, scan_history()."""


def wandb_runs(address: str, api: Api | None = None) -> tuple[list[Run], list[str]]:
    """(finished runs, names of the others) of `wandb:ENTITY/PROJECT`.

    Responses are not downloaded, so that intervals cover the training seeds alone.

    Raises:
        UserError: the address is none, or W&B does not answer.
    """
    path = address.removeprefix(SCHEME).strip("/")
    if len(path.split("/")) != 2 or not all(path.split("/")):
        raise UserError(f"{address} is no W&B project: write {SCHEME}ENTITY/PROJECT")
    try:
        found = list((_api() if api is None else api).runs(path))
        finished = [run for run in found if run.state == "finished" and _models(_summary(run))]
        runs = [_run(run, path) for run in finished]
    except UserError:
        raise
    except Exception as error:  # of the network, of HTTP, of the account: W&B has many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"W&B gives nothing of {path} ({reason}): {REMEDY}") from error
    names = {id(run) for run in finished}
    return runs, [f"{path}/{run.name}" for run in found if id(run) not in names]


def _api() -> Api:
    import os

    import wandb  # half a second, and seldom needed

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise UserError(f"W&B is told to stay offline (WANDB_MODE): unset it, or {REMEDY.split(', or ')[1]}")
    _require_answer(wandb.setup().settings.base_url)
    api: Api = wandb.Api(timeout=20)
    return api


def _require_answer(address: str) -> None:
    """Any answer of the server; W&B's own client tries again for half a minute before it gives up."""
    try:
        httpx.head(address, timeout=PROBE_SECONDS, verify=False)  # nothing is sent; who it is, W&B checks
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"W&B does not answer at {address} ({reason}): {REMEDY}") from error


def _run(run: Any, path: str) -> Run:
    config = dict(run.config)
    summary = _summary(run)
    objective: dict[str, Any] = dict(config.get("objective") or {})
    if objective.get("distance") == "moment_matching":
        rate = ((config.get("optim") or {}).get("critic") or {}).get("learning_rate")
        objective["critic"] = {**(config.get("critic") or {}), "learning_rate": rate}
    seconds = {
        key.removeprefix("cost/seconds/"): value
        for key, value in summary.items()
        if key.startswith("cost/seconds/")
    }
    settings = flat(config)
    results = {
        **_models(summary),
        "task": settings.get("data.task"),
        "scale": settings.get("scale"),
        "source": settings.get("data.source"),
        "pair": settings.get("pair.name"),
        "objective": objective,
        "rollout": dict(config.get("rollout") or {}),
        "learning_rate": settings.get("optim.student.learning_rate"),
        "updates": settings.get("optim.student.updates"),
        "stopped_at": summary.get("stopped_at"),
        "seed": settings.get("seed", -1),
        "cost": {"seconds": seconds},
    }
    return Run(
        run.name, getattr(run, "url", "") or f"{SCHEME}{path}/{run.id}", results, settings, _curves(run)
    )


def _models(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`test/student/rouge_l` -> {"student": {"rouge_l": ...}}; empty where the student was not measured."""
    found: dict[str, dict[str, Any]] = {who: {} for who in MODELS}
    for key, value in summary.items():
        head, _, rest = key.partition("/")
        who, _, metric = rest.partition("/")
        if head == "test" and who in found and metric and (value is None or isinstance(value, int | float)):
            found[who][metric] = value
    return found if found["student"] else {}


def _summary(run: Any) -> dict[str, Any]:
    """Keys may stand as "a/b" or nested."""
    return {
        key.replace(".", "/"): value
        for key, value in flat({k: _plain(v) for k, v in run.summary.items()}).items()
    }


def _plain(value: Any) -> Any:
    return {k: _plain(v) for k, v in value.items()} if hasattr(value, "items") else value


def _curves(run: Any) -> dict[str, Curve]:
    found: dict[str, dict[float, float]] = {}
    for row in run.scan_history():
        update = row.get("update")
        if not isinstance(update, int | float):
            continue
        for key, value in row.items():
            if key.startswith(CURVES) and isinstance(value, int | float):
                found.setdefault(key, {})[float(update)] = float(value)
    return {key: sorted(curve.items()) for key, curve in found.items()}
