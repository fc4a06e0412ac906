"""The rows and their lengths."""

from dataclasses import dataclass

from omegaconf import MISSING

from amd_lightning.config.choices import Overlong, Source
from amd_lightning.config.knobs import knob


@dataclass
class DataConfig:
    """Where rows come from and how long they may be."""

    task: str = knob("samsum", "the data set", choices=("samsum", "dolly", "iwslt", "strategyqa"))
    source: Source = knob(Source.embedded, "embedded (generated, offline), files (data.path) or hub")
    path: str | None = knob(
        None, "with source=files: a directory with train, valid and test as JSONL, CSV or parquet"
    )
    revision: str | None = knob(
        None, "with source=hub: the data set's revision; null takes the one pinned in the code"
    )
    template: str = knob(
        "auto",
        "the text around a prompt (amd_lightning/data/templates); auto: T5's prefix for encoder-decoder "
        "models; for causal ones the tokenizer's chat template, else Alpaca's wording for Dolly and a plain "
        "ending",
        choices=("auto", "t5", "alpaca", "plain", "chat"),
    )
    evaluation_sets: list[str] = knob(
        [],
        "with task=dolly: further test sets, from evaluation_path; un_ni without the rows that have a "
        "reference of under 11 words",
        choices=("self_inst", "vicuna", "s_ni", "un_ni"),
    )
    evaluation_path: str | None = knob(
        None, "with evaluation_sets: the directory of their JSONL files, named as MiniLLM's"
    )
    seed: int = knob(0, "with source=embedded: seed of the generated corpus", low=0)
    train_rows: int | None = knob(MISSING, "first n rows of the training split; null for all", low=1)
    valid_rows: int | None = knob(MISSING, "first n rows of the validation split; null for all", low=1)
    test_rows: int | None = knob(
        MISSING, "first n rows of the test split and of each evaluation set; null for all", low=1
    )
    max_prompt_tokens: int = knob(MISSING, "longest prompt, template included", low=8)
    max_response_tokens: int = knob(
        MISSING, "longest response, EOS included; also the longest that is generated", low=1
    )
    long_prompts: Overlong = knob(
        Overlong.truncate,
        "a longer training or validation prompt: drop the row, or truncate its text (test: always truncated)",
    )
    long_responses: Overlong = knob(Overlong.drop, "a longer training response: drop the row, or truncate it")
