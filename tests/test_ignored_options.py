"""Options that a run would ignore are named, and those that it takes are not."""

from typing import Any

import pytest

from amd_lightning.config.rules import LEARNING, ignored_options
from tests.test_rules import HORIZON, LAYERS, REPLAY, demo

IGNORED: list[tuple[dict[str, Any], str]] = [
    *(
        (values, f"pair.teacher.{key}")
        for values in ({}, {"pair__teacher__path": "pypi:smollm2-135m-instruct"})
        for key in ("revision", "trust_remote_code", "allow_pickle")
    ),
    *(({}, f"pair.student.lora.{key}") for key in ("alpha", "dropout", "target_modules")),
    *(
        ({"optim__teacher__updates": 0}, f"pair.teacher.{key}")
        for key in ("lora", "lora.rank", "gradient_checkpointing")
    ),
    ({"pair__student__path": "DIR"}, "pair.student.init"),
    ({"pair__student__path": "DIR"}, "pair.student.layers.count"),
    ({}, "pair.student.layers.count"),
    (LAYERS, "pair.student.architecture.d_model"),
    ({"objective__distance": "kl"}, "critic"),
    ({"objective__distance": "nll"}, "critic.steps"),
    ({"objective__distance": "rkl"}, "optim.critic.learning_rate"),
    ({"critic__kind": "closed_form"}, "critic.steps"),
    ({"critic__kind": "closed_form"}, "critic.rank"),
    ({"critic__kind": "closed_form"}, "optim.critic.betas"),
    *(
        ({"critic__kind": kind}, f"critic.{key}")
        for kind in ("closed_form", "sign", "kernel")
        for key in ("features", "shared", "actions", "top_k", "samples")
    ),
    *(
        ({"critic__kind": kind}, f"critic.{key}")
        for kind in ("sign", "kernel")
        for key in ("alpha", "alpha_start", "alpha_path", "ridge")
    ),
    ({"critic__kind": "linear", "critic__ridge": 0.0}, "critic.alpha"),
    ({}, "critic.alpha_path"),
    ({"critic__kind": "tanh", "critic__ridge": 0.0}, "critic.alpha"),
    ({"critic__actions": "full"}, "critic.top_k"),
    ({"critic__actions": "sampled"}, "critic.top_k"),
    ({}, "critic.samples"),
    ({"objective__beta": 0.0}, "critic.shared"),
    ({"objective__beta": 1.0}, "critic.shared"),
    *(({}, f"objective.{key}") for key in ("js_mixture", "skew", "akl_head", "ab_alpha", "ab_beta")),
    ({"objective__distance": "js"}, "objective.skew"),
    ({"objective__distance": "skew_kl"}, "objective.js_mixture"),
    ({"objective__distance": "nll", "objective__beta": 1.0}, "objective.teacher_temperature"),
    *(
        ({"objective__beta": 1.0}, key)
        for key in (
            "rollout.responses",
            "rollout.teacher_share",
            "objective.horizon",
            "objective.horizon.gamma",
            "objective.kernel",
            "objective.kernel.weight",
        )
    ),
    *(
        ({"objective__beta": 1.0}, key)
        for key in ("rollout.replay", "rollout.reuse", "objective.adaptive_beta.step")
    ),
    *(({}, f"rollout.replay.{key}") for key in ("refresh", "decay", "shuffle")),
    ({}, "objective.adaptive_beta.tolerance"),
    ({"objective__beta": 0.0}, "rollout.teacher_top_k"),
    *(({}, f"objective.horizon.{key}") for key in ("returns", "baseline", "centre", "length_normalise")),
    *(({}, f"objective.kernel.{key}") for key in ("teacher_samples", "ngram")),
    ({"objective__beta": 1.0}, "rollout.temperature"),
    ({"objective__beta": 0.0}, "rollout.off_policy"),
    ({"objective__beta": 0.0, "rollout__off_policy": "teacher"}, "rollout"),
    ({"data__source": "hub"}, "data.seed"),
    ({"data__path": "DIR"}, "data.path"),
    ({"data__revision": "main"}, "data.revision"),
    ({"pair__teacher__path": "DIR"}, "pair.teacher.architecture.d_model"),
    *(
        ({"pair__student__architecture__family": "llama"}, f"pair.student.architecture.{key}")
        for key in ("num_layers", "relative_attention_max_distance", "feed_forward_proj")
    ),
    ({"pair__teacher__path": "DIR"}, "pair.tokenizer.vocabulary_size"),
    ({"pair__student__path": "DIR"}, "pair.student.architecture"),
    ({"pair__teacher__revision": "main"}, "pair.teacher.revision"),
    ({"optim__teacher__updates": 0}, "optim.teacher.learning_rate"),
    ({"optim__student__schedule": "constant"}, "optim.student.final_share"),
    ({"logger__wandb__mode": "disabled"}, "logger.wandb.project"),
    ({"logger__wandb__mode": "disabled"}, "logger.wandb.responses"),
    ({}, "logger.mlflow.uri"),
    ({"cache__enabled": False}, "cache.dir"),
    ({}, "evaluation.length_penalty"),
    ({}, "trainer.deterministic"),
    ({"data__evaluation_path": "DIR"}, "data.evaluation_path"),
]


