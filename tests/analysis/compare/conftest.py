"""A fabricated sweep: two distances, two β's, two seeds, of which every number is known."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from amd_lightning.data.embedded import is_correct
from amd_lightning.evaluation.metrics import accuracy, rouge_l

EXAMPLES = 10
DRAWS = 2
RIGHT, WRONG = "Ann will bring tea.", "Bob will bring nothing at all."
CONFIG: dict[str, Any] = {
    "experiment": "samsum",
    "scale": "demo",
    "data": {"task": "samsum", "source": "embedded", "seed": 0, "test_rows": EXAMPLES},
    "pair": {"name": "t5_demo", "seed": 0},
    "optim": {"student": {"learning_rate": 0.003, "updates": 20}},
    "trainer": {"threads": 1, "validate_every": 10},
    "logger": {"wandb": {"name": None}},
}

WriteRun = Callable[..., Path]


def rows_of(who: str, right: Sequence[bool], sampled: Sequence[bool]) -> list[dict[str, Any]]:
    """One best response an example, and `DRAWS` sampled ones; right or wrong as said."""
    found = []
    for kind, verdicts in (("greedy", right), ("sampled", sampled)):
        for place, verdict in enumerate(verdicts):
            example = place % EXAMPLES
            found.append(
                {
                    "who": who,
                    "id": f"test-{example}",
                    "kind": kind,
                    "prompt": f"Dialogue {example}: shall I bring <b>tea</b>?",
                    "references": [RIGHT],
                    "response": RIGHT if verdict else WRONG,
                }
            )
    return found


def measured(rows: Sequence[Mapping[str, Any]], tv: float) -> dict[str, float | None]:
    """The metrics of these rows, as the harness has them."""
    found: dict[str, float | None] = {}
    for kind, head in (("greedy", ""), ("sampled", "sampled_")):
        texts = [row["response"] for row in rows if row["kind"] == kind]
        golds = [row["references"] for row in rows if row["kind"] == kind]
        found[f"{head}rouge_l"] = rouge_l(texts, golds)
        found[f"{head}accuracy"] = accuracy(texts, golds, is_correct)
    return found | {"tv_off": tv, "tv_on": 2 * tv, "kl_off": 3 * tv, "kl_on": 4 * tv, "probe_off": tv / 2}


def flags(count: int, of: int) -> list[bool]:
    """The first `count` of `of`."""
    return [place < count for place in range(of)]


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """`write_run(folder, distance=, beta=, seed=, right=, change=)`: a finished run's folder.

    right: how many of the sampled responses are; change: what is merged into results.json; config: the same
    into config.yaml; rows: instead of the fabricated ones.
    """

    def write(
        folder: Path,
        distance: str = "kl",
        beta: float = 1.0,
        seed: int = 0,
        right: int = 10,
        change: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        curves: Sequence[Mapping[str, float]] | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        total = EXAMPLES * DRAWS
        by = {
            "teacher": rows_of("teacher", flags(EXAMPLES, EXAMPLES), flags(total - 1, total)),
            "student_start": rows_of("student_start", flags(1, EXAMPLES), flags(1, total)),
            "student": rows_of("student", flags(right // 2, EXAMPLES), flags(right, total)),
        }
        tv = 0.2 - right / 200
        results: dict[str, Any] = {
            who: measured(rows, 0.0 if who == "teacher" else 0.2 if who == "student_start" else tv)
            | {"parameters": 100, "seconds": 1.0}
            for who, rows in by.items()
        }
        results |= {
            "task": "samsum",
            "scale": "demo",
            "source": "embedded",
            "updates": 20,
            "seed": seed,
            "objective": {"distance": distance, "beta": beta, "normalise": "token"},
            "command": f"python -m amd_lightning.run objective.distance={distance} seed={seed}",
            "cost": {"seconds": {"distil": 10.0 + seed}, "tokens": {"off": 1000, "on": 0}},
            "cache_keys": {"teacher": "abc"},
            "versions": {"torch": "2.0"},
            "git_commit": "0123456789abcdef",
            **(change or {}),
        }
        merged = {**CONFIG, "seed": seed, "output_dir": str(folder), **(config or {})}
        merged["objective"] = {"distance": distance, "beta": beta}
        (folder / "config.yaml").write_text(yaml.safe_dump(merged))
        lines = [json.dumps(row) for rows in by.values() for row in rows]
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
        logged = curves_of(right, seed) if curves is None else curves
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in logged for key in row}))
            writer.writeheader()
            writer.writerows(logged)
        (folder / "results.json").write_text(json.dumps(results))
        return folder

    return write


def curves_of(right: int, seed: int) -> list[dict[str, float]]:
    """Training every 5 updates, at half a second an update; validation at 10 and 20."""
    found: list[dict[str, float]] = [
        {"update": update, "time/seconds": update / 2, "train/tv_off": 0.2 - update / 200, "step": update}
        for update in (1, 5, 10, 15, 20)
    ]
    return found + [
        {"update": update, "valid/sampled_accuracy": right * update / 400 + seed / 100, "step": update}
        for update in (10, 20)
    ]


SWEEP = {
    ("moment_matching", 1.0): (18, 17),
    ("moment_matching", 0.0): (12, 14),
    ("kl", 1.0): (9, 8),
    ("kl", 0.0): (4, 5),
}
"""(distance, β) -> right responses of seeds 0 and 1, of 20."""


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> Path:
    """The folder of the fabricated sweep, with one run in it that has not ended."""
    folder = tmp_path_factory.mktemp("sweep")
    for place, ((distance, beta), counts) in enumerate(SWEEP.items()):
        for seed, right in enumerate(counts):
            write_run(folder / f"seed{seed}" / f"{place}_{distance}", distance, beta, seed, right)
    (folder / "seed1" / "9_unfinished").mkdir()
    (folder / "seed1" / "9_unfinished" / "config.yaml").write_text("seed: 1\n")
    return folder
