"""Finished runs, found under folders or in a W&B project."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from amd_lightning.analysis.runs import Curve, read_metrics, read_results
from amd_lightning.errors import UserError


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        name: its folder's name with that of the sweep, or its W&B name.
        place: the folder, or the W&B address.
        results: what results.json holds.
        config: the resolved configuration as one flat map, "optim.student.updates" -> 500.
        curves: what metrics.csv holds.
        folder: None where it comes from W&B.
    """

    name: str
    place: str
    results: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def seed(self) -> int:
        """The training seed; −1 where it is not said."""
        return int(self.results.get("seed", -1))

    @property
    def stopped(self) -> bool:
        """Whether `trainer.time_budget` ended it before its last update."""
        return self.results.get("stopped_at") is not None

    @property
    def updates(self) -> int | None:
        """How many updates it made; None where that is not said."""
        made = self.results["stopped_at"] if self.stopped else self.results.get("updates")
        return None if made is None else int(made)

    def setting(self, key: str) -> Any:
        """A knob of config.yaml, or what results.json says of the run under that name; None for neither."""
        return self.config.get(key, self.results.get(key))


class Found(NamedTuple):
    """Finished runs, by place; and the folders of others, which have not ended."""

    runs: list[Run]
    unfinished: list[Path]


def find_runs(folders: Sequence[Path]) -> Found:
    """Every run in or below the folders.

    Raises:
        UserError: a folder is not there, a run is damaged.
    """
    finished: dict[Path, None] = {}
    unfinished: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder: name the output_dir of a run, or a folder of runs")
        for place in _run_folders(folder):
            (finished if (place / "results.json").is_file() else unfinished)[place.resolve()] = None
    return Found([read_run(place) for place in sorted(finished, key=_natural)], sorted(unfinished))


def read_run(folder: Path) -> Run:
    """A finished run's folder without its responses.

    Raises:
        UserError: it is not finished, or damaged.
    """
    results = with_evaluation_sets(read_results(folder))
    path = folder / "config.yaml"
    config: dict[str, Any] = {}
    if path.is_file():
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} is damaged ({reason}): restore it, or start the run again") from error
        config = flat(loaded if isinstance(loaded, dict) else {})
    name = "/".join(folder.parts[-2:])
    return Run(name, str(folder), results, config, read_metrics(folder), folder)


def with_evaluation_sets(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json with the metrics of further test sets in the models' maps, as "SET/rouge_l"."""
    found = dict(results)
    for name, models in (results.get("evaluation_sets") or {}).items():
        for who, metrics in models.items():
            further = {f"{name}/{key}": value for key, value in metrics.items()}
            found[who] = {**found[who], **further}
    return found


def flat(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty map leaves nothing."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with results.json or config.yaml, the topmost ones alone: a run's own files lie below."""
    for place, below, files in os.walk(folder, followlinks=True):
        if "results.json" in files or "config.yaml" in files:
            below.clear()
            yield Path(place)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _natural(path: Path) -> tuple[Any, ...]:
    """Sweep points by number: 2_kl before 10_kl."""
    head, _, rest = path.name.partition("_")
    return (str(path.parent), int(head) if head.isdigit() else 0, rest, path.name)
