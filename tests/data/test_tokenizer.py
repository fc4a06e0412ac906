"""A tokenizer trained on a corpus writes any text, ends it with EOS, and loads without this project."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from amd_lightning.data.tokenizer import EOS, PAD, UNK, train_tokenizer

TEXTS = [f"summarize: Adam: Shall we meet on day {day}?\nKate: Yes, at noon!" for day in range(50)]
TOKENIZER: Any = train_tokenizer(TEXTS, 300)


@given(st.text())
@example("Größe\r\n  two  spaces\t😀 \x00 e\u0301 \u00a0")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    """Up to one space in front: a word is the same token at the start of a text and inside of it."""
    ids = TOKENIZER(text)["input_ids"]
    assert ids.count(1) == 1
    assert ids[-1] == 1
    assert 2 not in ids  # bytes are the letters: nothing is unknown
    assert TOKENIZER.decode(ids, skip_special_tokens=True).removeprefix(" ") == text.removeprefix(" ")


def test_special_ids_are_t5s() -> None:
    assert TOKENIZER.convert_tokens_to_ids([PAD, EOS, UNK]) == [0, 1, 2]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (0, 1, 2)


def test_eos_is_left_out_on_request() -> None:
    assert TOKENIZER("noon", add_special_tokens=False)["input_ids"] == TOKENIZER("noon")["input_ids"][:-1]


def test_the_corpus_takes_fewer_tokens_than_letters() -> None:
    assert len(TOKENIZER(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2


def test_the_vocabulary_is_as_large_as_asked_or_as_the_corpus_gives() -> None:
    assert len(TOKENIZER) == 300
    assert 259 <= len(train_tokenizer(["a b"], 400)) < 300


def test_the_order_of_training_is_the_same_every_time() -> None:
    assert train_tokenizer(TEXTS, 300).get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("text", ["Kate: Yes, at noon!", "größer 😀"])
def test_plain_transformers_loads_it(text: str, tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True).strip() == text
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
