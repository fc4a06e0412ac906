"""The text of a run as its models see it: tokenizer, prompt template, and every split as token ids."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from amd_lightning import starts
from amd_lightning.cache import Artifact, ArtifactCache
from amd_lightning.data.examples import (
    Example,
    LengthReport,
    Limits,
    PromptTemplate,
    Split,
    TokenisedExample,
    digest,
    read_report,
    tokenise,
)
from amd_lightning.data.prompts import choose_template
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.models.loading import load_tokenizer
from amd_lightning.spec import ModelSpec, Task

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
CACHED_FROM = 5_000
"""Rows of a split from which its token ids are cached; fewer take less time than the look-up saves."""

MakeArtifact = Callable[[str, Mapping[str, Any], Callable[[Path], None], str], Artifact]
"""(kind, inputs, make, name) -> the artifact of these inputs, made if it isn't there."""


@dataclass
class Text:
    """What `prepare_text` gives.

    Attributes:
        tokenizer: of the pair.
        template: that the prompts are written in.
        rows: the examples by split, and by the name of each further evaluation set.
        splits: the token ids of those that the limits leave, by the same names.
        reports: what the length limits did, by the same names.
        inputs: what identifies each of them in the keys of artifacts.
    """

    tokenizer: PreTrainedTokenizerFast
    template: PromptTemplate
    rows: dict[str, list[Example]]
    splits: dict[str, list[TokenisedExample]]
    reports: dict[str, LengthReport]
    inputs: dict[str, Any]


def prepare_text(
    task: Task,
    teacher: ModelSpec,
    vocabulary_size: int,
    cache: ArtifactCache,
    artifact: MakeArtifact,
    splits: Sequence[Split] | None = None,
) -> Text:
    """Load the splits and all evaluation sets, and make token ids of them.

    Args:
        task: the data.
        teacher: brings the tokenizer, unless it is built from its config: then one is trained on the
            training split.
        vocabulary_size: of a tokenizer that is trained.
        artifact: the cache.
        splits: those that are wanted, None for all; "train" is needed where a tokenizer is trained.
    """
    rows: dict[str, list[Example]] = {split: task.load(split) for split in splits or SPLITS}
    sets = {name: task.load_set(name) for name in task.sets}
    if teacher.path is not None:
        tokenizer = starts.tokenizer_of(teacher, cache)
        tokenizer_key: Any = starts.source(teacher)
        causal = starts.is_causal(teacher, cache)
        template = choose_template(task.name, task.template, tokenizer, causal)
    else:
        causal = teacher.architecture["family"] != "t5"
        template = choose_template(task.name, task.template, tokenizer=None, causal=causal)
        tokenizer, tokenizer_key = _trained(rows["train"], template, vocabulary_size, causal, artifact)

    text = Text(tokenizer, template, {**rows, **sets}, {}, {}, {})
    for name, examples in text.rows.items():
        split: Split = next((split for split in SPLITS if split == name), "test")
        text.inputs[name] = {
            "rows": digest(examples),
            "template": list(template),
            "limits": list(task.limits),
            "tokenizer": tokenizer_key,
        }
        text.splits[name], text.reports[name] = _tokenised(
            examples, tokenizer, template, task.limits, split, text.inputs[name], artifact, name
        )
        if described := text.reports[name].describe():
            log.warning(described if name in SPLITS else described.replace("test:", f"{name}:", 1))
    return text


def _trained(
    rows: Sequence[Example],
    template: PromptTemplate,
    vocabulary_size: int,
    causal: bool,
    artifact: MakeArtifact,
) -> tuple[PreTrainedTokenizerFast, str]:
    """A tokenizer learnt from the training split, and its key."""

    def make(folder: Path) -> None:
        texts = [text for row in rows for text in ("".join(template.around(row)), row.response)]
        train_tokenizer(texts, vocabulary_size, causal=causal).save_pretrained(folder)

    inputs = {"rows": digest(rows), "template": list(template), "vocabulary_size": vocabulary_size}
    if causal:
        inputs["causal"] = True
    found = artifact("tokenizer", inputs, make, "tokenizer")
    return load_tokenizer(str(found.path)), found.key


def _tokenised(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    template: PromptTemplate,
    limits: Limits,
    split: Split,
    inputs: Mapping[str, Any],
    artifact: MakeArtifact,
    name: str,
) -> tuple[list[TokenisedExample], LengthReport]:
    """`tokenise`, out of the cache where there are many rows."""
    if len(examples) < CACHED_FROM:
        return tokenise(examples, tokenizer, template, limits, split)

    def make(folder: Path) -> None:
        places = {id(example): place for place, example in enumerate(examples)}
        rows, report = tokenise(examples, tokenizer, template, limits, split)
        columns = {
            "prompts": [row.prompt_ids for row in rows],
            "responses": [row.response_ids for row in rows],
        }
        arrays: dict[str, Any] = {"places": np.array([places[id(row.example)] for row in rows])}
        for column, found in columns.items():
            arrays[column] = np.concatenate([np.array(ids, dtype=np.int32) for ids in found])
            arrays[f"{column}_lengths"] = np.array([len(ids) for ids in found])
        np.savez(folder / "tokens.npz", **arrays)
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")

    found = artifact("tokens", {**inputs, "split": split}, make, f"tokens_{name}")
    with np.load(found.path / "tokens.npz") as stored:
        prompts, responses = (
            np.split(stored[column], np.cumsum(stored[f"{column}_lengths"])[:-1])
            for column in ("prompts", "responses")
        )
        rows = [
            TokenisedExample(examples[place].id, prompt.tolist(), response.tolist(), examples[place])
            for place, prompt, response in zip(stored["places"].tolist(), prompts, responses, strict=True)
        ]
    return rows, read_report((found.path / "report.json").read_text(encoding="utf-8"))
