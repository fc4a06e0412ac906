"""What is wrong with a run: every range, every rule between knobs."""

from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from amd_lightning.config.rules import LEARNING, RIDGED, problems
from amd_lightning.config.schema import RunConfig
from tests.test_config import composed


@cache
def defaults() -> DictConfig:
    return composed()


def demo(**values: Any) -> RunConfig:
    """The default run with some knobs set, `objective__beta=2.0`, without the checks."""
    changed = defaults().copy()
    for name, value in values.items():
        OmegaConf.update(changed, name.replace("__", "."), value)
    config = OmegaConf.to_object(changed)
    assert isinstance(config, RunConfig)
    return config


# -- ranges and rules ------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("objective__beta", -0.1, "objective.beta=-0.1 must be at least 0.0"),
    ("objective__beta", 1.1, "objective.beta=1.1 must be at most 1.0"),
    ("objective__beta", NAN, "objective.beta=nan is not a finite number"),
    ("critic__steps", 0, "critic.steps=0 must be at least 1"),
    ("critic__alpha", 0.0, "critic.alpha=0.0 must be greater than 0.0"),
    ("critic__alpha", 1.0, "critic.alpha=1.0 must be less than 1.0"),
    ("critic__alpha_start", 0.0, "critic.alpha_start=0.0 must be greater than 0.0"),
    ("critic__ridge", -0.1, "critic.ridge=-0.1 must be at least 0.0"),
    ("critic__top_k", 0, "critic.top_k=0 must be at least 1"),
    ("critic__samples", 0, "critic.samples=0 must be at least 1"),
    ("objective__js_mixture", -0.1, "objective.js_mixture=-0.1 must be at least 0.0"),
    ("objective__js_mixture", 1.1, "objective.js_mixture=1.1 must be at most 1.0"),
    ("objective__skew", -0.1, "objective.skew=-0.1 must be at least 0.0"),
    ("objective__skew", 1.0, "objective.skew=1.0 must be less than 1.0"),
    ("objective__akl_head", 0.0, "objective.akl_head=0.0 must be greater than 0.0"),
    ("objective__ab_alpha", -0.1, "objective.ab_alpha=-0.1 must be at least 0.0"),
    ("objective__ab_beta", -0.1, "objective.ab_beta=-0.1 must be at least 0.0"),
    ("objective__teacher_temperature", 0.0, "objective.teacher_temperature=0.0 must be greater than 0.0"),
    ("objective__student_temperature", 0.0, "objective.student_temperature=0.0 must be greater than 0.0"),
    ("objective__horizon__gamma", -0.1, "objective.horizon.gamma=-0.1 must be at least 0.0"),
    ("objective__horizon__gamma", 1.1, "objective.horizon.gamma=1.1 must be at most 1.0"),
    ("objective__kernel__weight", -0.1, "objective.kernel.weight=-0.1 must be at least 0.0"),
    ("objective__kernel__teacher_samples", 0, "objective.kernel.teacher_samples=0 must be at least 1"),
    ("objective__kernel__ngram", 0, "objective.kernel.ngram=0 must be at least 1"),
    ("objective__sft_weight", -0.1, "objective.sft_weight=-0.1 must be at least 0.0"),
    ("objective__sft_weight", 1.0, "objective.sft_weight=1.0 must be less than 1.0"),
    ("objective__adaptive_beta__step", -0.1, "objective.adaptive_beta.step=-0.1 must be at least 0.0"),
    (
        "objective__adaptive_beta__tolerance",
        -0.1,
        "objective.adaptive_beta.tolerance=-0.1 must be at least 0.0",
    ),
    ("rollout__replay__capacity", -1, "rollout.replay.capacity=-1 must be at least 0"),
    ("rollout__replay__refresh", 1.1, "rollout.replay.refresh=1.1 must be at most 1.0"),
    ("rollout__reuse", 0, "rollout.reuse=0 must be at least 1"),
    ("rollout__temperature", 0.0, "rollout.temperature=0.0 must be greater than 0.0"),
    ("rollout__responses", 0, "rollout.responses=0 must be at least 1"),
    ("rollout__teacher_share", -0.1, "rollout.teacher_share=-0.1 must be at least 0.0"),
    ("rollout__teacher_share", 1.0, "rollout.teacher_share=1.0 must be less than 1.0"),
    ("pair__student__lora__rank", -1, "pair.student.lora.rank=-1 must be at least 0"),
    ("pair__student__lora__alpha", 0.0, "pair.student.lora.alpha=0.0 must be greater than 0.0"),
    ("pair__student__lora__dropout", 1.0, "pair.student.lora.dropout=1.0 must be less than 1.0"),
    ("pair__student__layers__count", 0, "pair.student.layers.count=0 must be at least 1"),
    ("pair__student__layers__indices", [-1, 2], "pair.student.layers.indices=-1 must be at least 0"),
    ("pair__student__dtype", "float16", "pair.student.dtype=float16 is not one of float32, bfloat16"),
    ("trainer__chunk_tokens", 0, "trainer.chunk_tokens=0 must be at least 1"),
    ("optim__teacher__learning_rate", INF, "optim.teacher.learning_rate=inf is not a finite number"),
    ("optim__critic__betas", [0.5, 1.0], "optim.critic.betas=1.0 must be less than 1.0"),
    ("evaluation__length_penalty", NAN, "evaluation.length_penalty=nan is not a finite number"),
    ("data__task", "news", "data.task=news is not one of samsum, dolly, iwslt, strategyqa"),
    ("data__train_rows", 0, "data.train_rows=0 must be at least 1"),
    ("seed", -1, "seed=-1 must be at least 0"),
]


