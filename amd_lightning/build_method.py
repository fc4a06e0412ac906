"""RunConfig -> the module that trains: its objective, critics, states and optimizers. The rest: `build`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from amd_lightning.backends import HfBackend, VllmBackend
from amd_lightning.config.choices import (
    Actions,
    AlphaPath,
    Backend,
    CriticKind,
    Distance,
    Features,
)
from amd_lightning.config.method import CriticConfig, ObjectiveConfig
from amd_lightning.config.running import OptimiserConfig, StageConfig
from amd_lightning.config.schema import RunConfig
from amd_lightning.critics import (
    AlphaRamp,
    ClosedFormCritic,
    CriticHead,
    CriticPair,
    KernelCritic,
    LearnedCritic,
    QCritic,
    ResidualCritic,
    SignCritic,
    TanhCritic,
)
from amd_lightning.modules.adaptive import AdaptiveBeta
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.divergence import DivergenceModule
from amd_lightning.modules.horizon import Horizon, SequenceKernel
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.divergences import PARAMETERS
from amd_lightning.objectives.support import Support, full_support, sampled_support, top_k_support
from amd_lightning.policies import Policy
from amd_lightning.replay import Replay, ReplayBuffer, Reuse
from amd_lightning.rollouts import BackendSampler, Sampler
from amd_lightning.training.compilation import compile_forward
from amd_lightning.training.fitting import StageSpec, seed_for


def make_module(config: RunConfig, student: Policy, teacher: Policy) -> DistillationModule:
    """The method: a divergence, or the game against critics."""
    objective, rollout, stage = config.objective, config.rollout, stage_of(config.optim.student)
    if config.trainer.compile:
        for policy in (student, teacher):
            compile_forward(policy)
    shared: dict[str, Any] = {
        "sampler": _sampler(config, teacher),
        "beta": objective.beta,
        "normalise": str(objective.normalise),
        "optimisation": stage.optimisation,
        "updates": stage.updates,
        "micro_batch_size": stage.micro_batch_size,
        "log_every": config.trainer.log_every,
        "temperatures": (objective.teacher_temperature, objective.student_temperature),
        "horizon": _horizon(objective),
        "kernel": _sequence_kernel(objective),
        "teacher_share": rollout.teacher_share,
        "replay": _replay(config),
        "adaptive": _adaptive(objective),
        "sft_weight": objective.sft_weight,
        "chunk_tokens": config.trainer.chunk_tokens,
    }
    if objective.distance is Distance.moment_matching:
        off_policy = _critic(config.critic, student, teacher)
        one = config.critic.shared or not off_policy.learns
        on_policy = off_policy if one else _critic(config.critic, student, teacher)
        return AdversarialModule(
            student,
            teacher,
            critics=CriticPair(off_policy, on_policy),
            support=_support(config.critic, student.vocabulary_size),
            ridge=config.critic.ridge,
            alpha=_alpha(config.critic),
            critic_optimisation=_optimisation(config.optim.critic),
            critic_steps_per_update=config.critic.steps,
            **shared,
        )
    needs_teacher = objective.distance is not Distance.nll or objective.beta < 1.0
    return DivergenceModule(
        student,
        teacher if needs_teacher else None,
        distance=str(objective.distance),
        parameters={name: getattr(objective, name) for name in PARAMETERS.get(str(objective.distance), ())},
        **shared,
    )


def make_fine_tuning(config: RunConfig, policy: Policy, stage: StageSpec) -> DistillationModule:
    """Maximum likelihood on the data's responses, for teacher and student start: nll at beta = 1."""
    return DivergenceModule(
        policy,
        None,
        distance="nll",
        sampler=BackendSampler(config.data.max_response_tokens),
        beta=1.0,
        normalise="token",
        optimisation=stage.optimisation,
        updates=stage.updates,
        micro_batch_size=stage.micro_batch_size,
        log_every=config.trainer.log_every,
    )


def _sampler(config: RunConfig, teacher: Policy) -> Sampler:
    rollout, longest = config.rollout, config.data.max_response_tokens
    backend: HfBackend | VllmBackend
    if writes_with_vllm(config):
        backend = VllmBackend(config.data.max_prompt_tokens + longest, rollout.vllm_memory_share)
    else:
        backend = HfBackend(teacher if rollout.teacher_share else None, rollout.teacher_share)
    return BackendSampler(longest, rollout.temperature, rollout.responses, backend)


