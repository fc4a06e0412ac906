"""Prompt templates: every task has each of them, and special tokens are where the family wants them."""

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from amd_lightning.data.embedded import samsum_rows
from amd_lightning.data.examples import Example, Limits, PromptTemplate, tokenise
from amd_lightning.data.prompts import FOLDER, choose_name, choose_template, read_template
from amd_lightning.data.samsum import to_example
from amd_lightning.data.tokenizer import train_tokenizer
from amd_lightning.errors import DataError

FILES = sorted(FOLDER.rglob("*.toml"))
NAMES = ("alpaca", "chat", "plain", "t5")
TASKS = ("dolly", "iwslt", "samsum", "strategyqa")
ROW = Example("1", "Sum up {context}.", "A cat.", ("A cat.",), context="A cat sat {prompt} on a mat.")
BARE = Example("2", "Say hi.", "Hi.", ("Hi.",))
CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}<|assistant|>"
LIMITS = Limits(400, 40, "truncate", "truncate")


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    texts = ["".join(read_template("dolly", "alpaca").around(row)) for row in (ROW, BARE)]
    made = train_tokenizer([*texts, "A cat sat on a mat."], 500)
    made.chat_template = CHAT if chat else None
    return made


def test_every_task_has_every_template_and_each_says_what_it_is() -> None:
    found = [(file.parent.name, file.stem) for file in FILES]
    assert found == [(task, name) for task in TASKS for name in NAMES]
    for file in FILES:
        assert file.read_text(encoding="utf-8").startswith("# ")
        template = read_template(file.parent.name, file.stem)
        assert template.around(BARE)[1] == "Say hi."
        assert bool(template.with_context) == (file.parent.name == "dolly")


def test_t5s_prefix_is_its_own() -> None:
    assert "".join(read_template("samsum", "t5").around(BARE)) == "summarize: Say hi."
    assert "".join(read_template("iwslt", "t5").around(BARE)) == "translate English to German: Say hi."


def test_alpacas_wording() -> None:
    with_context = "".join(read_template("dolly", "alpaca").around(ROW))
    assert with_context.endswith(
        "\n\n### Instruction:\nSum up {context}.\n\n### Input:\nA cat sat {prompt} on a mat."
        "\n\n### Response:\n"
    )
    assert "paired with an input" in with_context
    alone = "".join(read_template("dolly", "alpaca").around(BARE))
    assert alone.startswith("Below is an instruction that describes a task. Write a response")
    assert "### Input" not in alone


def test_a_template_needs_its_place_once() -> None:
    with pytest.raises(ValueError, match=r"must have \{prompt\} once"):
        PromptTemplate("nothing").around(BARE)
    with pytest.raises(ValueError, match=r"must have \{context\} once"):
        PromptTemplate("{prompt}").around(ROW)


@pytest.mark.parametrize(
    "task, causal, chat, name",
    [
        ("samsum", False, False, "t5"),
        ("samsum", False, True, "t5"),
        ("samsum", True, True, "chat"),
        ("samsum", True, False, "plain"),
        ("dolly", True, False, "alpaca"),
        ("dolly", False, False, "t5"),
    ],
)
def test_auto_takes_what_suits_the_pair(task: str, causal: bool, chat: bool, name: str) -> None:
    assert choose_name(task, "auto", tokenizer(chat), causal) == name
    assert choose_name(task, "alpaca", tokenizer(chat), causal) == "alpaca"


def test_a_causal_prompt_is_not_followed_by_eos_and_a_response_is() -> None:
    for causal, end in ((True, False), (False, True)):
        words = tokenizer()
        template = choose_template("dolly", "alpaca", words, causal)
        (row,), _ = tokenise([ROW], words, template, LIMITS, "train")
        assert (row.prompt_ids[-1] == words.eos_token_id) is end
        assert words.eos_token_id not in row.prompt_ids[:-1]
        assert row.response_ids[-1] == words.eos_token_id


def test_a_chat_is_written_around_the_message() -> None:
    words = tokenizer(chat=True)
    template = choose_template("dolly", "auto", words, causal=True)
    (row, bare), _ = tokenise([ROW, BARE], words, template, LIMITS, "train")
    assert template.special_tokens == "none"
    before, raw, after = template.around(BARE)
    assert (before, raw, after) == ("<|user|>", "Say hi.", "</s><|assistant|>")
    assert row.prompt_ids.count(words.eos_token_id) == 1
    assert bare.prompt_ids[-1] != words.eos_token_id


def test_a_limit_cuts_the_context_and_nothing_else() -> None:
    words = tokenizer()
    template = choose_template("dolly", "alpaca", words, causal=True)
    (whole,), _ = tokenise([ROW], words, template, LIMITS, "train")
    limits = LIMITS._replace(prompt_tokens=len(whole.prompt_ids) - 4)
    (cut,), report = tokenise([ROW], words, template, limits, "train")
    assert report.truncated_prompts == 1
    seen = str(words.decode(cut.prompt_ids))
    assert seen.rstrip().endswith("### Response:")
    assert "Sum up {context}." in seen
    assert "A cat" in seen
    assert "mat" not in seen
    assert cut.response_ids == whole.response_ids


def test_an_instruction_is_cut_once_no_context_is_left() -> None:
    """Evaluation sets have instructions longer than a small scale's limit."""
    words = tokenizer()
    template = choose_template("dolly", "alpaca", words, causal=True)
    (bare,), _ = tokenise([BARE], words, template, LIMITS, "test")
    asked = replace(BARE, context="A cat sat on the mat. " * 9)
    limits = LIMITS._replace(prompt_tokens=len(bare.prompt_ids))
    (cut,), report = tokenise([asked], words, template, limits, "test")
    assert (cut.prompt_ids, report.truncated_prompts) == (bare.prompt_ids, 1)
    long = replace(asked, prompt="Say hi. " * 30)
    (cut,), _ = tokenise([long], words, template, limits, "test")
    seen = str(words.decode(cut.prompt_ids))
    assert len(cut.prompt_ids) <= limits.prompt_tokens
    assert "Say hi." in seen
    assert "cat" not in seen
    assert seen.rstrip().endswith("### Response:")
    with pytest.raises(DataError, match=rf"template alone takes \d+ \({BARE.id}\): raise data.max"):
        tokenise([long], words, template, LIMITS._replace(prompt_tokens=4), "test")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match=r"samsum has no prompt template haiku: choose data\.template=alpaca"):
        choose_template("samsum", "haiku", tokenizer(), causal=False)
    with pytest.raises(DataError, match="needs a tokenizer with a chat template"):
        choose_template("samsum", "chat", tokenizer(), causal=True)
    silent = tokenizer()
    silent.chat_template = "hello"
    with pytest.raises(DataError, match="chat template changes the message"):
        choose_template("samsum", "chat", silent, causal=True)


def test_samsums_ids_for_t5_are_those_of_its_prefix_alone() -> None:
    rows = [to_example(row) for row in samsum_rows("train", 20, 0)]
    words = train_tokenizer([f"summarize: {row.prompt}" for row in rows], 400)
    found, _ = tokenise(rows, words, choose_template("samsum", "auto", words, False), LIMITS, "train")
    assert [row.prompt_ids for row in found] == [
        words(f"summarize: {row.prompt}")["input_ids"] for row in rows
    ]
