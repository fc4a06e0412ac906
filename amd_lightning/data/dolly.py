"""Dolly: instructions with and without context (databricks-dolly-15k, Conover et al. 2023; CC BY-SA 3.0).

The verbs are those of `samsum.py`. The hub has one split. The field's is MiniLLM's (Gu et al. 2024,
arXiv:2306.08543): in the order of the rows, of those that pass a length filter, 500 for test, 1,000 for
validation, the rest for training. Which rows those are is not a function of the text alone (the filter counts
tokens of GPT-2), so `dolly_split.txt` names the 1,500 held-out rows by digest: both held-out splits are
exactly MiniLLM's, and training has all other rows, where MiniLLM's filter leaves 11,435; our own limits
(data.max_prompt_tokens, data.long_prompts=drop) take its place.
"""

import hashlib
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from amd_lightning.data.embedded import Checker, is_correct
from amd_lightning.data.embedded_dolly import dolly_rows
from amd_lightning.data.examples import Example, Split
from amd_lightning.data.loading import Rows, Source, TaskRows, check_row_count, load_split, text
from amd_lightning.data.sources import read_files, read_hub

log = logging.getLogger(__name__)

COLUMNS = ("instruction", "context", "response")
HUB_ID = "databricks/databricks-dolly-15k"
REVISION = "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a"
HUB_ROWS = 15_011
SPLIT_FILE = Path(__file__).resolve().parent / "dolly_split.txt"
METRICS = ("rouge_l", "accuracy")
"""Of responses; the first is the task's own."""


def load(
    split: Split,
    source: Source,
    *,
    path: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str = REVISION,
) -> list[Example]:
    """The examples of one split; see `load_split`, and above for the splits of the hub's rows."""
    return load_split(ROWS, split, source, path=path, limit=limit, seed=seed, revision=revision)


def to_example(row: Mapping[str, Any]) -> Example:
    """One row -> one Example; an empty context is no context.

    Generated rows bring every acceptable wording as `references`; elsewhere the response is the only one.
    """
    row_id = str(row["id"])
    response = text("Dolly", row, "response", row_id)
    return Example(
        id=row_id,
        prompt=text("Dolly", row, "instruction", row_id),
        response=response,
        references=tuple(row.get("references") or (response,)),
        context=text("Dolly", row, "context", row_id),
    )


def checker(source: Source) -> Checker | None:
    """Whether a response is right: only generated rows list all acceptable wordings."""
    return is_correct if source == "embedded" else None


def row_digest(row: Mapping[str, Any]) -> str:
    """Eight hex digits for a row's three texts, white space apart: what `dolly_split.txt` names rows by."""
    texts = (" ".join(str(row[column] or "").split()) for column in COLUMNS)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def held_out() -> dict[str, Split]:
    """Digest -> "test" or "valid", of the rows that MiniLLM holds out."""
    lines = SPLIT_FILE.read_text(encoding="utf-8").splitlines()
    found: dict[str, Split] = {}
    for line in lines:
        if not line.startswith("#"):
            name, *digests = line.split()
            found |= dict.fromkeys(digests, "test" if name == "test" else "valid")
    return found


def field_split(rows: Rows, split: Split) -> Rows:
    """The rows of one split out of all of Dolly's; what is missing from it, or left out, is said in the log.

    A held-out row that occurs again later is left out of training.
    """
    wanted, first = held_out(), set()
    chosen, repeated = [], 0
    for row in rows:
        digest = row_digest(row)
        if digest in first:
            repeated += 1
        elif wanted.get(digest, "train") == split:
            chosen.append(row)
        if digest in wanted:
            first.add(digest)
    if split == "train":
        if repeated:
            log.warning("Dolly train: left out %d rows that repeat a held-out one", repeated)
        return chosen
    whole = sum(name == split for name in wanted.values())
    if len(chosen) < whole:
        missing = whole - len(chosen)
        log.warning("Dolly %s: %d of MiniLLM's %d rows are not among these rows", split, missing, whole)
    return chosen


def _read_hub(split: Split, revision: str) -> Rows:
    rows = read_hub(HUB_ID, "train", COLUMNS, revision)
    check_row_count("Dolly", "train", len(rows), (HUB_ROWS,) if revision == REVISION else (), revision)
    return field_split([{"id": place, **row} for place, row in enumerate(rows)], split)


def _read_files(path: str, split: Split) -> Rows:
    rows = read_files(path, split, COLUMNS)
    return [{"id": f"{split}-{place}", **row} for place, row in enumerate(rows)]


ROWS = TaskRows(
    name="Dolly",
    words=("instruction", "response"),
    generate=dolly_rows,
    read_files=_read_files,
    read_hub=_read_hub,
    to_example=to_example,
)
