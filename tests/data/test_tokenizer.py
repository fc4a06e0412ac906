"""A tokenizer trained on a corpus writes it in few tokens, ends with EOS, and loads without this project."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from amd_lightning.data.tokenizer import BOS, EOS, PAD, UNK, train_tokenizer

TEXTS = [f"summarize: Adam: Shall we meet on day {day}?\nKate: Yes, at noon!" for day in range(100, 500)]
TOKENIZER: Any = train_tokenizer(TEXTS, 300)
CLOSED: Any = train_tokenizer(TEXTS, 500)


@given(st.text())
@example("Größe\r  two  spaces\t😀 \x00 e\u0301 \u00a0")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_pieces(text: str) -> None:
    assume(not any(special in text for special in (PAD, EOS, UNK)))  # these are tokens wherever they stand
    ids = TOKENIZER(text)["input_ids"]
    assert ids.count(1) == 1
    assert ids[-1] == 1
    assert 2 not in ids  # bytes are the letters: nothing is unknown
    decoded = TOKENIZER.decode(ids, skip_special_tokens=True)
    if "\n" not in text:
        assert decoded.removeprefix(" ") == text.removeprefix(" ")
    assert re.sub(r"[ \n]+", " ", decoded).strip() == re.sub(r"[ \n]+", " ", text).strip()


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CLOSED], ids=["pieces", "words"])
def test_a_dialogue_comes_back_line_by_line(tokenizer: Any) -> None:
    ids = tokenizer(TEXTS[7])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == TEXTS[7]


def test_a_closed_corpus_is_written_in_whole_words() -> None:
    assert len(CLOSED) < 500
    words = CLOSED.convert_ids_to_tokens(CLOSED("Kate: Yes")["input_ids"])
    assert words == ["\u0120Kate", ":", "\u0120Yes", EOS]
    assert CLOSED("Elsewhere")["input_ids"] == [2, 1]


def test_a_word_is_the_same_token_wherever_it_stands() -> None:
    for tokenizer in (TOKENIZER, CLOSED):
        kate = tokenizer("Kate", add_special_tokens=False)["input_ids"]
        assert tokenizer("noon\nKate", add_special_tokens=False)["input_ids"][-len(kate) :] == kate
        assert tokenizer("noon Kate", add_special_tokens=False)["input_ids"][-len(kate) :] == kate


def test_special_ids_are_t5s() -> None:
    assert TOKENIZER.convert_tokens_to_ids([PAD, EOS, UNK]) == [0, 1, 2]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (0, 1, 2)


@pytest.mark.parametrize("size", [300, 500], ids=["pieces", "words"])
def test_a_causal_models_prompt_ends_where_the_response_begins(size: int) -> None:
    causal: Any = train_tokenizer(TEXTS, size, causal=True)
    assert causal.convert_tokens_to_ids([PAD, EOS, UNK, BOS]) == [0, 1, 2, 3]
    assert (causal.bos_token_id, causal.eos_token_id) == (3, 1)
    assert causal("noon")["input_ids"] == [*causal("noon", add_special_tokens=False)["input_ids"], 3]
    assert TOKENIZER.bos_token_id is None
    assert BOS not in TOKENIZER.get_vocab()


def test_eos_is_left_out_on_request() -> None:
    assert TOKENIZER("noon", add_special_tokens=False)["input_ids"] == TOKENIZER("noon")["input_ids"][:-1]


def test_the_corpus_takes_fewer_tokens_than_letters() -> None:
    assert len(TOKENIZER(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2


def test_the_vocabulary_is_as_large_as_asked_or_as_the_corpus_gives() -> None:
    assert len(TOKENIZER) == 300
    assert len(train_tokenizer(["a b"], 400)) == 3 + 2


def test_the_order_of_training_is_the_same_every_time() -> None:
    assert train_tokenizer(TEXTS, 300).get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("text", ["Kate: Yes, at noon!", "größer 😀"])
def test_plain_transformers_loads_it(text: str, tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
