"""What the task files share: rows of one source become examples, and what is wrong with them is said.

A task names its sources in a `TaskRows`; its `load` is `load_split` of it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from amd_lightning.data.examples import Example, Split
from amd_lightning.data.sources import find_file
from amd_lightning.errors import DataError

log = logging.getLogger(__name__)
Source = Literal["embedded", "files", "hub"]
Row = Mapping[str, Any]
Rows = Sequence[Row]

EMBEDDED_ROWS: dict[Split, int] = {"train": 2048, "valid": 128, "test": 128}
"""How many rows are generated where no limit is given; our choice."""


class TaskRows(NamedTuple):
    """Where a task's rows come from.

    Attributes:
        name: of the data set, for messages.
        words: what its prompt and its response are called there.
        generate: (split, number, seed) -> rows.
        read_files: (directory, split) -> rows.
        read_hub: (split, revision) -> rows.
        to_example: one row -> one Example.
    """

    name: str
    words: tuple[str, str]
    generate: Callable[[Split, int, int], Rows]
    read_files: Callable[[str, Split], Rows]
    read_hub: Callable[[Split, str], Rows]
    to_example: Callable[[Row], Example]


def load_split(
    task: TaskRows,
    split: Split,
    source: Source,
    *,
    path: str | None,
    limit: int | None,
    seed: int,
    revision: str,
) -> list[Example]:
    """The examples of one split, in the order of the source.

    path: the directory of source="files". limit: only the first so many examples; with source="embedded" the
    number to generate. seed: of the generated rows. revision: branch, tag or commit of source="hub".

    Rows with an empty prompt are left out, with a warning.
    Raises DataError for a row with an empty response, and what the task's readers raise.
    """
    if source == "embedded":
        rows = task.generate(split, EMBEDDED_ROWS[split] if limit is None else limit, seed)
    elif source == "hub":
        rows = task.read_hub(split, revision)
    elif path is None:
        raise DataError(
            "data.source=files needs data.path=DIR, the directory with train.jsonl, valid.jsonl, test.jsonl"
        )
    else:
        rows = task.read_files(path, split)

    prompt_word, response_word = task.words
    examples = [task.to_example(row) for row in rows]
    kept = [example for example in examples if example.prompt]
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        log.warning("%s %s: left out %d rows with an empty %s", task.name, split, left_out, prompt_word)
    for example in kept:
        if not example.response:
            raise DataError(
                f"{task.name} {split}: row id {example.id} has an empty {response_word}: fill it in or "
                "remove the row"
            )
    if limit is not None and limit < len(kept):
        log.info("%s %s: the first %d of %d examples (a limit is set)", task.name, split, limit, len(kept))
    return kept[:limit]


def text(task: str, row: Row, column: str, row_id: object) -> str:
    """A cell as text, lines ending in "\\n", no white space around it; None is an empty cell of a CSV file on
    the hub. Raises DataError where it is no text."""
    value = row[column]
    if not isinstance(value, str | None):
        raise DataError(f"{task}: the {column} of row id {row_id} is {type(value).__name__}, not text")
    return (value or "").replace("\r\n", "\n").replace("\r", "\n").strip()


def has_file(directory: str, split: Split) -> bool:
    """Whether a directory has a file for the split; two of them are an error elsewhere."""
    try:
        find_file(directory, split)
    except DataError as error:
        return "several files" in str(error)
    return True


def check_row_count(name: str, split: Split, found: int, expected: Sequence[int], revision: str) -> None:
    """Refuse a split of the hub that is not as long as it is at the revision which the code names.

    expected: the possible numbers; none where a user asked for a revision of their own.

    Raises DataError.
    """
    if expected and found not in expected:
        raise DataError(
            f"{name} on the hub has {found:,} rows in {split} at revision {revision}, not "
            f"{' or '.join(f'{count:,}' for count in expected)}: it has changed; give a commit that you "
            "trust (data.revision=COMMIT), or read your own copy (data.source=files data.path=DIR)"
        )
