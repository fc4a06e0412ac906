"""The rules of a run: what is wrong with a configuration, all of it at once, and what it would ignore.

The other files say what each knob is and how far it may go; here stand the ranges' check, the rules between
knobs, and the options that a run would have no use for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from amd_lightning.config.choices import (
    Actions,
    Baseline,
    CriticKind,
    Distance,
    Family,
    Init,
    Returns,
    Schedule,
    Source,
    WandbMode,
    Writer,
)
from amd_lightning.config.device_rules import device_ignoring_rules, device_problems
from amd_lightning.config.method import ObjectiveConfig
from amd_lightning.config.pair_rules import pair_ignoring_rules, pair_problems
from amd_lightning.config.schema import RunConfig

LEARNING = (CriticKind.residual, CriticKind.learned, CriticKind.linear, CriticKind.tanh)
"""Critics with something to train."""
RIDGED = (CriticKind.residual, CriticKind.learned, CriticKind.closed_form)
"""Critics that are nothing without a ridge."""
PARAMETER_OF = {
    "js_mixture": (Distance.js,),
    "skew": (Distance.skew_kl, Distance.skew_rkl),
    "akl_head": (Distance.akl,),
    "ab_alpha": (Distance.alpha_beta,),
    "ab_beta": (Distance.alpha_beta,),
}
"""Which distances a knob of `objective` belongs to."""

ONLY_T5 = ("num_layers", "relative_attention_max_distance", "feed_forward_proj")
"""What a Llama's architecture has no use for."""
TEXT_METRICS_OF = {
    "samsum": ("rouge_l", "accuracy"),
    "dolly": ("rouge_l", "accuracy"),
    "iwslt": ("bleu", "accuracy"),
    "strategyqa": ("accuracy", "rouge_l"),
}
"""What responses are scored by, the task's own first."""
TEXT_METRICS = {metric for metrics in TEXT_METRICS_OF.values() for metric in metrics}


def uses_off_policy(objective: ObjectiveConfig) -> bool:
    """Whether any update trains on states of the data or the teacher."""
    return objective.beta > 0.0 or objective.adaptive_beta.step > 0.0


def problems(config: RunConfig) -> list[str]:
    """Every value out of its range and every rule between knobs that is broken, one line each."""
    return [*_range_problems(config, ""), *_rule_problems(config)]


def _range_problems(group: Any, prefix: str) -> Iterator[str]:
    for knob_field in fields(group):
        name, value = prefix + knob_field.name, getattr(group, knob_field.name)
        if is_dataclass(value):
            yield from _range_problems(value, name + ".")
            continue
        for item in value if isinstance(value, list) else [value]:
            if item is not None and (wrong := _outside(item, knob_field.metadata)):
                yield f"{name}={item} {wrong}"


def _outside(value: Any, limits: Any) -> str | None:
    """What is wrong with a value, or None."""
    if "choices" in limits and value not in limits["choices"]:
        return f"is not one of {', '.join(limits['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    inside = (
        ("low", lambda bound: value >= bound, "must be at least"),
        ("high", lambda bound: value <= bound, "must be at most"),
        ("above", lambda bound: value > bound, "must be greater than"),
        ("below", lambda bound: value < bound, "must be less than"),
    )
    wrong = [
        f"{words} {limits[kind]}"
        for kind, holds, words in inside
        if kind in limits and not holds(limits[kind])
    ]
    return " and ".join(wrong) or None