@pytest.mark.parametrize("values, key", IGNORED)
def test_an_option_without_effect_is_named(values: dict[str, Any], key: str) -> None:
    found = ignored_options(demo(**values), [key, "seed"])
    assert list(found) == [key]
    assert found[key].startswith(f"{key} would be ignored with ")


USED: list[tuple[dict[str, Any], str]] = [
    *(({"pair__student__path": "DIR"}, f"pair.student.{key}") for key in ("revision", "allow_pickle")),
    ({}, "pair.student.lora.rank"),
    ({"pair__student__lora__rank": 2}, "pair.student.lora.alpha"),
    ({}, "pair.teacher.gradient_checkpointing"),
    ({"optim__student_start__updates": 0}, "pair.student.gradient_checkpointing"),
    ({}, "pair.student.attn_implementation"),
    (LAYERS, "pair.student.layers.count"),
    ({}, "critic"),
    ({}, "critic.steps"),
    ({}, "optim.critic.learning_rate"),
    ({"critic__kind": "closed_form"}, "critic.ridge"),
    ({"critic__kind": "closed_form"}, "critic.alpha"),
    *(
        ({"critic__kind": kind}, f"critic.{key}")
        for kind in LEARNING
        for key in ("steps", "rank", "features", "shared", "actions", "top_k", "ridge")
    ),
    ({"critic__kind": "tanh"}, "critic.alpha"),
    ({"critic__actions": "top_k"}, "critic.top_k"),
    ({"critic__actions": "sampled"}, "critic.samples"),
    ({"objective__distance": "js"}, "objective.js_mixture"),
    ({"objective__distance": "skew_kl"}, "objective.skew"),
    ({"objective__distance": "skew_rkl"}, "objective.skew"),
    ({"objective__distance": "akl"}, "objective.akl_head"),
    ({"objective__distance": "alpha_beta"}, "objective.ab_alpha"),
    ({"objective__distance": "alpha_beta"}, "objective.ab_beta"),
    ({"objective__distance": "nll"}, "objective.teacher_temperature"),
    ({"objective__distance": "nll", "objective__beta": 1.0}, "objective.student_temperature"),
    ({}, "objective.horizon.gamma"),
    ({}, "objective.kernel.weight"),
    *((HORIZON, f"objective.horizon.{key}") for key in ("returns", "baseline", "centre", "length_normalise")),
    *(
        ({"objective__kernel__weight": 0.1}, f"objective.kernel.{key}")
        for key in ("teacher_samples", "ngram")
    ),
    ({}, "rollout.responses"),
    ({}, "rollout.teacher_share"),
    ({}, "rollout.replay.capacity"),
    ({}, "rollout.reuse"),
    *((REPLAY, f"rollout.replay.{key}") for key in ("refresh", "decay", "shuffle")),
    ({"objective__adaptive_beta__step": 0.1}, "objective.adaptive_beta.tolerance"),
    *(
        ({"objective__adaptive_beta__step": 0.1, "objective__beta": 0.0}, key)
        for key in ("rollout.off_policy", "rollout.teacher_top_k", "critic.shared")
    ),
    ({}, "objective.sft_weight"),
    ({"objective__beta": 0.0}, "rollout.responses"),
    ({}, "rollout.temperature"),
    ({"objective__beta": 0.0}, "rollout"),
    ({"data__source": "files", "data__path": "DIR"}, "data.path"),
    ({"pair__student__architecture__family": "llama"}, "pair.student.architecture.num_decoder_layers"),
    ({"pair__teacher__architecture__family": "t5"}, "pair.teacher.architecture.num_layers"),
    ({"optim__teacher__updates": 0}, "optim.teacher.updates"),
    ({"logger__wandb__mode": "disabled"}, "logger.wandb.mode"),
    ({}, "logger.mlflow.enabled"),
    ({"logger__mlflow__enabled": True}, "logger.mlflow.uri"),
    ({"logger__wandb__mode": "disabled"}, "logger"),
    ({"cache__enabled": False}, "cache"),
    ({"evaluation__num_beams": 2}, "evaluation.length_penalty"),
    ({"trainer__accelerator": "auto"}, "trainer.deterministic"),
]


@pytest.mark.parametrize("values, key", USED)
def test_an_option_with_effect_is_not(values: dict[str, Any], key: str) -> None:
    assert ignored_options(demo(**values), [key]) == {}