@pytest.mark.parametrize("name, value, line", OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_one_line(name: str, value: Any, line: str) -> None:
    assert problems(demo(**{name: value})) == [line]


@pytest.mark.parametrize(
    "name, value",
    [
        ("objective__beta", 0.0),
        ("objective__beta", 1.0),
        ("critic__steps", 1),
        ("critic__top_k", 1),
        ("critic__samples", 1),
        ("objective__js_mixture", 0.0),
        ("objective__js_mixture", 1.0),
        ("objective__skew", 0.0),
        ("objective__ab_alpha", 0.0),
        ("objective__ab_beta", 0.0),
        ("objective__horizon__gamma", 0.0),
        ("objective__horizon__gamma", 1.0),
        ("objective__kernel__weight", 0.0),
        ("rollout__responses", 1),
        ("rollout__teacher_share", 0.0),
        ("trainer__chunk_tokens", 1),
        ("trainer__chunk_tokens", None),
        ("data__train_rows", None),
        ("trainer__validate_every", 0),
        ("optim__student__clip_norm", 0.0),
    ],
)
def test_a_bound_itself_is_inside(name: str, value: Any) -> None:
    assert problems(demo(**{name: value})) == []


RULES: list[tuple[dict[str, Any], str]] = [
    (
        {"objective__horizon__gamma": 1.0, "objective__student_temperature": 2.0},
        "objective.horizon.gamma, objective.kernel.weight and rollout.teacher_share need all",
    ),
    (
        {"rollout__teacher_share": 0.2, "rollout__temperature": 0.5},
        "objective.horizon.gamma, objective.kernel.weight and rollout.teacher_share need all",
    ),
    (
        {"evaluation__metric": "mmd_squared", "evaluation__samples": 1},
        "evaluation.metric=mmd_squared needs evaluation.samples of at least 2",
    ),
    (
        {"optim__student__batch_size": 8, "optim__student__micro_batch_size": 5},
        "optim.student.batch_size=8 is not divisible by",
    ),
    (
        {"optim__teacher__batch_size": 8, "optim__teacher__micro_batch_size": 16},
        "optim.teacher.batch_size=8 is not divisible by",
    ),
    ({"data__source": "files"}, "data.source=files needs data.path=DIR"),
    ({"optim__teacher__updates": 0}, "optim.teacher.updates=0 leaves a teacher that is built"),
    ({"optim__student_start__updates": 0}, "optim.student_start.updates=0 leaves a student that is built"),
    ({"optim__student__updates": 0}, "optim.student.updates=0 distils nothing"),
    (
        {"optim__student__updates": 9, "optim__student__warmup_updates": 9},
        "optim.student.warmup_updates=9 leaves nothing of",
    ),
    (
        {"pair__student__architecture__num_decoder_layers": 3},
        "pair.student.architecture.num_decoder_layers=3 must be at most num_layers=2",
    ),
    (
        {"pair__student__architecture__family": "llama"},
        "pair.teacher.architecture.family=t5 and pair.student.architecture.family=llama must be the same",
    ),
    ({"optim__student__betas": [0.9]}, "optim.student.betas=[0.9] must be two numbers"),
    ({"pair__student__path": "DIR"}, "pair.student.path is set but pair.teacher.path is not"),
    (
        {"data__task": "iwslt", "evaluation__metric": "sampled_rouge_l"},
        "evaluation.metric=sampled_rouge_l is not measured for iwslt; use bleu or accuracy",
    ),
    (
        {"data__evaluation_sets": ["vicuna"], "data__evaluation_path": "DIR"},
        "data.evaluation_sets has no meaning for samsum",
    ),
    (
        {"data__task": "dolly", "data__evaluation_sets": ["vicuna"]},
        "data.evaluation_sets needs data.evaluation_path=DIR",
    ),
    (
        {"data__source": "hub", "evaluation__metric": "accuracy"},
        "evaluation.metric=accuracy has no meaning",
    ),
]

LAYERS = {"pair__student__init": "layers"}
FOUR_BITS = {
    "pair__teacher__path": "DIR",
    "pair__teacher__quantization": "4bit",
    "optim__teacher__updates": 0,
    "trainer__accelerator": "gpu",
}
FLASH = {"pair__student__attn_implementation": "flash_attention_2"}
RULES += [
    *(
        ({f"pair__{name}__lora__rank": 8}, f"pair.{name}.lora.rank=8 needs pair.{name}.path")
        for name in ("teacher", "student")
    ),
    (
        {
            "pair__teacher__path": "DIR",
            "pair__student__path": "DIR",
            "pair__student__lora__rank": 8,
            "trainer__precision": "bf16-true",
        },
        "pair.student.lora.rank=8 with trainer.precision=bf16-true would round",
    ),
    (
        {"pair__student__lora__target_modules": []},
        "pair.student.lora.target_modules=[] names no layer",
    ),
    (FLASH, "pair.student.attn_implementation=flash_attention_2 needs pair.student.dtype=bf"),
    (
        {**FLASH, "pair__student__dtype": "bfloat16"},
        "pair.student.attn_implementation=flash_attention_2 needs",
    ),
    ({**FLASH, "trainer__accelerator": "gpu"}, "pair.student.attn_implementation=flash_attention_2 needs"),
    (
        {**FOUR_BITS, "optim__teacher__updates": 500},
        "pair.teacher.quantization=4bit needs optim.teacher.up",
    ),
    ({**FOUR_BITS, "trainer__accelerator": "cpu"}, "pair.teacher.quantization=4bit needs a GPU"),
    ({**FOUR_BITS, **LAYERS, "pair__student__layers__count": 2}, "pair.student.init=layers cannot copy"),
    (LAYERS, "pair.student.init=layers needs either pair.student.layers.count or"),
    (
        {**LAYERS, "pair__student__layers__count": 2, "pair__student__layers__indices": [0, 1]},
        "pair.student.init=layers needs either",
    ),
    (
        {**LAYERS, "pair__student__layers__indices": [1, 0]},
        "pair.student.layers.indices=[1, 0] must ascend, without repetition",
    ),
    (
        {**LAYERS, "pair__student__layers__indices": [0], "pair__student__layers__encoder_indices": [0, 0]},
        "pair.student.layers.encoder_indices=[0, 0] must ascend",
    ),
    ({**LAYERS, "pair__student__layers__indices": []}, "pair.student.layers.indices=[] must ascend"),
]

HORIZON = {"objective__horizon__gamma": 1.0}
RULES += [
    ({"critic__kind": kind, "critic__ridge": 0.0}, f"critic.kind={kind} needs critic.ridge above 0")
    for kind in RIDGED
]
RULES += [
    ({"critic__kind": "linear"}, "critic.kind=linear has no ridge (critic.ridge=2.0)"),
    (
        {"objective__distance": "alpha_beta", "objective__ab_alpha": 0.0, "objective__ab_beta": 0.0},
        "objective.ab_alpha and objective.ab_beta add up to 0",
    ),
    (
        {**HORIZON, "objective__distance": "kl", "objective__horizon__returns": "sampled"},
        "objective.horizon.returns=sampled has no meaning for kl",
    ),
    (
        {**HORIZON, "objective__horizon__baseline": "leave_one_out"},
        "objective.horizon.baseline=leave_one_out needs rollout.responses of at least 2",
    ),
    (
        {**HORIZON, "objective__distance": "nll"},
        "objective.horizon.gamma has no meaning for nll",
    ),
    ({"objective__kernel__weight": 0.1}, "objective.kernel.weight needs rollout.responses of at least 2"),
    (
        {"objective__distance": "nll", "rollout__teacher_share": 0.2},
        "rollout.teacher_share has no meaning for nll",
    ),
]


REPLAY = {"rollout__replay__capacity": 64}
TOP_K = {"rollout__teacher_top_k": 8}
RULES += [
    ({"rollout__replay__capacity": 31}, "rollout.replay.capacity=31 holds no batch"),
    ({**REPLAY, "rollout__reuse": 2}, "rollout.reuse and rollout.replay.capacity both say"),
    *(
        (
            {**replays, "objective__kernel__weight": 0.1, "rollout__responses": 2},
            "objective.kernel.weight compares with samples to the prompts of the batch",
        )
        for replays in (REPLAY, {"rollout__reuse": 2})
    ),
    (
        {"objective__adaptive_beta__step": 0.1, "trainer__validate_every": 0},
        "objective.adaptive_beta.step listens to validations",
    ),
    (
        {"objective__sft_weight": 0.5, "objective__beta": 0.0},
        "objective.sft_weight needs off-policy responses",
    ),
    (
        {"objective__sft_weight": 0.5, "objective__distance": "nll"},
        "objective.sft_weight has no meaning for nll",
    ),
    ({**TOP_K, "objective__distance": "nll"}, "rollout.teacher_top_k has no meaning for nll"),
    *(
        (
            {**TOP_K, "critic__kind": kind, "critic__ridge": 0.0 if kind in ("linear", "tanh") else 2.0},
            "rollout.teacher_top_k needs a critic that sees two distributions",
        )
        for kind in (*LEARNING, "kernel")
    ),
]


@pytest.mark.parametrize("values, start", RULES)
def test_a_broken_rule_is_one_line(values: dict[str, Any], start: str) -> None:
    (line,) = problems(demo(**values))
    assert line.startswith(start)


ALLOWED: list[dict[str, Any]] = [
    {"pair__teacher__path": "DIR", "pair__student__path": "DIR", "pair__student__lora__rank": 8},
    {**FLASH, "pair__student__dtype": "bfloat16", "trainer__accelerator": "gpu"},
    FOUR_BITS,
    {**LAYERS, "pair__student__layers__count": 2},
    {**LAYERS, "pair__student__layers__indices": [0, 1], "pair__student__layers__encoder_indices": [0]},
    {**LAYERS, "pair__student__layers__count": 2, "optim__student_start__updates": 0},
    {"pair__student__layers__indices": [1, 0]},  # init is fresh
    {"critic__kind": "linear", "critic__ridge": 0.0},
    {"critic__kind": "tanh", "critic__ridge": 0.0},
    {"critic__kind": "tanh"},
    {"critic__kind": "sign", "critic__ridge": 0.0},
    {"critic__kind": "kernel", "critic__ridge": 0.0},
    {"objective__distance": "kl", "critic__ridge": 0.0},
    {"objective__distance": "kl", "critic__kind": "linear"},
    {"objective__distance": "kl", "objective__ab_alpha": 0.0, "objective__ab_beta": 0.0},
    {"objective__distance": "alpha_beta", "objective__ab_alpha": 0.0, "objective__ab_beta": 1.0},
    {**HORIZON, "objective__horizon__returns": "sampled"},
    {**HORIZON, "objective__horizon__returns": "sampled", "objective__distance": "rkl"},
    {**HORIZON, "objective__horizon__baseline": "leave_one_out", "rollout__responses": 2},
    {"objective__horizon__returns": "sampled", "objective__distance": "kl"},  # gamma is 0
    {"objective__horizon__baseline": "leave_one_out"},
    {"objective__kernel__weight": 0.1, "rollout__responses": 2},
    {"objective__kernel__weight": 0.1, "objective__beta": 1.0},  # never samples
    {**HORIZON, "objective__distance": "nll", "objective__beta": 1.0},
    {"rollout__teacher_share": 0.2},
    {"rollout__replay__capacity": 32},
    {"rollout__reuse": 2},
    {**REPLAY, "rollout__reuse": 2, "objective__beta": 1.0},
    {**TOP_K, "critic__kind": "closed_form"},
    {**TOP_K, "critic__kind": "sign"},
    {**TOP_K, "objective__distance": "akl"},
    {**TOP_K, "objective__beta": 0.0},
    {"objective__sft_weight": 0.5},
    {"objective__adaptive_beta__step": 0.1, "objective__beta": 0.0},
]


@pytest.mark.parametrize("values", ALLOWED)
def test_beside_a_rule_nothing_is_wrong(values: dict[str, Any]) -> None:
    assert problems(demo(**values)) == []


def test_all_problems_come_at_once() -> None:
    wrong = {name: (value, line) for name, value, line in OUT_OF_RANGE}  # one value a knob
    values = {name: value for name, (value, _) in wrong.items()}
    expected = {line for _, line in wrong.values()}
    assert set(problems(demo(**values, optim__student__updates=0))) > expected