def _rule_problems(config: RunConfig) -> Iterator[str]:
    data, pair, optim = config.data, config.pair, config.optim
    if data.source is Source.files and data.path is None:
        yield "data.source=files needs data.path=DIR, a directory with train, valid and test files"
    for name, model, stage in (
        ("teacher", pair.teacher, optim.teacher),
        ("student", pair.student, optim.student_start),
    ):
        key = "student_start" if name == "student" else "teacher"
        if model.path is None and stage.updates == 0 and getattr(model, "init", None) is not Init.layers:
            yield (
                f"optim.{key}.updates=0 leaves a {name} that is built from its config untrained; "
                f"train it or set pair.{name}.path"
            )
    for name, model in (("teacher", pair.teacher), ("student", pair.student)):
        depth, built = (
            model.architecture,
            model.path is None and getattr(model, "init", None) is not Init.layers,
        )
        if built and depth.family is Family.t5 and depth.num_decoder_layers > depth.num_layers:
            # transformers sizes the KV cache of a T5 by its encoder.
            yield (
                f"pair.{name}.architecture.num_decoder_layers={depth.num_decoder_layers} must be at most "
                f"num_layers={depth.num_layers}: transformers cannot generate with a deeper decoder"
            )
    if pair.student.path is not None and pair.teacher.path is None:
        yield (
            "pair.student.path is set but pair.teacher.path is not: the tokenizer trained with the teacher "
            "would not be the student's"
        )
    families = [model.architecture.family for model in (pair.teacher, pair.student) if model.path is None]
    if pair.student.init is Init.fresh and len(set(families)) > 1:
        yield (
            f"pair.teacher.architecture.family={families[0]} and pair.student.architecture.family="
            f"{families[1]} must be the same: a prompt is written for one family"
        )
    yield from device_problems(config)
    if optim.student.updates == 0:
        yield "optim.student.updates=0 distils nothing"
    for key, stage in (
        ("teacher", optim.teacher),
        ("student_start", optim.student_start),
        ("student", optim.student),
    ):
        if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
            micro = f"optim.{key}.micro_batch_size={stage.micro_batch_size}"
            yield f"optim.{key}.batch_size={stage.batch_size} is not divisible by {micro}"
        if stage.updates and stage.warmup_updates >= stage.updates:
            updates = f"optim.{key}.updates={stage.updates}"
            yield f"optim.{key}.warmup_updates={stage.warmup_updates} leaves nothing of {updates}"
    for key, optimiser in (
        ("teacher", optim.teacher),
        ("student_start", optim.student_start),
        ("student", optim.student),
        ("critic", optim.critic),
    ):
        if len(optimiser.betas) != 2:
            yield f"optim.{key}.betas={list(optimiser.betas)} must be two numbers"
    yield from pair_problems(config)
    yield from _objective_problems(config)
    if config.evaluation.metric == "mmd_squared" and config.evaluation.samples < 2:
        yield "evaluation.metric=mmd_squared needs evaluation.samples of at least 2"
    metric = config.evaluation.metric.removeprefix("sampled_")
    checked = data.source is Source.embedded or data.task == "strategyqa"
    if metric in TEXT_METRICS and metric not in TEXT_METRICS_OF[data.task]:
        known = " or ".join(TEXT_METRICS_OF[data.task])
        yield f"evaluation.metric={config.evaluation.metric} is not measured for {data.task}; use {known}"
    elif metric == "accuracy" and not checked:
        yield (
            f"evaluation.metric={config.evaluation.metric} has no meaning for {data.task} with "
            f"data.source={data.source}; use {TEXT_METRICS_OF[data.task][0]}"
        )
    if data.evaluation_sets and data.task != "dolly":
        yield f"data.evaluation_sets has no meaning for {data.task}: they are instructions, as Dolly's"
    if data.evaluation_sets and data.evaluation_path is None:
        yield "data.evaluation_sets needs data.evaluation_path=DIR, the directory of their files"


def _objective_problems(config: RunConfig) -> Iterator[str]:
    objective, critic, rollout = config.objective, config.critic, config.rollout
    moments = objective.distance is Distance.moment_matching
    if moments and critic.kind in RIDGED and critic.ridge == 0.0:
        yield f"critic.kind={critic.kind} needs critic.ridge above 0; without a ridge: linear or tanh"
    if moments and critic.kind is CriticKind.linear and critic.ridge > 0.0:
        yield f"critic.kind=linear has no ridge (critic.ridge={critic.ridge}); with one it is kind=learned"
    if objective.distance is Distance.alpha_beta and objective.ab_alpha + objective.ab_beta == 0.0:
        yield "objective.ab_alpha and objective.ab_beta add up to 0, which the alpha-beta divergence excludes"
    horizon = objective.horizon
    if horizon.gamma > 0.0 and objective.beta < 1.0:
        if horizon.returns is Returns.sampled and not (moments or objective.distance is Distance.rkl):
            yield (
                f"objective.horizon.returns=sampled has no meaning for {objective.distance}; it has for rkl "
                "and moment_matching"
            )
        if horizon.baseline is Baseline.leave_one_out and rollout.responses < 2:
            yield "objective.horizon.baseline=leave_one_out needs rollout.responses of at least 2"
        if objective.distance is Distance.nll:
            yield "objective.horizon.gamma has no meaning for nll, which is no distance"
    if objective.kernel.weight > 0.0 and objective.beta < 1.0 and rollout.responses < 2:
        yield "objective.kernel.weight needs rollout.responses of at least 2 (4 and more are better)"
    sampling = (objective.horizon.gamma, objective.kernel.weight, rollout.teacher_share)
    tempered = (objective.teacher_temperature, objective.student_temperature, rollout.temperature)
    if objective.beta < 1.0 and any(sampling) and any(temperature != 1.0 for temperature in tempered):
        yield (
            "objective.horizon.gamma, objective.kernel.weight and rollout.teacher_share need all "
            "temperatures at 1: they score the tokens that the policies drew themselves"
        )
    yield from _rollout_problems(config)
    if objective.distance is Distance.nll and rollout.teacher_share > 0.0:
        yield "rollout.teacher_share has no meaning for nll, whose labels are drawn from the teacher already"


