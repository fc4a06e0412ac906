"""The vocabulary that teacher and student share: white-box distillation compares them token by token.

Within a family the tokenizer is one and the heads may differ: they are padded to different multiples
(Qwen2.5 has 151,936 logits up to 3B and 152,064 above, for 151,665 tokens). What both have is compared.
"""

import json
import logging
from typing import Any

from transformers import PreTrainedTokenizerFast

from amd_lightning.errors import ModelError
from amd_lightning.policies import Policy

log = logging.getLogger(__name__)

PARTS = ("normalizer", "pre_tokenizer", "model")
"""What a tokenizer.json makes ids of text with; the model part has merges and scores."""
PROBE = (
    "The quick brown fox jumps over the lazy dog; it's 1,234.56 m away, isn't it?\n\n\tTab\r\n  two  spaces ",
    "Füße, naïve, ŁÓDŹ, İstanbul, ﬁne ½ ²; «цитата» — Ελληνικά; 日本語の文章。 한국어 العربية हिन्दी 🙂",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2, 3]}  # <comment> & https://example.org/?q=1#top\n",
    " leading space, UPPER lower MiXeD, 000123, 3.14e-10, $5, 50%, a_b-c, ...!!! <s> </s> <unk> [INST]",
)
"""Text that two tokenizers which differ anywhere hardly encode alike."""


def require_same_tokenizer(teacher: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> None:
    """Refuse a pair of different tokenizers.

    Raises:
        ModelError: other entries, or the same entries and other ids for the same text.
    """
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine != theirs:
        differing = len(mine.items() ^ theirs.items())
        raise ModelError(
            f"teacher and student have different vocabularies ({len(theirs):,} and {len(mine):,} tokens, "
            f"{differing:,} entries differ): white-box distillation compares their distributions token by "
            "token; choose a student of the teacher's family"
        )
    parts = [part for part in PARTS if _part(teacher, part) != _part(student, part)]
    if not parts:
        return
    if any(
        teacher.encode(text, add_special_tokens=False) != student.encode(text, add_special_tokens=False)
        for text in PROBE
    ):
        raise ModelError(
            f"the tokenizers of teacher and student have the same {len(theirs):,} tokens and cut text "
            f"differently (tokenizer.json differs in {', '.join(parts)}); choose a student of the teacher's "
            "family"
        )
    log.warning("the tokenizers differ in %s, and encode all probes alike", ", ".join(parts))


def shared_vocabulary(teacher: Policy, student: Policy, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many ids are compared: the logits that both models have, at least one for every token.

    Raises:
        ModelError: a model has fewer logits than the tokenizer has tokens.
    """
    tokens = max(tokenizer.get_vocab().values()) + 1
    for who, policy in (("teacher", teacher), ("student", student)):
        if policy.head_size < tokens:
            raise ModelError(
                f"the {who} has {policy.head_size:,} logits and the tokenizer {tokens:,} tokens; resize its "
                "embeddings, or give the tokenizer that it was trained with"
            )
    return min(teacher.head_size, student.head_size)


def align(teacher: Policy, student: Policy, tokenizer: PreTrainedTokenizerFast) -> int:
    """Leave out of the larger head what the other one lacks, say so, and return V."""
    shared = shared_vocabulary(teacher, student, tokenizer)
    for who, policy in (("teacher", teacher), ("student", student)):
        if policy.vocabulary_size != shared:
            log.warning(
                "the %s's logits from %s on are left out (%s of %s): they belong to no token of the pair's",
                who,
                f"{shared:,}",
                f"{policy.head_size - shared:,}",
                f"{policy.head_size:,}",
            )
        policy.limit_vocabulary(shared)
    return shared


def _part(tokenizer: PreTrainedTokenizerFast, part: str) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str())[part]
