"""IWSLT'17 English to German: transcribed TED talks (Cettolo et al. 2017; CC BY-NC-ND).

The verbs are those of `samsum.py`. The official test split is tst2010 to tst2015 as the hub has them, the
validation split dev2010; a directory of files may hold tst2015 alone as its test.
"""

import logging
from collections.abc import Mapping
from typing import Any

from amd_lightning.data.embedded import Checker, is_correct
from amd_lightning.data.embedded_iwslt import iwslt_rows
from amd_lightning.data.examples import Example, Split
from amd_lightning.data.loading import Rows, Source, TaskRows, check_row_count, load_split, text
from amd_lightning.data.sources import find_file, read_file, read_hub
from amd_lightning.errors import DataError

log = logging.getLogger(__name__)

HUB_ID = "IWSLT/iwslt2017"
HUB_FOLDER = "iwslt2017-en-de"
REVISION = "refs/convert/parquet"
"""The hub's own conversion: the main branch is a loading script, refused by `datasets` since 4."""
HUB_ROWS: dict[Split, tuple[int, ...]] = {"train": (206_112,), "valid": (888,), "test": (8_079,)}
RESPLIT = "train_resplit"
"""A training file of this name is accepted, and said not to be the official one."""
METRICS = ("bleu", "accuracy")
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
    """The examples of one split; see `load_split`."""
    return load_split(ROWS, split, source, path=path, limit=limit, seed=seed, revision=revision)


def to_example(row: Mapping[str, Any]) -> Example:
    """One row, {en, de} or {translation: {en, de}}, -> one Example, each side one line with single spaces.

    Generated rows bring every acceptable translation as `references`; elsewhere the one is the only one.
    Raises DataError for a row without the two sides.
    """
    pair = row.get("translation") or row
    row_id = row.get("id", "?")
    if not isinstance(pair, Mapping) or "en" not in pair or "de" not in pair:
        found = ", ".join(row)
        raise DataError(f"IWSLT: a row has {found}: it needs en and de, or translation with both")
    english, german = (" ".join(text("IWSLT", pair, side, row_id).split()) for side in ("en", "de"))
    return Example(
        id=str(row_id),
        prompt=english,
        response=german,
        references=tuple(row.get("references") or (german,)),
    )


def checker(source: Source) -> Checker | None:
    """Whether a translation is right: only generated rows list all acceptable ones."""
    return is_correct if source == "embedded" else None


def _read_files(path: str, split: Split) -> Rows:
    file = find_file(path, split, (RESPLIT,) if split == "train" else ())
    if file.stem == RESPLIT:
        log.warning(
            "%s is not the official training split of IWSLT'17 (206,112 pairs): scores are comparable only "
            "with runs on the same file",
            file,
        )
    return _numbered(read_file(file, ()), split)


def _read_hub(split: Split, revision: str) -> Rows:
    rows = read_hub(HUB_ID, split, ("translation",), revision, folder=HUB_FOLDER)
    expected = HUB_ROWS[split] if revision == REVISION else ()
    check_row_count("IWSLT'17", split, len(rows), expected, revision)
    return _numbered(rows, split)


def _numbered(rows: Rows, split: Split) -> Rows:
    """Rows without an id are called by their place."""
    return [{"id": f"{split}-{place}", **row} for place, row in enumerate(rows)]


ROWS = TaskRows(
    name="IWSLT'17",
    words=("English side", "German side"),
    generate=iwslt_rows,
    read_files=_read_files,
    read_hub=_read_hub,
    to_example=to_example,
)
