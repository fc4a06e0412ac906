"""Offline run files, as W&B's own reader (`wandb leet inspect`) finds them."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Logged(NamedTuple):
    """What a run left behind.

    Attributes:
        history: its rows; a table's or a picture's key has its properties behind a dot.
        summary: its last values.
        run: name, group, job type, tags, configuration.
        defined: the metrics that `define_metric` was called for by name.
        files: the folder of its media.
    """

    history: list[dict[str, Any]]
    summary: dict[str, Any]
    run: dict[str, Any]
    defined: set[str]
    files: Path

    @property
    def history_keys(self) -> set[str]:
        """Logged keys, without properties and W&B's own."""
        return {_bare(key) for row in self.history for key in row if not key.startswith("_")}

    @property
    def summary_keys(self) -> set[str]:
        """The same of the summary."""
        return {_bare(key) for key in self.summary if not key.startswith("_")}

    @property
    def known(self) -> set[str]:
        """What a panel may name: "valid/tv_on", "summary:test/...", "config:objective.value.beta"."""
        of_config = {f"config:{key}" for key in _flat(self.run["config"]["update"])}
        # What is logged has a last value, which W&B puts into the summary.
        of_summary = {f"summary:{key}" for key in self.summary_keys | self.history_keys}
        return self.history_keys | of_summary | of_config


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record of the transaction log of the one run below `folder`."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(run)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in output.splitlines()]


def read_back(folder: Path) -> Logged:
    """The one run below `folder`."""
    found = records(folder)
    of = {kind: [record[kind] for record in found if record["type"] == kind] for kind in ("run", "metric")}
    (files,) = (folder / "wandb").glob("offline-run-*/files")
    summary: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    return Logged(
        [record["history"]["item"] for record in found if record["type"] == "history"],
        summary,
        of["run"][0],
        {metric["name"] for metric in of["metric"] if "name" in metric},
        files,
    )


def _bare(key: str) -> str:
    return key.split(".")[0]


def _flat(nested: Mapping[str, Any]) -> Iterator[str]:
    """{"objective": {"beta": 1}} -> "objective.value.beta", as W&B addresses it."""
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.value.{rest}" for rest in _below(value))
        else:
            yield f"{key}.value"


def _below(nested: Mapping[str, Any]) -> Iterator[str]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{rest}" for rest in _below(value))
        else:
            yield key
