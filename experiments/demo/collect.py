"""Finished runs -> results.csv (tidy) and a table: what stands in README.md beside this file.

python experiments/demo/collect.py RUN [RUN ...]
"""

import csv
import sys
from pathlib import Path

from amd_lightning.analysis.runs import read_results
from amd_lightning.analysis.tables import gap_closed

MODELS = ("teacher", "student_start", "student")
METRICS = (
    "rouge_l", "accuracy", "sampled_accuracy", "tv_off", "tv_on", "kl_off", "rkl_on", "parameters", "seconds",
)  # fmt: skip


def main(folders: list[str]) -> None:
    """Write results.csv beside this file and print one line a run."""
    rows = []
    for folder in folders:
        results = read_results(Path(folder))
        objective, cost = results["objective"], results["cost"]["seconds"]
        method = f"{objective['distance']} beta {objective['beta']:g}"
        for who in MODELS:
            for metric in METRICS:
                rows.append(
                    [method, results["seed"], results["pair_seed"], who, metric, results[who][metric]]
                )
        closed = gap_closed(results)
        levels = " -> ".join(
            f"{results[who]['sampled_accuracy']:.3f}" for who in ("student_start", "student")
        )
        print(
            f"{method}, seed {results['seed']}, pair seed {results['pair_seed']}: sampled accuracy {levels} "
            f"(teacher {results['teacher']['sampled_accuracy']:.3f}), closed {closed:.0%}, "
            f"distil {cost['distil']:.0f} s"
        )
    with (Path(__file__).parent / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "pair_seed", "model", "metric", "value"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
