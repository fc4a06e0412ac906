"""Further test sets for instructions: SelfInst, VicunaEval, S-NI, UnNI, in MiniLLM's files (Gu et al. 2024).

A row has `instruction`, perhaps `input`, and `output`, a reference or a list of them. The files are the
user's: two of them hold text that a model of OpenAI wrote, under terms of its own.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amd_lightning.data.examples import Example
from amd_lightning.data.loading import text
from amd_lightning.data.sources import read_file
from amd_lightning.errors import DataError

log = logging.getLogger(__name__)


class EvaluationSet(NamedTuple):
    """Names of its file, the first that is there; and the fewest words that every reference must have."""

    stems: tuple[str, ...]
    words: int = 0


SETS = {
    "self_inst": EvaluationSet(("self_inst", "selfinst")),
    "vicuna": EvaluationSet(("vicuna",)),
    # "[11, inf)": what MiniLLM and DistiLLM report. Their S-NI file is filtered already (by tokens: some of
    # its references have fewer words), so nothing is left out of it.
    "s_ni": EvaluationSet(("sinst_11_", "s_ni")),
    "un_ni": EvaluationSet(("uinst_11_", "un_ni", "uinst_subset"), words=11),
}


def load_set(directory: str, name: str, *, limit: int | None = None) -> list[Example]:
    """The examples of one set, the first `limit` of them.

    Raises DataError where its file is missing, unreadable, or holds no row with references long enough.
    """
    wanted = SETS[name]
    files = [Path(directory).expanduser() / f"{stem}.jsonl" for stem in wanted.stems]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        looked_for = ", ".join(file.name for file in files)
        raise DataError(
            f"no evaluation set {name} in {directory}: looked for {looked_for}; set "
            "data.evaluation_path=DIR, or leave it out of data.evaluation_sets"
        )
    rows = read_file(path, ("instruction", "output"))
    examples = [to_example(name, place, row) for place, row in enumerate(rows)]
    kept = [
        example
        for example in examples
        if all(len(reference.split()) >= wanted.words for reference in example.references)
    ]
    if not kept:
        raise DataError(
            f"{path} has no row whose references have {wanted.words} words and more, which {name} is "
            f"restricted to: give another file, or leave {name} out of data.evaluation_sets"
        )
    if len(kept) < len(examples):
        short = len(examples) - len(kept)
        log.warning("%s: left out %d rows with references of under %d words", name, short, wanted.words)
    return kept[:limit]


def to_example(name: str, place: int, row: Mapping[str, Any]) -> Example:
    """One row -> one Example, called by its place in the file."""
    row_id = f"{name}-{place}"
    output = row["output"]
    references = [output] if isinstance(output, str) else list(output)
    if not references or not all(isinstance(reference, str) for reference in references):
        raise DataError(f"{name}: the output of row {place} is neither a text nor a list of texts")
    return Example(
        id=row_id,
        prompt=text(name, row, "instruction", row_id),
        response=references[0].strip(),
        references=tuple(reference.strip() for reference in references),
        context=text(name, {"input": "", **row}, "input", row_id),
    )
