"""Responses side by side: one run a method, the same seed for all, for the report's search box."""

from collections.abc import Sequence
from typing import Any

from amd_lightning.analysis.compare.collect import Run
from amd_lightning.analysis.compare.methods import Method
from amd_lightning.analysis.compare.scores import responses, row_scores
from amd_lightning.analysis.runs import MODELS

LIMIT = 1_500_000
"""Characters of responses in a report; examples beyond it are left out, and it is said how many."""
TEXT = 2_000
"""Characters of one text; the rest is cut off and marked."""


def side_by_side(methods: Sequence[Method], limit: int = LIMIT) -> dict[str, Any] | None:
    """What the page searches: {"writers": [name], "seed", "rows": [...], "left_out": n}; None without any.

    A row is {"id", "set", "prompt", "references", "said": [[best, sampled] of each writer]}, and what
    somebody said is [text, 1 for correct, 0 for wrong, null for unknown]; null where nothing was written.
    """
    chosen = [(method.label, run) for method, run in _runs_of_one_seed(methods)]
    if not chosen:
        return None
    columns = [
        (MODELS["teacher"], chosen[0][1], "teacher"),
        (MODELS["student_start"], chosen[0][1], "student_start"),
        *((label, run, "student") for label, run in chosen),
    ]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in dict.fromkeys(run.place for _, run, _ in columns):
        wanted = {who: place for place, (_, of, who) in enumerate(columns) if of.place == run}
        source = next(of for _, of, _ in columns if of.place == run)
        _read(source, wanted, rows, len(columns))
    if not rows:
        return None
    kept, size = [], 0
    for row in rows.values():
        size += len(str(row))
        if size > limit:
            break
        kept.append(row)
    return {
        "writers": [name for name, _, _ in columns],
        "seed": chosen[0][1].seed,
        "rows": kept,
        "left_out": len(rows) - len(kept),
    }


def _runs_of_one_seed(methods: Sequence[Method]) -> list[tuple[Method, Run]]:
    """Each method's run of the lowest seed that all have; its first run where there is none."""
    local = [method for method in methods if any(run.folder for run in method.runs)]
    common = set.intersection(*({run.seed for run in method.runs} for method in local)) if local else set()
    seed = min(common, default=None)
    chosen = []
    for method in local:
        runs = [run for run in method.runs if run.folder]
        chosen.append((method, next((run for run in runs if run.seed == seed), runs[0])))
    return chosen


def _read(
    run: Run, wanted: dict[str, int], rows: dict[tuple[str, str], dict[str, Any]], columns: int
) -> None:
    """Fill the columns that this run's file has: who -> place."""
    for row in responses(run):
        place = wanted.get(str(row.get("who")))
        if place is None:
            continue
        found = rows.setdefault(
            (str(row.get("evaluation_set") or ""), str(row["id"])),
            {
                "id": str(row["id"]),
                "set": str(row.get("evaluation_set") or ""),
                "prompt": _cut(str(row.get("prompt", ""))),
                "references": [_cut(str(text)) for text in row.get("references") or []],
                "said": [[None, None] for _ in range(columns)],
            },
        )
        kind = 1 if row.get("kind") == "sampled" else 0
        if found["said"][place][kind] is None:  # the first of several samples
            correct = row_scores(row, run, texts=False).get("accuracy")
            found["said"][place][kind] = [
                _cut(str(row["response"])),
                None if correct is None else int(correct),
            ]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[:TEXT] + " […]"
