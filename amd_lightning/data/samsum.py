"""SAMSum: summaries of messenger dialogues (Gliwa et al. 2019, arXiv:1911.12237; CC BY-NC-ND 4.0).

The verbs of a task file: `load` gives one split's `Example`s from the hub, from files or generated;
`to_example` turns one row into one; `checker` judges a response right or wrong, where there is such a thing.
"""

from collections.abc import Mapping
from typing import Any

from amd_lightning.data.embedded import Checker, is_correct, samsum_rows
from amd_lightning.data.examples import Example, Split
from amd_lightning.data.loading import Rows, Source, TaskRows, check_row_count, load_split, text
from amd_lightning.data.sources import read_files, read_hub

COLUMNS = ("id", "dialogue", "summary")
HUB_ID = "knkarthick/samsum"
"""CSV files. The original, `Samsung/samsum`, is a loading script, refused by `datasets` since 4."""
REVISION = "main"
HUB_ROWS: dict[Split, tuple[int, ...]] = {"train": (14_732, 14_731), "valid": (818,), "test": (819,)}
"""One of train's dialogues is empty; readers of CSV may keep or drop it."""
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
    """The examples of one split; see `load_split` (the hub's train has one empty dialogue)."""
    return load_split(ROWS, split, source, path=path, limit=limit, seed=seed, revision=revision)


def to_example(row: Mapping[str, Any]) -> Example:
    """One row -> one Example: lines end in "\\n" (the hub's have "\\r\\n"), no white space around the texts.

    Generated rows bring every acceptable wording as `references`; elsewhere the summary is the only one.
    """
    summary = text("SAMSum", row, "summary", row["id"])
    return Example(
        id=str(row["id"]),
        prompt=text("SAMSum", row, "dialogue", row["id"]),
        response=summary,
        references=tuple(row.get("references") or (summary,)),
    )


def checker(source: Source) -> Checker | None:
    """Whether a response is right: only generated rows list all acceptable wordings."""
    return is_correct if source == "embedded" else None


def _read_hub(split: Split, revision: str) -> Rows:
    rows = read_hub(HUB_ID, split, COLUMNS, revision)
    expected = HUB_ROWS[split] if revision == REVISION else ()
    check_row_count("SAMSum", split, len(rows), expected, revision)
    return rows


ROWS = TaskRows(
    name="SAMSum",
    words=("dialogue", "summary"),
    generate=samsum_rows,
    read_files=lambda path, split: read_files(path, split, COLUMNS),
    read_hub=_read_hub,
    to_example=to_example,
)
