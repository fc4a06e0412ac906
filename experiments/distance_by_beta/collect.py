"""Finished runs -> results.csv (tidy, one row a run and metric), methods.png, and the tables of README.md.

    python experiments/distance_by_beta/collect.py RUN [RUN ...]

Run again as runs finish: it writes what there is.
"""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amd_lightning.analysis.methods import methods_figure
from amd_lightning.analysis.runs import read_results

HERE = Path(__file__).parent
METRICS = {
    "sampled_accuracy": ("sampled accuracy", 3),
    "exact_match": ("exact match with a teacher sample", 3),
    "mmd_squared": ("MMD² to teacher samples", 4),
    "ngram_gap": ("bigram gap", 3),
    "worst_case": ("worst-case gap (of 2)", 3),
    "tv_off": ("TV off", 4),
    "tv_on": ("TV on", 4),
    "kl_off": ("KL off", 3),
    "rkl_on": ("reverse KL on", 3),
    "probe_off": ("probe moment distance off", 4),
    "probe_on": ("probe moment distance on", 4),
    "response_tokens": ("response tokens", 2),
}
BETAS = (1.0, 0.5, 0.0)
DISTANCES = ("moment_matching", "js", "skew_kl", "rkl", "tv", "kl")
UPDATES = 500
"""The grid's budget; runs of another one make tables of their own."""


def main(folders: Sequence[str]) -> None:
    """Write the files beside this one and print a Markdown table a metric."""
    runs = sorted((read_results(Path(folder)) for folder in folders), key=_place)
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["distance", "critic", "alpha", "beta", "updates", "seed", "metric", "value"])
        for run in runs:
            objective, critic = run["objective"], _critic(run)
            point = [objective["distance"], critic.get("kind"), critic.get("alpha")]
            point += [objective["beta"], _updates(run), run["seed"]]
            for metric in METRICS:
                writer.writerow([*point, metric, run["student"].get(metric)])
            writer.writerow([*point, "distil_seconds", round(run["cost"]["seconds"]["distil"], 1)])
    for updates in sorted({_updates(run) for run in runs}):
        chosen = [run for run in runs if _updates(run) == updates]
        print(f"\n## {updates} updates")
        for metric, (title, decimals) in METRICS.items():
            print(f"\n{title} ({_levels(runs[0], metric, decimals)})\n")
            print(_table(chosen, lambda run, metric=metric: run["student"].get(metric), decimals))
        print("\nseconds of distillation\n")
        print(_table(chosen, lambda run: run["cost"]["seconds"]["distil"], 0))
    drawn = [run for run in runs if _updates(run) == UPDATES and _drawn(run)]
    methods_figure(drawn).savefig(HERE / "methods.png", dpi=64, facecolor="white")


def _critic(run: dict[str, Any]) -> dict[str, Any]:
    return run["objective"].get("critic") or {}


def _drawn(run: dict[str, Any]) -> bool:
    """Whether a run is in the picture: every distance on three seeds, moment matching as it is by default."""
    critic = _critic(run)
    if run["seed"] > 2:
        return False
    return not critic or (critic["kind"], critic["alpha"]) == ("residual", 0.25)


def _updates(run: dict[str, Any]) -> int:
    return round(run["updates"])


def _method(run: dict[str, Any]) -> str:
    """The distance, with the critic's kind where it is not the usual one, and its alpha."""
    critic = _critic(run)
    if not critic:
        return str(run["objective"]["distance"])
    kind = "" if critic["kind"] == "residual" else f" {critic['kind']}"
    return f"{run['objective']['distance']}{kind} α = {critic['alpha']:g}"


def _place(run: dict[str, Any]) -> tuple[int, str, float, int]:
    objective = run["objective"]
    return DISTANCES.index(objective["distance"]), _method(run), -objective["beta"], run["seed"]


def _levels(run: dict[str, Any], metric: str, decimals: int) -> str:
    """The teacher's and the start's level, which all runs share."""
    return ", ".join(
        f"{name} {run[who][metric]:.{decimals}f}"
        for who, name in (("student_start", "before"), ("teacher", "teacher"))
        if run[who].get(metric) is not None
    )


def _table(runs: Sequence[dict[str, Any]], value: Any, decimals: int) -> str:
    """Methods in rows, β in columns: mean over seeds, ± their standard deviation."""
    cells: dict[tuple[str, float], list[float]] = defaultdict(list)
    for run in runs:
        if (found := value(run)) is not None:
            cells[_method(run), run["objective"]["beta"]].append(found)
    methods = list(dict.fromkeys(method for method, _ in cells))
    lines = ["| | " + " | ".join(f"β = {beta:g}" for beta in BETAS) + " |", "|---|--:|--:|--:|"]
    for method in methods:
        row = []
        for beta in BETAS:
            values = cells.get((method, beta), [])
            spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            row.append(f"{statistics.mean(values):.{decimals}f}{spread}" if values else "–")
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
