"""Prompt templates: which text stands around a task's raw input, by task and family of models.

One small file each, `templates/TASK/NAME.toml`: `text` has {prompt} where the raw input goes; a task whose
rows may have a context has `with_context` too, with {prompt} and {context}.
"""

import tomllib
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from amd_lightning.data.examples import PromptTemplate
from amd_lightning.errors import DataError

FOLDER = Path(__file__).resolve().parent / "templates"

CONTENT = "\x02content\x03"
"""Stands for the user's message while the tokenizer writes the chat around it."""


def read_template(task: str, name: str) -> PromptTemplate:
    """The template as its file has it, for an encoder-decoder model.

    Raises DataError where the task has none of this name.
    """
    path = FOLDER / task / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise DataError(f"{task} has no prompt template {name}: choose data.template={known} or auto")
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    return PromptTemplate(**content)


def choose_name(task: str, name: str, tokenizer: PreTrainedTokenizerFast | None, causal: bool) -> str:
    """The template's name; "auto" takes the prefix of T5 for an encoder-decoder model, and for a causal one
    the tokenizer's chat template where there is one, else Alpaca's wording for Dolly, a plain ending for the
    others.
    """
    if name != "auto":
        return name
    if not causal:
        return "t5"
    if tokenizer is not None and tokenizer.chat_template:
        return "chat"
    return "alpaca" if task == "dolly" else "plain"


def choose_template(
    task: str, name: str, tokenizer: PreTrainedTokenizerFast | None, causal: bool
) -> PromptTemplate:
    """The template of a run, special tokens decided: a causal prompt is not followed by EOS.

    Args:
        task: a folder of `templates/`.
        name: a file there, or "auto".
        tokenizer: of the pair; None where it is trained on prompts that are in the template already.
        causal: whether the response continues the prompt, in place of being decoded beside it.

    Raises:
        DataError: no such template, or "chat" with a tokenizer that has no chat template.
    """
    chosen = choose_name(task, name, tokenizer, causal)
    template = read_template(task, chosen)
    if chosen == "chat":
        return _in_chat(template, tokenizer)
    return template._replace(special_tokens="no_end" if causal else "all")


def _in_chat(template: PromptTemplate, tokenizer: PreTrainedTokenizerFast | None) -> PromptTemplate:
    """The template as the user's message of a chat, up to where the assistant begins to write."""
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            "data.template=chat needs a tokenizer with a chat template: choose data.template=auto, or an "
            "instruction-tuned pair"
        )
    message = [{"role": "user", "content": CONTENT}]
    chat: Any = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, found, after = chat.partition(CONTENT)
    if not found:
        raise DataError("the tokenizer's chat template changes the message: choose data.template=plain")
    around = {
        field: before + text + after
        for field, text in (("text", template.text), ("with_context", template.with_context))
        if text
    }
    return PromptTemplate(**around, special_tokens="none")
