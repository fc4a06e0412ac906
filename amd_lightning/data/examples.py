"""Examples, prompt templates and tokenisation: from rows of text to a `Rollout`.

What all tasks share. A task's file (`samsum.py`) turns its rows into `Example`s, `prompts.py` chooses the
template; here they become token ids within the configured limits, and nothing is cut or dropped without
being counted.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from amd_lightning.errors import DataError, ModelError
from amd_lightning.types import PromptBatch, Responses, Rollout, TeacherTopK

Split = Literal["train", "valid", "test"]
TooLong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class Example:
    """One row of a task, as text."""

    id: str
    prompt: str
    """The raw input (a dialogue, an instruction); the template is applied when it is tokenised."""
    response: str
    """The gold response: the off-policy text of SFT."""
    references: tuple[str, ...]
    """Gold strings for evaluation only; more than one where several wordings are right."""
    context: str = ""
    """What the instruction is about; where there is one, a limit cuts it before `prompt`."""


class PromptTemplate(NamedTuple):
    """The text around the raw input: a T5 prefix, or the headed sections of an instruction prompt."""

    text: str
    """With {prompt} where the raw input goes."""
    with_context: str = ""
    """The same for rows that have a context, with {prompt} and {context}."""
    special_tokens: Literal["all", "no_end", "none"] = "all"
    """Which of the tokenizer's special tokens are put around it: all; none at the end, as a response follows
    at once (causal models); or none, as they are written in the text (chat templates)."""

    def around(self, example: Example) -> tuple[str, str, str]:
        """What stands before the text that may be cut, that text (context, else prompt), and what follows.

        Raises ValueError for a row with a context where the template has no place for it.
        """
        template, place, raw = self.text, "{prompt}", example.prompt
        if example.context:
            template, place, raw = self.with_context, "{context}", example.context
        if template.count(place) != 1:
            raise ValueError(f"the template must have {place} once: {template!r}")
        before, after = template.split(place)
        if example.context:  # split before anything is filled in: an input may have braces of its own
            before, after = (part.replace("{prompt}", example.prompt) for part in (before, after))
        return before, raw, after


class Limits(NamedTuple):
    """The longest prompt and response in tokens (special ones included), and what happens to longer ones."""

    prompt_tokens: int
    response_tokens: int
    long_prompts: TooLong
    long_responses: TooLong


class TokenisedExample(NamedTuple):
    """An example with its token ids."""

    id: str
    prompt_ids: list[int]
    response_ids: list[int]
    """Ends with EOS, unless it was truncated: a cut response must not teach where to stop."""
    example: Example
    samples: tuple[list[int], ...] = ()
    """The teacher's samples to this prompt, where the objective compares with them."""
    top_k: tuple[np.ndarray, np.ndarray] | None = None
    """The teacher at the response's T states, where it was written down: its likeliest actions [T, k] and the
    log-probabilities of these and of the rest [T, k + 1], views of files."""