def writes_with_vllm(config: RunConfig) -> bool:
    """Whether the student's responses come from vLLM."""
    return config.rollout.backend is Backend.vllm and config.objective.beta < 1.0


def stage_of(stage: StageConfig) -> StageSpec:
    """How long and with which optimizer a stage trains."""
    return StageSpec(
        stage.updates, stage.batch_size, stage.micro_batch_size or stage.batch_size, _optimisation(stage)
    )


def _optimisation(optimiser: OptimiserConfig) -> Optimisation:
    return Optimisation(
        learning_rate=optimiser.learning_rate,
        betas=(optimiser.betas[0], optimiser.betas[1]),
        weight_decay=optimiser.weight_decay,
        clip_norm=optimiser.clip_norm,
        schedule=str(optimiser.schedule),
        warmup_updates=optimiser.warmup_updates,
        final_share=optimiser.final_share,
    )


def _critic(critic: CriticConfig, student: Policy, teacher: Policy) -> QCritic:
    match critic.kind:
        case CriticKind.closed_form:
            return ClosedFormCritic(critic.alpha, critic.ridge)
        case CriticKind.sign:
            return SignCritic()
        case CriticKind.kernel:
            return KernelCritic(teacher.token_embeddings)
    head = CriticHead(
        0 if critic.features is Features.teacher else student.hidden_size,
        0 if critic.features is Features.student else teacher.hidden_size,
        student.vocabulary_size,
        critic.rank,
    )
    match critic.kind:
        case CriticKind.residual:
            return ResidualCritic(head, critic.alpha, critic.ridge)
        case CriticKind.tanh:
            return TanhCritic(head)
        case CriticKind.learned | CriticKind.linear:
            return LearnedCritic(head)
    raise AssertionError(critic.kind)


def _alpha(critic: CriticConfig) -> AlphaRamp | None:
    if critic.alpha_start is None:
        return None
    return AlphaRamp(critic.alpha_start, critic.alpha, critic.alpha_path is AlphaPath.linear)


FULL_BELOW = 16
"""With fewer actions than 16 k, critic steps look at all of them: exact, and cheap."""


def _support(critic: CriticConfig, vocabulary_size: int) -> Callable[..., Support]:
    actions = critic.actions
    if actions is Actions.auto:
        actions = Actions.full if vocabulary_size < FULL_BELOW * critic.top_k else Actions.top_k
    if actions is Actions.full:
        return partial(full_support, alpha=critic.alpha)
    if actions is Actions.top_k:
        return partial(top_k_support, alpha=critic.alpha, k=critic.top_k)
    return partial(sampled_support, alpha=critic.alpha, samples=critic.samples)


def _horizon(objective: ObjectiveConfig) -> Horizon | None:
    horizon = objective.horizon
    if horizon.gamma == 0.0 or objective.beta == 1.0:
        return None
    return Horizon(
        discount=horizon.gamma,
        returns=str(horizon.returns),
        baseline=str(horizon.baseline),
        centre=horizon.centre,
        length_normalise=horizon.length_normalise,
    )


def _sequence_kernel(objective: ObjectiveConfig) -> SequenceKernel | None:
    if objective.kernel.weight == 0.0 or objective.beta == 1.0:
        return None
    return SequenceKernel(objective.kernel.weight, objective.kernel.ngram)


def _replay(config: RunConfig) -> Replay | None:
    replay = config.rollout.replay
    if config.objective.beta == 1.0:
        return None
    if config.rollout.reuse > 1:
        return Reuse(config.rollout.reuse)
    if replay.capacity == 0:
        return None
    return ReplayBuffer(
        replay.capacity,
        refresh=replay.refresh,
        decay=replay.decay,
        shuffle=replay.shuffle,
        seed=seed_for("replay", config.seed),
    )


def _adaptive(objective: ObjectiveConfig) -> AdaptiveBeta | None:
    adaptive = objective.adaptive_beta
    if adaptive.step == 0.0 or objective.beta == 1.0:
        return None
    return AdaptiveBeta(objective.beta, adaptive.step, adaptive.tolerance)