def _rollout_problems(config: RunConfig) -> Iterator[str]:
    """Of replayed responses, an adaptive beta, a written-down teacher, and likelihood beside a distance."""
    objective, rollout, beta = config.objective, config.rollout, config.objective.beta
    replays = rollout.replay.capacity > 0 or rollout.reuse > 1
    if beta < 1.0 and rollout.replay.capacity > 0:
        capacity, batch_size = rollout.replay.capacity, config.optim.student.batch_size
        if capacity < batch_size:
            yield f"rollout.replay.capacity={capacity} holds no batch (optim.student.batch_size={batch_size})"
        if rollout.reuse > 1:
            yield "rollout.reuse and rollout.replay.capacity both say what serves again; set one of them"
    if beta < 1.0 and replays and objective.kernel.weight > 0.0:
        yield (
            "objective.kernel.weight compares with samples to the prompts of the batch, replayed responses "
            "have prompts of their own; set rollout.reuse=1 and rollout.replay.capacity=0"
        )
    if beta < 1.0 and objective.adaptive_beta.step > 0.0 and config.trainer.validate_every == 0:
        yield "objective.adaptive_beta.step listens to validations; set trainer.validate_every above 0"
    if objective.sft_weight > 0.0:
        if beta == 0.0:
            yield "objective.sft_weight needs off-policy responses: set objective.beta above 0"
        if objective.distance is Distance.nll:
            yield "objective.sft_weight has no meaning for nll, which is that likelihood already"
    if rollout.teacher_top_k is not None and uses_off_policy(objective):
        if objective.distance is Distance.nll:
            yield "rollout.teacher_top_k has no meaning for nll, which asks no teacher at off-policy states"
        kind = config.critic.kind
        if objective.distance is Distance.moment_matching and kind in (*LEARNING, CriticKind.kernel):
            yield (
                f"rollout.teacher_top_k needs a critic that sees two distributions and nothing else, not "
                f"critic.kind={kind} (which reads every action's value); choose closed_form or sign"
            )


def ignored_options(config: RunConfig, asked_for: Sequence[str]) -> dict[str, str]:
    """Options that were asked for by name and that this run would ignore, each with what to say about it.

    Args:
        config: the composed run.
        asked_for: the keys of the command line's overrides, such as "critic.steps" or "critic".
    """
    found = {}
    for applies, prefix, reason, *remedy in _ignoring_rules(config):
        for key in asked_for:
            if applies and (key == prefix or key.startswith(prefix + ".")) and key not in NEVER_IGNORED:
                found[key] = (
                    f"{key} would be ignored with {reason}; {remedy[0] if remedy else 'leave it out'}"
                )
    return found


NEVER_IGNORED = (
    "logger.wandb.mode",
    "logger.mlflow.enabled",
    "optim.teacher.updates",
    "optim.student_start.updates",
)
"""Each decides whether its neighbours are."""


