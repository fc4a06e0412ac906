"""What a finished run leaves on disk: results.json and predictions.jsonl."""

import contextlib
import importlib.metadata
import json
import platform
import resource
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from amd_lightning import __version__
from amd_lightning.running.outcome import Outcome

MODELS = ("teacher", "student_start", "student")
STAGE_OF = {"teacher": "teacher", "student_start": "student_start", "student": "distil"}
PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "hydra-core",
    "rouge-score",
    "sacrebleu",
    "wandb",
    "numpy",
)


def assemble(outcome: Outcome, description: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json.

    Args:
        outcome: what the pipeline found.
        description: what was run: task, scale, objective, seed, command.
    """
    models = {
        who: {
            **outcome.evaluations[who].metrics,
            "parameters": outcome.parameters[who],
            "seconds": outcome.seconds.get(STAGE_OF[who]),
        }
        for who in MODELS
    }
    return {
        **models,
        **description,
        "quality": outcome.quality,
        "metric_signatures": outcome.signatures,
        "evaluation_sets": {
            name: {who: evaluations[who].metrics for who in MODELS}
            for name, evaluations in outcome.sets.items()
        },
        "validation": outcome.validation,
        "rows": outcome.rows,
        **({} if outcome.stopped_at is None else {"stopped_at": outcome.stopped_at}),
        **({"teacher_top_k": outcome.truncation} if outcome.truncation else {}),
        "vocabulary": outcome.vocabulary,
        "cost": {
            "seconds": outcome.seconds,
            "cached": outcome.cached,
            "tokens": outcome.tokens,
            "peak_memory_mb": peak_memory_mb(),
        },
        "cache_keys": outcome.keys,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def write(folder: Path, results: Mapping[str, Any], outcome: Outcome) -> None:
    """results.json (last, by rename: its presence means that the run is complete) and predictions.jsonl."""
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for who in MODELS:
            for row in outcome.evaluations[who].predictions:
                file.write(json.dumps({"who": who, **row}, ensure_ascii=False) + "\n")
            for name, evaluations in outcome.sets.items():
                for row in evaluations[who].predictions:
                    line = {"who": who, "evaluation_set": name, **row}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / "results.json")


def peak_memory_mb() -> dict[str, float]:
    """The process's largest resident memory, and the GPU's largest allocation where there is one."""
    unit = 1024.0**2 if platform.system() == "Darwin" else 1024.0  # ru_maxrss counts bytes there, else KiB
    found = {"cpu": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated() / 1024.0**2
    return found


def versions() -> dict[str, str]:
    """Of Python, this project and what it stands on, without what is missing: no run fails by it."""
    found = {"python": platform.python_version(), "amd_lightning": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_commit() -> str | None:
    """The checkout's commit, with "+changes" where the working tree differs; None outside a checkout."""

    def git(*arguments: str) -> str:
        root = str(Path(__file__).resolve().parent.parent)
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    if not (Path(__file__).resolve().parent.parent / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
