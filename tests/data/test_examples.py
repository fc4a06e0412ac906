"""Tokenisation within limits: nothing is lost in silence, and templates and special tokens stay whole."""

import dataclasses
import hashlib
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from amd_lightning.data.examples import (
    Example,
    LengthReport,
    Limits,
    Percentiles,
    PromptTemplate,
    Split,
    TokenisedExample,
    TooLong,
    collate,
    digest,
    tokenise,
)
from amd_lightning.errors import DataError, ModelError

WORDS = "ann ben carl meet cake tomorrow yesterday kitchen garden happily noon see you bring the at".split()
CORPUS = [f"summarize: {a}: {b} {c}.\n{c}: {b}!" for a in WORDS for b in WORDS for c in WORDS[:4]]
T5_TEMPLATE = PromptTemplate("summarize: {prompt}")
CAUSAL_TEMPLATE = T5_TEMPLATE._replace(special_tokens="no_end")
BEFORE, AFTER = "### Dialogue:\n", "\n\n### Summary:\n"
HEADED = PromptTemplate(BEFORE + "{prompt}" + AFTER)
PAD, EOS, BOS = 0, 1, 3


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """As T5's: SentencePiece pieces of normalised text, EOS behind every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama's or GPT-2's: byte-level pieces, BOS before every text, no EOS behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", "<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


UNIGRAM, BYTES = unigram_tokenizer(), byte_tokenizer()


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


def limits(
    prompt: int = 100,
    response: int = 100,
    long_prompts: TooLong = "drop",
    long_responses: TooLong = "drop",
) -> Limits:
    return Limits(prompt, response, long_prompts, long_responses)


def example(prompt: str, response: str, name: str = "1") -> Example:
    return Example(name, prompt, response, (response,))


SHORT = example("ann: cake", "see you", "short")
LONG_PROMPT = example("ann: meet ben " * 10, "see you", "long prompt")
LONG_RESPONSE = example("ann: cake", "see you at noon " * 10, "long response")
ALL = (LONG_PROMPT, SHORT, LONG_RESPONSE)


def run(
    examples: Sequence[Example], bounds: Limits, split: Split = "train"
) -> tuple[list[TokenisedExample], LengthReport]:
    return tokenise(examples, UNIGRAM, T5_TEMPLATE, bounds, split)


class TestWholeRows:
    def test_padding_stands_at_the_end(self) -> None:
        (row,), report = run([SHORT], limits())
        assert row.prompt_ids == UNIGRAM("summarize: ann: cake")["input_ids"]
        assert row.prompt_ids[-1] == EOS
        assert row.response_ids == UNIGRAM("see you")["input_ids"]
        assert row.response_ids.count(EOS) == 1
        assert (row.id, row.example) == ("short", SHORT)
        assert report.describe() == ""

    def test_decoder_only(self) -> None:
        (row,), _ = tokenise([SHORT], BYTES, HEADED, limits(), "train")
        text = decode(BYTES, row.prompt_ids)
        assert text == "<s>### Dialogue:\nann: cake\n\n### Summary:\n"
        assert decode(BYTES, row.response_ids) == "see you</s>", "no BOS inside, EOS at the end"

    def test_a_causal_prompt_does_not_end_with_the_tokenizers_eos(self) -> None:
        ids = UNIGRAM("summarize: ann: cake")["input_ids"]
        (row,), report = tokenise([SHORT], UNIGRAM, CAUSAL_TEMPLATE, limits(len(ids) - 1), "train")
        assert row.prompt_ids == ids[:-1]
        assert row.response_ids == UNIGRAM("see you")["input_ids"]
        assert report.prompt_lengths.longest == len(ids) - 1
        bounds = limits(20, long_prompts="truncate")
        (cut,), _ = tokenise([LONG_PROMPT], UNIGRAM, CAUSAL_TEMPLATE, bounds, "train")
        assert EOS not in cut.prompt_ids
        assert 18 <= len(cut.prompt_ids) <= 20
        (plain,), _ = tokenise([LONG_PROMPT], UNIGRAM, T5_TEMPLATE, bounds, "train")
        assert len(plain.prompt_ids) <= 20

    def test_a_causal_prompt_keeps_what_its_template_ends_with(self) -> None:
        ended = PromptTemplate(HEADED.text.partition("{prompt}")[0] + "{prompt}</s>", special_tokens="no_end")
        for tokenizer in (UNIGRAM, BYTES):
            (row,), _ = tokenise([SHORT], tokenizer, ended, limits(), "train")
            assert row.prompt_ids[-1] == tokenizer.eos_token_id
            assert row.prompt_ids.count(tokenizer.eos_token_id) == 1

    def test_a_prompt_as_long_as_the_limit_is_not_too_long(self) -> None:
        (row,), _ = run([SHORT], limits())
        exact = limits(len(row.prompt_ids), len(row.response_ids))
        assert run([SHORT], exact)[0] == [row]
        with pytest.raises(DataError):
            run([SHORT], exact._replace(prompt_tokens=exact.prompt_tokens - 1))
        with pytest.raises(DataError):
            run([SHORT], exact._replace(response_tokens=exact.response_tokens - 1))

    def test_the_tokenizers_own_limit_cuts_nothing(self) -> None:
        (row,), report = run([LONG_PROMPT], limits(1000))
        assert len(row.prompt_ids) > UNIGRAM.model_max_length
        assert report.prompt_lengths.longest == len(row.prompt_ids)


class TestDropping:
    def test_counts_each_dropped_row_once(self) -> None:
        both = dataclasses.replace(LONG_PROMPT, response=LONG_RESPONSE.response)
        kept, report = run([*ALL, both], limits(20, 20))
        assert [row.id for row in kept] == ["short"]
        assert (report.dropped_prompts, report.dropped_responses) == (2, 1)
        assert (report.truncated_prompts, report.truncated_responses) == (0, 0)
        assert report.rows == 4

    def test_a_row_dropped_for_its_response_does_not_count_as_a_truncated_prompt(self) -> None:
        both = dataclasses.replace(LONG_PROMPT, response=LONG_RESPONSE.response)
        _, report = run([SHORT, both], limits(20, 20, long_prompts="truncate"))
        assert (report.dropped_responses, report.truncated_prompts) == (1, 0)

    def test_valid_keeps_rows_with_a_long_response(self) -> None:
        kept, report = run(ALL, limits(20, 20), "valid")
        assert [row.id for row in kept] == ["short", "long response"]
        assert (report.dropped_prompts, report.truncated_responses) == (1, 1)

    def test_test_keeps_every_row(self) -> None:
        kept, report = run(ALL, limits(20, 20), "test")
        assert [row.id for row in kept] == [row.id for row in ALL]
        assert (report.truncated_prompts, report.truncated_responses) == (1, 1)
        assert (report.dropped_prompts, report.dropped_responses) == (0, 0)

    def test_no_row_left_names_the_remedy(self) -> None:
        with pytest.raises(DataError, match=r"1 prompts over 5 tokens dropped.*data\.long_prompts=truncate"):
            run([LONG_PROMPT], limits(5))

    def test_no_rows_at_all(self) -> None:
        with pytest.raises(DataError, match="valid split has no rows"):
            run([], limits(), "valid")


class TestTruncation:
    def test_a_response_loses_its_end_and_its_eos(self) -> None:
        whole = UNIGRAM(LONG_RESPONSE.response)["input_ids"]
        (row,), report = run([LONG_RESPONSE], limits(response=5, long_responses="truncate"))
        assert row.response_ids == whole[:5]
        assert EOS not in row.response_ids
        assert report.truncated_responses == 1

    def test_a_response_over_by_its_eos_alone(self) -> None:
        bare = UNIGRAM("see you", add_special_tokens=False)["input_ids"]
        (row,), report = run([SHORT], limits(response=len(bare), long_responses="truncate"))
        assert row.response_ids == bare
        assert report.truncated_responses == 1

    def test_the_heading_behind_the_dialogue_stays(self) -> None:
        bounds = limits(40, long_prompts="truncate")
        (row,), report = tokenise([LONG_PROMPT], BYTES, HEADED, bounds, "train")
        text = decode(BYTES, row.prompt_ids)
        assert text.startswith("<s>### Dialogue:\nann: meet ben")
        assert text.endswith("\n\n### Summary:\n")
        assert report.truncated_prompts == 1

    def test_uses_the_room_there_is(self) -> None:
        for bound in range(31, 50):
            bounds = limits(bound, long_prompts="truncate")
            (row,), _ = tokenise([LONG_PROMPT], BYTES, HEADED, bounds, "train")
            assert bound - 2 <= len(row.prompt_ids) <= bound

    @pytest.mark.parametrize("tokenizer", [UNIGRAM, BYTES], ids=["unigram", "bytes"])
    @settings(max_examples=60, deadline=None)
    @given(
        text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
        bound=st.integers(1, 60),
    )
    def test_never_exceeds_the_limit_and_keeps_both_ends(
        self, tokenizer: PreTrainedTokenizerFast, text: str, bound: int
    ) -> None:
        row = example(text, "see you")
        bounds = limits(bound, long_prompts="truncate")
        room = len(tokenizer(BEFORE + AFTER)["input_ids"])
        try:
            (cut,), report = tokenise([row], tokenizer, HEADED, bounds, "test")
        except DataError:
            refused = True
        else:
            refused = False
        if refused:
            # Only where next to nothing of the text fits: one character may take several tokens.
            assert bound <= room + 6
            return
        assert len(cut.prompt_ids) <= bound
        decoded = decode(tokenizer, cut.prompt_ids)
        ends = decode(tokenizer, tokenizer(BEFORE + AFTER)["input_ids"])
        if tokenizer is BYTES:
            assert decoded.startswith("<s>" + BEFORE)
            assert decoded.endswith(AFTER)
            middle = decoded[len("<s>" + BEFORE) : -len(AFTER)]
            assert text.startswith(middle)
            assert (middle != text) == bool(report.truncated_prompts)
        else:
            assert cut.prompt_ids[-1] == EOS
            assert decoded[-10:] == ends[-10:]

    @pytest.mark.parametrize("bound", [1, 5])
    def test_a_template_without_room_is_refused(self, bound: int) -> None:
        with pytest.raises(DataError, match=r"raise data\.max_prompt_tokens"):
            tokenise([LONG_PROMPT], BYTES, HEADED, limits(bound, long_prompts="truncate"), "train")

    def test_a_template_that_leaves_no_token_is_refused(self) -> None:
        room = len(BYTES(BEFORE + AFTER)["input_ids"])
        with pytest.raises(DataError, match=r"alone takes 28 .*data\.max_prompt_tokens"):
            tokenise([LONG_PROMPT], BYTES, HEADED, limits(room, long_prompts="truncate"), "train")


class TestReport:
    def test_one_line_with_every_count(self) -> None:
        bounds = limits(20, 20, "truncate", "truncate")
        line = run(ALL, bounds)[1].describe()
        assert line.startswith("train: of 3 rows, 1 prompts over 20 tokens truncated, 1 responses over 20")
        assert "dropped" not in line
        assert "\n" not in line

    def test_lengths_are_those_before_the_cut(self) -> None:
        report = run(ALL, limits(20, 20, "truncate", "truncate"))[1]
        lengths = sorted(len(UNIGRAM("summarize: " + row.prompt)["input_ids"]) for row in ALL)
        assert report.prompt_lengths == Percentiles(lengths[1], lengths[2], lengths[2], lengths[2])
        assert report.response_lengths.longest == len(UNIGRAM(LONG_RESPONSE.response)["input_ids"])

    def test_percentiles_are_nearest_ranks(self) -> None:
        assert Percentiles.of(range(1, 201)) == Percentiles(100, 180, 198, 200)
        assert Percentiles.of([7]) == Percentiles(7, 7, 7, 7)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=BYTES.backend_tokenizer)
    with pytest.raises(ModelError, match="end-of-sequence"):
        tokenise([SHORT], tokenizer, HEADED, limits(), "train")


class TestCollate:
    ROWS = (
        TokenisedExample("a", [5, 6, EOS], [7, EOS], SHORT),
        TokenisedExample("b", [5, EOS], [7, 8, 9], SHORT),
    )

    def test_padding_stands_at_the_end(self) -> None:
        batch = collate(self.ROWS, pad_id=PAD)
        assert batch.prompt.input_ids.tolist() == [[5, 6, EOS], [5, EOS, PAD]]
        assert batch.prompt.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
        assert batch.prompt.attention_mask.dtype == torch.long
        assert batch.response_ids.tolist() == [[[7, EOS, PAD]], [[7, 8, 9]]]
        assert batch.response_mask.tolist() == [[[True, True, False]], [[True, True, True]]]
        assert batch.off_policy.tolist() == [[True], [True]]

    def test_samples_stand_beside_the_prompt_that_they_answer(self) -> None:
        assert collate(self.ROWS, pad_id=PAD).samples is None
        samples = (([7, EOS], [8, 9, 4, EOS]), ([4], [5, EOS]))
        rows = [row._replace(samples=its) for row, its in zip(self.ROWS, samples, strict=True)]
        batch = collate(rows, pad_id=PAD)
        assert batch.samples is not None
        expected = [[[7, EOS, PAD, PAD], [8, 9, 4, EOS]], [[4, PAD, PAD, PAD], [5, EOS, PAD, PAD]]]
        assert batch.samples.ids.tolist() == expected
        assert batch.samples.mask.sum(-1).tolist() == [[2, 4], [1, 2]]
        padded_with_eos = collate(rows, pad_id=EOS).samples
        assert padded_with_eos is not None
        assert torch.equal(padded_with_eos.mask, batch.samples.mask)
        without = batch._replace(samples=None)
        assert all(map(torch.equal, without[1:4], collate(self.ROWS, pad_id=PAD)[1:4]))

    def test_padding_with_eos_does_not_lengthen_a_response(self) -> None:
        batch = collate(self.ROWS, pad_id=EOS)
        assert batch.response_mask.sum(-1).tolist() == [[2], [3]]
        assert batch.prompt.attention_mask.sum(-1).tolist() == [3, 2]


class TestDigest:
    ROWS = (SHORT, LONG_PROMPT)

    def test_is_a_function_of_the_contents(self) -> None:
        assert digest(self.ROWS) == digest([dataclasses.replace(row) for row in self.ROWS])
        assert len(digest([])) == 64

    @pytest.mark.parametrize(
        "other",
        [
            (LONG_PROMPT, SHORT),
            (SHORT,),
            (dataclasses.replace(SHORT, id="other"), LONG_PROMPT),
            (dataclasses.replace(SHORT, prompt="other"), LONG_PROMPT),
            (dataclasses.replace(SHORT, response="other"), LONG_PROMPT),
            (dataclasses.replace(SHORT, references=("see", "you")), LONG_PROMPT),
        ],
        ids=["order", "fewer", "id", "prompt", "response", "references"],
    )
    def test_changes_with_every_part(self, other: tuple[Example, ...]) -> None:
        assert digest(other) != digest(self.ROWS)

    def test_keeps_the_fields_apart(self) -> None:
        assert digest([Example("a", "b", "c", ())]) != digest([Example("a", "bc", "", ())])
        assert digest([Example("a", "b", "c", ("d", "e"))]) != digest([Example("a", "b", "c", ("de",))])

    def test_takes_any_text(self) -> None:
        assert digest([example("\ud800", "\n")]) != digest([example("\ud801", "\n")])

    def test_is_stable_across_versions(self) -> None:
        # Cached artifacts of older runs are found by it.
        line = b'["1", "caf\\u00e9", "b", ["b", "c"]]\n'
        assert digest([Example("1", "café", "b", ("b", "c"))]) == hashlib.sha256(line).hexdigest()