def _ignoring_rules(config: RunConfig) -> Iterator[tuple[Any, ...]]:
    """(whether it holds, the knob or section that is then ignored, why, a remedy if not to leave it out)."""
    data, pair, objective, optim = config.data, config.pair, config.objective, config.optim
    no_critic = f"objective.distance={objective.distance}, which has no critic"
    not_moments = objective.distance is not Distance.moment_matching
    for key in ("critic", "optim.critic"):
        yield not_moments, key, no_critic
    learns_nothing = f"critic.kind={config.critic.kind}, which learns nothing"
    still = not not_moments and config.critic.kind not in LEARNING
    heads = ("steps", "rank", "features", "shared", "actions", "top_k", "samples")
    for key in (*(f"critic.{name}" for name in heads), "optim.critic"):
        yield still, key, learns_nothing
    mixture = ("critic.alpha", "critic.alpha_start", "critic.alpha_path")
    for key in (*mixture, "critic.ridge"):
        yield still and config.critic.kind is not CriticKind.closed_form, key, learns_nothing
    plain = config.critic.kind in (CriticKind.linear, CriticKind.tanh) and config.critic.ridge == 0.0
    for key in mixture:
        yield not not_moments and plain, key, "critic.ridge=0"
    yield config.critic.alpha_start is None, "critic.alpha_path", "critic.alpha_start=null"
    for key, actions in (("top_k", (Actions.auto, Actions.top_k)), ("samples", (Actions.sampled,))):
        other = config.critic.actions not in actions
        yield other, f"critic.{key}", f"critic.actions={config.critic.actions}"
    yield (
        objective.beta == 1.0 or not uses_off_policy(objective),
        "critic.shared",
        (f"objective.beta={objective.beta:g}, where one critic sees everything"),
    )
    for key, distances in PARAMETER_OF.items():
        other = objective.distance not in distances
        yield other, f"objective.{key}", f"objective.distance={objective.distance}"
    teacherless = objective.distance is Distance.nll and objective.beta == 1.0
    yield teacherless, "objective.teacher_temperature", "nll at beta=1, which asks no teacher"
    never_samples = "objective.beta=1, which never samples the student"
    once = ("backend", "vllm_memory_share", "temperature", "responses", "teacher_share", "replay", "reuse")
    for key in (*(f"rollout.{name}" for name in once), "objective.adaptive_beta"):
        yield objective.beta == 1.0, key, never_samples
    for key in ("objective.horizon", "objective.kernel"):
        yield objective.beta == 1.0, key, never_samples
    for key in ("returns", "baseline", "centre", "length_normalise"):
        yield objective.horizon.gamma == 0.0, f"objective.horizon.{key}", "objective.horizon.gamma=0"
    for key in ("teacher_samples", "ngram"):
        yield objective.kernel.weight == 0.0, f"objective.kernel.{key}", "objective.kernel.weight=0"
    for key in ("refresh", "decay", "shuffle"):
        yield config.rollout.replay.capacity == 0, f"rollout.replay.{key}", "rollout.replay.capacity=0"
    adaptive = objective.adaptive_beta
    yield adaptive.step == 0.0, "objective.adaptive_beta.tolerance", "objective.adaptive_beta.step=0"
    no_off_policy = "objective.beta=0, which uses no off-policy states"
    without = not uses_off_policy(objective)
    for key in ("off_policy", "teacher_top_k"):
        yield without, f"rollout.{key}", no_off_policy
    teacher_writes = config.rollout.off_policy is Writer.teacher
    yield without and teacher_writes, "rollout", no_off_policy
    source = f"data.source={data.source}"
    yield data.source is not Source.embedded, "data.seed", source
    no_files, no_hub = data.source is not Source.files, data.source is not Source.hub
    yield no_files and data.path is not None, "data.path", source, "add data.source=files"
    yield no_hub and data.revision is not None, "data.revision", source
    yield not data.evaluation_sets, "data.evaluation_path", "data.evaluation_sets=[]"
    for name, model, stage in (
        ("teacher", pair.teacher, "teacher"),
        ("student", pair.student, "student_start"),
    ):
        yield model.path is not None, f"pair.{name}.architecture", f"pair.{name}.path={model.path}"
        llama = model.path is None and model.architecture.family is Family.llama
        for key in ONLY_T5:
            yield llama, f"pair.{name}.architecture.{key}", f"pair.{name}.architecture.family=llama"
        yield getattr(optim, stage).updates == 0, f"optim.{stage}", f"optim.{stage}.updates=0"
    yield from pair_ignoring_rules(config)
    yield from device_ignoring_rules(config)
    brings = f"pair.teacher.path={pair.teacher.path}, which brings its tokenizer"
    yield pair.teacher.path is not None, "pair.tokenizer", brings
    for name in ("teacher", "student_start", "student", "critic"):
        constant = getattr(optim, name).schedule is Schedule.constant
        yield constant, f"optim.{name}.final_share", f"optim.{name}.schedule=constant"
    yield config.logger.wandb.mode is WandbMode.disabled, "logger.wandb", "logger.wandb.mode=disabled"
    yield not config.logger.mlflow.enabled, "logger.mlflow", "logger.mlflow.enabled=false"
    yield not config.cache.enabled, "cache.dir", "cache=off"
    yield config.evaluation.num_beams == 1, "evaluation.length_penalty", "evaluation.num_beams=1"
