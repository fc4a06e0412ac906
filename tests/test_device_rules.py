"""What is refused of devices, vLLM and torch.compile."""

from typing import Any

import pytest

from amd_lightning.config.rules import ignored_options, problems
from tests.test_rules import demo

LLAMA = {"pair__teacher__architecture__family": "llama", "pair__student__architecture__family": "llama"}
VLLM = {**LLAMA, "rollout__backend": "vllm"}


@pytest.mark.parametrize(
    "values, said",
    [
        ({"rollout__backend": "vllm"}, "writes with causal students alone: set pair=llama_demo"),
        ({**VLLM, "pair__student__lora__rank": 4}, "takes no adapters: set pair.student.lora.rank=0"),
        ({**VLLM, "rollout__teacher_share": 0.2}, "draws no tokens with the teacher"),
        ({**VLLM, "trainer__devices": 2}, "runs on one device: set trainer.devices=1"),
        (
            {"trainer__compile": True, "trainer__devices": 2, "trainer__strategy": "sharded"},
            "trainer.compile does not go with trainer.strategy=sharded",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_remedy(values: dict[str, Any], said: str) -> None:
    assert any(said in line for line in problems(demo(**values)))


def test_a_causal_student_may_write_with_vllm_and_layers_be_compiled() -> None:
    assert problems(demo(**VLLM, trainer__compile=True)) == []
    assert problems(demo(**VLLM, rollout__vllm_memory_share=1.5)) != []


@pytest.mark.parametrize(
    "values, key, reason",
    [
        ({}, "rollout.vllm_memory_share", "rollout.backend=hf"),
        ({**VLLM, "objective__beta": 1.0}, "rollout.backend", "never samples"),
    ],
)
def test_what_would_do_nothing_is_said(values: dict[str, Any], key: str, reason: str) -> None:
    assert reason in ignored_options(demo(**values), [key])[key]
    assert key not in ignored_options(demo(**VLLM), [key])
