"""SAMSum: summaries of messenger dialogues (Gliwa et al. 2019, arXiv:1911.12237; CC BY-NC-ND 4.0).

The verbs of a task file: `load` gives one split's `Example`s from the hub, from files or generated;
`to_example` turns one row into one; `has_checker` says whether a response can be judged right or wrong.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from amd_lightning.data.embedded import samsum_rows
from amd_lightning.data.examples import Example, PromptTemplate, Split
from amd_lightning.data.sources import read_files, read_hub
from amd_lightning.errors import DataError

log = logging.getLogger(__name__)
Source = Literal["embedded", "files", "hub"]

COLUMNS = ("id", "dialogue", "summary")
HUB_ID = "knkarthick/samsum"
"""CSV files. The original, `Samsung/samsum`, is a loading script, refused by `datasets` since 4."""
REVISION = "main"
TEMPLATE = PromptTemplate(before="summarize: ")
"""T5's own prefix for summarisation (Raffel et al. 2020, appendix D)."""
EMBEDDED_ROWS: dict[Split, int] = {"train": 2048, "valid": 128, "test": 128}
"""How many rows are generated where no limit is given; our choice."""


def load(
    split: Split,
    source: Source,
    *,
    path: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str = REVISION,
) -> list[Example]:
    """The examples of one split, in the order of the source.

    path: the directory of source="files". limit: only the first so many examples; with source="embedded" the
    number to generate. seed: of the generated rows. revision: branch, tag or commit of source="hub".

    Rows with an empty dialogue are left out, with a warning (the hub's copy has one in train).
    Raises DataError for a row with an empty summary, and what `read_files` and `read_hub` raise.
    """
    if source == "embedded":
        rows = samsum_rows(split, EMBEDDED_ROWS[split] if limit is None else limit, seed)
    elif source == "hub":
        rows = read_hub(HUB_ID, split, COLUMNS, revision)
    elif path is None:
        raise DataError(
            "data.source=files needs data.path=DIR, the directory with train.jsonl, valid.jsonl, test.jsonl"
        )
    else:
        rows = read_files(path, split, COLUMNS)

    examples = [to_example(row) for row in rows]
    kept = [example for example in examples if example.prompt]
    if len(kept) < len(examples):
        log.warning("SAMSum %s: left out %d rows with an empty dialogue", split, len(examples) - len(kept))
    for example in kept:
        if not example.response:
            raise DataError(
                f"SAMSum {split}: row id {example.id} has an empty summary: fill it in or remove the row"
            )
    if limit is not None and limit < len(kept):
        log.info("SAMSum %s: the first %d of %d examples (a limit is set)", split, limit, len(kept))
    return kept[:limit]


def to_example(row: Mapping[str, Any]) -> Example:
    """One row -> one Example: lines end in "\\n" (the hub's have "\\r\\n"), no white space around the texts.

    Generated rows bring every acceptable wording as `references`; elsewhere the summary is the only one.
    """
    summary = _text(row, "summary")
    return Example(
        id=str(row["id"]),
        prompt=_text(row, "dialogue"),
        response=summary,
        references=tuple(row.get("references") or (summary,)),
    )


def has_checker(source: Source) -> bool:
    """Whether a response can be judged right or wrong: only generated rows list all acceptable wordings."""
    return source == "embedded"


def _text(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; an empty CSV cell comes from the hub as None."""
    value = row[column]
    if not isinstance(value, str | None):
        raise DataError(f"SAMSum: the {column} of row id {row['id']} is {type(value).__name__}, not text")
    return (value or "").replace("\r\n", "\n").replace("\r", "\n").strip()
