"""The study's data: one directory a task, with train, valid and test, made of files that you have.

    python experiments/first_study/prepare.py DATA OUT

DATA holds the sets as published: multi30k/{train,valid,test_2016_flickr}.jsonl (en, de), samsum/{train,valid,
test}.jsonl, dolly/{train,valid,test}.jsonl (MiniLLM's split), strategyqa/{train,dev}.jsonl and
split_fine_tune_cot.json. No split is cut anew but for StrategyQA, whose test answers are not public: there
it is that of Fine-tune-CoT (Ho et al. 2023), with the last tenth of its training rows for validation.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HELD_OUT = 10
"""One in so many of StrategyQA's training rows is for validation."""


def main(data: Path, out: Path) -> None:
    """Write OUT/TASK/{train,valid,test}.jsonl; files that need no change are links."""
    links = {
        "multi30k": {"train": "train", "valid": "valid", "test": "test_2016_flickr"},
        "samsum": {"train": "train", "valid": "valid", "test": "test"},
        "dolly": {"train": "train", "valid": "valid", "test": "test"},
    }
    for task, names in links.items():
        (out / task).mkdir(parents=True, exist_ok=True)
        for split, name in names.items():
            link = out / task / f"{split}.jsonl"
            link.unlink(missing_ok=True)
            link.symlink_to((data / task / f"{name}.jsonl").resolve())
    for split, rows in strategyqa(data / "strategyqa").items():
        write(out / "strategyqa" / f"{split}.jsonl", map(facts_given, rows))


def strategyqa(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Fine-tune-CoT's split of the public questions, the end of its training rows held out."""
    rows = {row["qid"]: row for name in ("train", "dev") for row in read(folder / f"{name}.jsonl")}
    split = json.loads((folder / "split_fine_tune_cot.json").read_text(encoding="utf-8"))
    train = [rows[qid] for qid in split["train"]]
    held_out = len(train) // HELD_OUT
    return {
        "train": train[:-held_out],
        "valid": train[-held_out:],
        "test": [rows[qid] for qid in split["test"]],
    }


def facts_given(row: dict[str, Any]) -> dict[str, Any]:
    """The facts stand before the question and not in the response, which is the answer alone."""
    facts = [
        fact if fact.rstrip().endswith((".", "!", "?")) else f"{fact.rstrip()}." for fact in row["facts"]
    ]
    return row | {"question": " ".join([*facts, row["question"]]), "facts": []}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
