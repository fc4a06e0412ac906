"""Heads of one family that differ in size: what is left out has no probability and is never written."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import ModelError
from amd_lightning.models.alignment import align, require_same_tokenizer
from amd_lightning.policies import Policy
from tests.helpers import VOCABULARY, bart, prompts, rollout, t5
from tests.test_adapters import llama

TEXT = ["Shall we meet at noon? Yes!"]
TOKENIZER = train_tokenizer(TEXT, 262)
CUT = 20
ROLLOUT = rollout([3, 4], [[3], [4]], [[True], [True]])


def changed(part: str, value: object) -> PreTrainedTokenizerFast:
    """The tokenizer with another part in its tokenizer.json."""
    content = json.loads(TOKENIZER.backend_tokenizer.to_str())
    content[part] = value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="</s>")


# -- tokenizers --------------------------------------------------------------------------------------


def test_one_tokenizer_is_accepted() -> None:
    require_same_tokenizer(TOKENIZER, train_tokenizer(TEXT, 262))


def test_different_entries_are_refused() -> None:
    other = train_tokenizer(["Something else entirely, somewhere else."], 264)
    said = rf"different vocabularies \({len(TOKENIZER)} and {len(other)} tokens, \d+ entries differ\)"
    with pytest.raises(ModelError, match=said):
        require_same_tokenizer(TOKENIZER, other)


def test_the_same_entries_that_cut_text_differently_are_refused() -> None:
    other = changed("normalizer", {"type": "Lowercase"})
    assert other.get_vocab() == TOKENIZER.get_vocab()
    with pytest.raises(ModelError, match=r"cut text differently \(tokenizer.json differs in normalizer\)"):
        require_same_tokenizer(TOKENIZER, other)


def test_a_part_that_is_written_differently_and_does_the_same_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = changed("normalizer", {"type": "Sequence", "normalizers": []})
    with caplog.at_level(logging.WARNING):
        require_same_tokenizer(TOKENIZER, other)
    assert "the tokenizers differ in normalizer, and encode all probes alike" in caplog.text


# -- heads -------------------------------------------------------------------------------------------


def test_the_larger_head_is_cut_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tokens = len(TOKENIZER)
    teacher, student = t5(vocab_size=tokens + 10), t5(1, vocab_size=tokens + 2)
    with caplog.at_level(logging.WARNING):
        assert align(teacher, student, TOKENIZER) == tokens + 2
    assert (teacher.vocabulary_size, student.vocabulary_size) == (tokens + 2, tokens + 2)
    assert (teacher.head_size, student.head_size) == (tokens + 10, tokens + 2)
    assert f"the teacher's logits from {tokens + 2} on are left out (8 of {tokens + 10})" in caplog.text
    assert "student" not in caplog.text
    caplog.clear()
    align(teacher, student, TOKENIZER)
    assert caplog.text == ""  # it was said


def test_a_larger_student_is_cut_too_and_equal_heads_are_not() -> None:
    tokens = len(TOKENIZER)
    teacher, student = t5(vocab_size=tokens), t5(1, vocab_size=tokens + 7)
    align(teacher, student, TOKENIZER)
    assert student.vocabulary_size == tokens
    align(student, t5(1, vocab_size=tokens + 7), TOKENIZER)
    assert student.vocabulary_size == tokens + 7


def test_fewer_logits_than_tokens_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the student has \d+ logits and the tokenizer \d+ tokens; res"):
        align(t5(vocab_size=300), t5(1, vocab_size=len(TOKENIZER) - 1), TOKENIZER)


@pytest.mark.parametrize(
    "make", [t5, lambda: t5(tied=True), bart, llama], ids=["t5", "tied", "bart", "llama"]
)
def test_a_cut_distribution_is_the_softmax_over_what_is_left(make: type[Policy]) -> None:
    policy = make()  # type: ignore[call-arg]
    with torch.no_grad():
        hidden = policy.hidden(ROLLOUT)
        whole = policy.logits(hidden)
        policy.limit_vocabulary(CUT)
        assert policy.log_probs(hidden).shape[-1] == CUT
        torch.testing.assert_close(policy.log_probs(hidden), whole[:, :CUT].log_softmax(-1), rtol=0, atol=0)
    torch.testing.assert_close(policy.token_embeddings, policy.model.get_output_embeddings().weight[:CUT])
    policy.limit_vocabulary(VOCABULARY)
    assert policy.vocabulary_size == VOCABULARY


@pytest.mark.parametrize("make", [t5, bart, llama], ids=["t5", "bart", "llama"])
@pytest.mark.parametrize("choice", [{}, {"sample": False}, {"sample": False, "num_beams": 3}], ids=str)
def test_cut_ids_are_never_written(make: type[Policy], choice: dict[str, int]) -> None:
    policy = make()  # type: ignore[call-arg]
    head = policy.model.get_output_embeddings()
    head.weight.data[CUT:] *= 5.0  # what is cut would be written most of the time
    if (bias := getattr(policy.model, "final_logits_bias", None)) is not None:
        bias[:, CUT:] += 2.0
    batch = prompts([4] * 40)
    torch.manual_seed(0)
    assert (policy.respond(batch, 6, **choice)[0] >= CUT).any()  # type: ignore[arg-type]
    policy.limit_vocabulary(CUT)
    assert (policy.respond(batch, 6, **choice)[0] < CUT).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_mixed_sampling_leaves_out_what_one_of_them_lacks(larger: str) -> None:
    student, teacher = t5(), t5(1)
    wide = t5(2, vocab_size=VOCABULARY + 8)
    wide.model.get_output_embeddings().weight.data[VOCABULARY:] *= 5.0
    wide.limit_vocabulary(VOCABULARY)
    pair = (wide, teacher) if larger == "student" else (student, wide)
    ids, _ = pair[0].respond(prompts([4] * 40), 6, mixed_with=pair[1], mixed_share=0.5)
    assert (ids < VOCABULARY).all()


def test_an_aligned_pair_distils_with_the_gradient_of_the_prefix(tmp_path: Path) -> None:
    student, reference = t5(), t5()
    student.limit_vocabulary(CUT)
    student.log_probs(student.hidden(ROLLOUT)).square().mean().backward()
    reference.logits(reference.hidden(ROLLOUT))[:, :CUT].log_softmax(-1).square().mean().backward()
    for mine, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)
    head = student.model.get_output_embeddings().weight
    assert head.grad is not None
    assert head.grad[CUT:].abs().sum() == 0