class Percentiles(NamedTuple):
    """Lengths in tokens, before any cut."""

    median: int
    p90: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Percentiles":
        """Nearest-rank percentiles of at least one length."""
        ranked = sorted(lengths)
        median, p90, p99 = (ranked[-(-len(ranked) * percent // 100) - 1] for percent in (50, 90, 99))
        return cls(median, p90, p99, ranked[-1])

    def __str__(self) -> str:
        return f"median {self.median}, 90 % {self.p90}, 99 % {self.p99}, longest {self.longest}"


class LengthReport(NamedTuple):
    """What the limits did to one split. A dropped row is counted once, by what it was dropped for."""

    split: Split
    rows: int
    dropped_prompts: int
    truncated_prompts: int
    dropped_responses: int
    truncated_responses: int
    prompt_lengths: Percentiles
    response_lengths: Percentiles
    limits: Limits

    def describe(self) -> str:
        """One line for people, or "" when every row is whole."""
        counted = {
            f"prompts over {self.limits.prompt_tokens} tokens dropped": self.dropped_prompts,
            f"prompts over {self.limits.prompt_tokens} tokens truncated": self.truncated_prompts,
            f"responses over {self.limits.response_tokens} tokens dropped": self.dropped_responses,
            f"responses over {self.limits.response_tokens} tokens truncated": self.truncated_responses,
        }
        parts = [f"{count:,} {what}" for what, count in counted.items() if count]
        if not parts:
            return ""
        return (
            f"{self.split}: of {self.rows:,} rows, {', '.join(parts)} "
            f"(prompt tokens: {self.prompt_lengths}; response tokens: {self.response_lengths})"
        )

    def to_json(self) -> str:
        """All of it, for `read_report`."""
        return json.dumps(self)


def read_report(stored: str) -> LengthReport:
    """The report that `LengthReport.to_json` wrote."""
    *counts, prompts, responses, limits = json.loads(stored)
    tail = (Percentiles(*prompts), Percentiles(*responses), Limits(*limits))
    return LengthReport._make([*counts, *tail])


def digest(examples: Sequence[Example]) -> str:
    """sha256 (hex) of the contents, order included: part of the keys of cached artifacts."""
    total = hashlib.sha256()
    for example in examples:
        fields: list[Any] = [example.id, example.prompt, example.response, list(example.references)]
        fields += [example.context] if example.context else []
        # ASCII escapes: one unambiguous byte string, also for a lone surrogate. JSON keeps the fields apart.
        total.update(json.dumps(fields).encode() + b"\n")
    return total.hexdigest()


def tokenise(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    template: PromptTemplate,
    limits: Limits,
    split: Split,
) -> tuple[list[TokenisedExample], LengthReport]:
    """Token ids of all examples that the limits leave, in their order, and the report of what the limits did.

    A prompt is truncated by shortening its raw *text* (its context, if it has one) at the end, so the
    template and the special tokens stay whole. Whatever `limits` say, test prompts are truncated, never
    dropped (fewer test rows would be another score), and so are valid and test responses (their references
    are text; the ids only serve teacher-forced distances).

    Raises DataError when no row is left, or when the template alone fills the prompt; ModelError when the
    tokenizer has no EOS.
    """
    if not examples:
        raise DataError(f"the {split} split has no rows: check data.path and the limit on its rows")
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token: choose a model whose tokenizer has one")
    long_prompts = "truncate" if split == "test" else limits.long_prompts
    long_responses = limits.long_responses if split == "train" else "truncate"

    prompts = _prompt_ids(tokenizer, template, ["".join(template.around(example)) for example in examples])
    responses = _ids(tokenizer, [example.response for example in examples], special=False)
    kept: list[TokenisedExample] = []
    dropped_prompts = truncated_prompts = dropped_responses = truncated_responses = 0
    for example, prompt_ids, bare_response in zip(examples, prompts, responses, strict=True):
        response_ids = [*bare_response, tokenizer.eos_token_id]
        prompt_over = len(prompt_ids) > limits.prompt_tokens
        response_over = len(response_ids) > limits.response_tokens
        if prompt_over and long_prompts == "drop":
            dropped_prompts += 1
            continue
        if response_over and long_responses == "drop":
            dropped_responses += 1
            continue
        if prompt_over:
            prompt_ids = _shorten(example, tokenizer, template, limits.prompt_tokens)
            truncated_prompts += 1
        if response_over:
            response_ids = response_ids[: limits.response_tokens]
            truncated_responses += 1
        kept.append(TokenisedExample(example.id, prompt_ids, response_ids, example))

    report = LengthReport(
        split,
        len(examples),
        dropped_prompts,
        truncated_prompts,
        dropped_responses,
        truncated_responses,
        Percentiles.of([len(ids) for ids in prompts]),
        Percentiles.of([len(ids) + 1 for ids in responses]),
        limits,
    )
    if not kept:
        raise DataError(
            f"the length limits leave no row: {report.describe()}; raise data.max_prompt_tokens or "
            "data.max_response_tokens, or set data.long_prompts=truncate data.long_responses=truncate"
        )
    return kept, report


def token_lengths(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, template: PromptTemplate
) -> tuple[list[int], list[int]]:
    """Tokens of every prompt and of every response before any cut, special ones included."""
    prompts = _prompt_ids(tokenizer, template, ["".join(template.around(example)) for example in examples])
    responses = _ids(tokenizer, [example.response for example in examples], special=False)
    return [len(ids) for ids in prompts], [len(ids) + 1 for ids in responses]


def collate(examples: Sequence[TokenisedExample], pad_id: int) -> Rollout:
    """Examples -> an off-policy Rollout with one response each (C = 1).

    Padded at the end, to the longest prompt and the longest response of the batch. Masks come from the
    lengths, so `pad_id` may equal EOS.
    """
    prompt_ids, prompt_mask = _padded([example.prompt_ids for example in examples], pad_id)
    response_ids, response_mask = _padded([example.response_ids for example in examples], pad_id)
    return Rollout(
        prompt=PromptBatch(prompt_ids, prompt_mask.long()),
        response_ids=response_ids.unsqueeze(1),
        response_mask=response_mask.unsqueeze(1),
        off_policy=torch.ones(len(examples), 1, dtype=torch.bool),
        samples=_samples(examples, pad_id),
        top_k=_top_k(examples),
    )


def _samples(examples: Sequence[TokenisedExample], pad_id: int) -> Responses | None:
    count = len(examples[0].samples)
    if not count:
        return None
    ids, mask = _padded([row for example in examples for row in example.samples], pad_id)
    return Responses(ids.unflatten(0, (-1, count)), mask.unflatten(0, (-1, count)))


def _top_k(examples: Sequence[TokenisedExample]) -> TeacherTopK | None:
    known = [example.top_k for example in examples if example.top_k is not None]
    if not known:
        return None
    actions, log_probs = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*known, strict=True))
    counts = torch.tensor([len(example.response_ids) for example in examples])
    return TeacherTopK(actions.long(), log_probs, counts)


def _padded(rows: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (ids [B, L] long, mask [B, L] bool, True on the rows' own ids)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return ids, mask


def _ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], special: bool = True) -> list[list[int]]:
    # truncation=False: a tokenizer's own limit would cut from the end, through the template. verbose=False:
    # its warning about long sequences says less than LengthReport.
    encoded: Any = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _prompt_ids(
    tokenizer: PreTrainedTokenizerFast, template: PromptTemplate, texts: list[str]
) -> list[list[int]]:
    ids = _ids(tokenizer, texts, special=template.special_tokens != "none")
    # What the tokenizer puts behind a text, not what a template ends with. Asked of a text: where BOS and EOS
    # are one token (OPT's), an empty one tells nothing.
    if template.special_tokens == "no_end" and _ids(tokenizer, ["a"])[0][-1] == tokenizer.eos_token_id:
        ids = [row[:-1] for row in ids]
    return ids


def _shorten(
    example: Example, tokenizer: PreTrainedTokenizerFast, template: PromptTemplate, limit: int
) -> list[int]:
    """Prompt ids, at most `limit`, for the longest beginning of the raw text that fits into the template.

    "Longest" up to a token or two: cutting the text can change how its last word splits, so the cut is
    checked by tokenising again and moved until the prompt fits.
    """
    before, text, after = template.around(example)
    start = len(before)
    whole: Any = tokenizer(
        before + text + after, return_offsets_mapping=True, truncation=False, verbose=False
    )
    # Character positions in `text` where one of its tokens ends; special tokens have the offsets (0, 0).
    ends = [end - start for _, end in whole["offset_mapping"] if start < end <= start + len(text)]
    keep = len(ends)
    length = len(_prompt_ids(tokenizer, template, [before + text + after])[0])
    while True:
        keep -= max(1, length - limit)
        cut = text[: ends[keep - 1]].rstrip() if keep > 0 else ""
        ids = _prompt_ids(tokenizer, template, [before + cut + after])[0]
        length = len(ids)
        if length <= limit:
            break
        if keep <= 0:
            break
    if keep <= 0 and example.context:  # the instruction alone is too long
        bare = replace(example, context="")
        ids = _prompt_ids(tokenizer, template, ["".join(template.around(bare))])[0]
        return ids if len(ids) <= limit else _shorten(bare, tokenizer, template, limit)
    if keep <= 0:
        raise DataError(
            f"prompts may have {limit} tokens and the template alone takes {length} ({example.id}): raise "
            "data.max_prompt_tokens"
        )
    return ids
