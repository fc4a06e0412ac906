"""StrategyQA: yes/no questions that need facts nobody states (Geva et al. 2021, arXiv:2101.02235; MIT).

The verbs are those of `samsum.py`. A response is a rationale, the row's facts, and then the answer in a fixed
wording, as in chain-of-thought distillation; what is judged is the answer that is read out of it.

The official test answers are not public. Files: a directory without a test split is tested on its
validation split. Hub: the copy there has a 70/30 split of the public rows, as Fine-tune-CoT (Ho et al. 2023),
and no validation split: the last tenth of its train is held out as one. Both are said when they happen.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from amd_lightning.data.embedded import Checker
from amd_lightning.data.embedded_strategyqa import strategyqa_rows
from amd_lightning.data.examples import Example, Split
from amd_lightning.data.loading import (
    Row,
    Rows,
    Source,
    TaskRows,
    check_row_count,
    has_file,
    load_split,
    text,
)
from amd_lightning.data.sources import read_files, read_hub
from amd_lightning.errors import DataError

log = logging.getLogger(__name__)

COLUMNS = ("qid", "question", "answer", "facts")
HUB_ID = "ChilleD/StrategyQA"
REVISION = "main"
HUB_ROWS: dict[Split, tuple[int, ...]] = {"train": (1_603,), "test": (687,)}
HELD_OUT = 10
"""One in so many of the hub's training rows, the last ones, is for validation."""
METRICS = ("accuracy", "unparsed", "rouge_l")
"""Of responses; the first is the task's own."""

ANSWER = "So the answer is {}."
ANSWERED = re.compile(r"\banswer is:?\s+(yes|no)\b", re.IGNORECASE)
BARE = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


def load(
    split: Split,
    source: Source,
    *,
    path: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    revision: str = REVISION,
) -> list[Example]:
    """The examples of one split; see `load_split`, and above for the splits that are not there."""
    return load_split(ROWS, split, source, path=path, limit=limit, seed=seed, revision=revision)


def to_example(row: Mapping[str, Any]) -> Example:
    """One row -> one Example: facts as sentences, then the answer as ANSWER has it.

    The facts are a list, or one text; the answer is a boolean, or "true" and "false" in any case (CSV).
    Raises DataError where they are anything else.
    """
    row_id = str(row["qid"])
    response = " ".join([*_facts(row, row_id), ANSWER.format("yes" if _answer(row, row_id) else "no")])
    return Example(
        id=row_id,
        prompt=text("StrategyQA", row, "question", row_id),
        response=response,
        references=tuple(row.get("references") or (response,)),
    )


def parse_answer(response: str) -> bool | None:
    """The last answer that a response gives in the fixed wording, or the whole response where it is just
    "yes" or "no"; None where there is neither."""
    stated = ANSWERED.findall(response)
    if stated:
        return bool(stated[-1].lower() == "yes")
    bare = BARE.fullmatch(response)
    return None if bare is None else bare[1].lower() == "yes"


def is_right(response: str, references: Sequence[str]) -> bool:
    """Whether the response's answer is that of the references; one without an answer is wrong."""
    answer = parse_answer(response)
    return answer is not None and answer == parse_answer(references[0])


def checker(source: Source) -> Checker | None:
    """Whether an answer is right; every source has answers."""
    return is_right


def _facts(row: Row, row_id: str) -> list[str]:
    facts = row["facts"]
    if isinstance(facts, str):
        facts = [facts]
    if not isinstance(facts, Sequence) or not all(isinstance(fact, str) for fact in facts):
        raise DataError(f"StrategyQA: the facts of row id {row_id} are neither a list of texts nor a text")
    sentences = [" ".join(fact.split()) for fact in facts if fact.strip()]
    return [fact if fact[-1] in ".!?" else f"{fact}." for fact in sentences]


def _answer(row: Row, row_id: str) -> bool:
    answer = row["answer"]
    if isinstance(answer, str) and answer.strip().lower() in ("true", "false"):
        return answer.strip().lower() == "true"
    if not isinstance(answer, bool):
        raise DataError(f"StrategyQA: the answer of row id {row_id} is {answer!r}, neither true nor false")
    return answer


def _read_files(path: str, split: Split) -> Rows:
    if split == "test" and not has_file(path, "test") and has_file(path, "valid"):
        log.warning(
            "StrategyQA: %s has no test split (the official test answers are not public): the test results "
            "below are of its validation split, so choose nothing by validation",
            path,
        )
        return read_files(path, "valid", COLUMNS)
    if not has_file(path, "valid") and has_file(path, "test") and split != "test":
        return _without_valid(read_files(path, "train", COLUMNS), split)
    return read_files(path, split, COLUMNS)


def _read_hub(split: Split, revision: str) -> Rows:
    stored: Split = "test" if split == "test" else "train"
    rows = read_hub(HUB_ID, stored, COLUMNS, revision)
    expected = HUB_ROWS[stored] if revision == REVISION else ()
    check_row_count("StrategyQA", stored, len(rows), expected, revision)
    return rows if split == "test" else _without_valid(rows, split)


def _without_valid(rows: Rows, split: Split) -> Rows:
    """The part of the training rows that is `split`, where there is no validation split."""
    held_out = len(rows) // HELD_OUT
    if split == "valid":
        log.warning(
            "StrategyQA: there is no validation split: the last %d of %d training rows are held out as one",
            held_out,
            len(rows),
        )
        return rows[len(rows) - held_out :]
    return rows[: len(rows) - held_out]


ROWS = TaskRows(
    name="StrategyQA",
    words=("question", "answer"),
    generate=strategyqa_rows,
    read_files=_read_files,
    read_hub=_read_hub,
    to_example=to_example,
)
