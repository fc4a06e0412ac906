"""RunConfig -> objects: the only file that knows both the configuration and the classes."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from amd_lightning.backends import HfBackend, VllmBackend, require_vllm
from amd_lightning.cache import ArtifactCache
from amd_lightning.config.choices import (
    Actions,
    AlphaPath,
    Backend,
    CriticKind,
    Distance,
    Family,
    Features,
    Init,
    Writer,
)
from amd_lightning.config.data import DataConfig
from amd_lightning.config.method import CriticConfig, ObjectiveConfig
from amd_lightning.config.pair import StudentConfig, TeacherConfig
from amd_lightning.config.rules import ONLY_T5, uses_off_policy
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
from amd_lightning.data import dolly, iwslt, samsum, strategyqa
from amd_lightning.data.evaluation_sets import load_set
from amd_lightning.data.examples import Limits
from amd_lightning.evaluation.decoding import Decoding
from amd_lightning.evaluation.metrics import scorers
from amd_lightning.models.adapters import Lora
from amd_lightning.models.students import Layers
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
from amd_lightning.running.description import objective_name
from amd_lightning.spec import EvaluationSpec, ModelSpec, RunSpec, Task, TopKSpec
from amd_lightning.training.compilation import compile_forward
from amd_lightning.training.fitting import StageSpec, TrainerSpec, seed_for
from amd_lightning.training.loggers import (
    WandbSettings,
    mlflow_logger,
    require,
    tensorboard_logger,
    wandb_logger,
)

TASKS: dict[str, Any] = {"samsum": samsum, "dolly": dolly, "iwslt": iwslt, "strategyqa": strategyqa}


def build(config: RunConfig, logged_config: Mapping[str, Any]) -> RunSpec:
    """The run that a validated config describes.

    Args:
        config: without problems (see `rules.problems`).
        logged_config: the same as plain values without secrets, for W&B.

    Raises:
        UserError: the package of a logger is missing.
    """
    for package, wanted in (
        ("tensorboard", config.logger.tensorboard),
        ("mlflow", config.logger.mlflow.enabled),
    ):
        if wanted:
            require(package)
    if _writes_with_vllm(config):
        require_vllm()
    folder, kernel = Path(config.output_dir), config.objective.kernel
    cache = ArtifactCache(
        Path(config.cache.dir).expanduser() if config.cache.enabled else folder / "artifacts"
    )
    return RunSpec(
        task=_task(config.data),
        teacher=_model(config.pair.teacher, config.optim.teacher),
        student=_model(config.pair.student, config.optim.student_start),
        vocabulary_size=config.pair.tokenizer.vocabulary_size,
        pair_seed=config.pair.seed,
        distillation=_stage(config.optim.student),
        make_module=partial(make_module, config),
        make_fine_tuning=partial(make_fine_tuning, config),
        teacher_writes=config.rollout.off_policy is Writer.teacher and uses_off_policy(config.objective),
        top_k=_top_k(config),
        kernel_samples=kernel.teacher_samples if kernel.weight and config.objective.beta < 1.0 else 0,
        evaluation=EvaluationSpec(
            decoding=Decoding(
                max_tokens=config.data.max_response_tokens,
                num_beams=config.evaluation.num_beams,
                length_penalty=config.evaluation.length_penalty,
                batch_size=config.evaluation.batch_size,
                no_repeat_ngram_size=config.evaluation.no_repeat_ngram_size,
            ),
            samples=config.evaluation.samples,
            seed=config.evaluation.seed,
            diagnose_every=config.evaluation.diagnose_every,
        ),
        trainer=TrainerSpec(
            accelerator=config.trainer.accelerator,
            precision=config.trainer.precision,
            log_every=config.trainer.log_every,
            validate_every=config.trainer.validate_every,
            checkpoint_every=config.trainer.checkpoint_every,
            progress=str(config.trainer.progress),
            keep_checkpoints=config.trainer.keep_checkpoints,
            sharded_teacher=config.trainer.teacher == "sharded",
            strategy="ddp" if config.trainer.strategy == "auto" else config.trainer.strategy,
            profile=config.trainer.profile,
        ),
        cache=cache,
        folder=folder,
        loggers=partial(_loggers, config, folder, logged_config),
        seed=config.seed,
        metric=config.evaluation.metric,
        shown_responses=config.logger.wandb.responses,
    )


def make_module(config: RunConfig, student: Policy, teacher: Policy) -> DistillationModule:
    """The method: a divergence, or the game against critics."""
    objective, rollout, stage = config.objective, config.rollout, _stage(config.optim.student)
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


def _sampler(config: RunConfig, teacher: Policy) -> Sampler:
    rollout, longest = config.rollout, config.data.max_response_tokens
    backend: HfBackend | VllmBackend
    if _writes_with_vllm(config):
        backend = VllmBackend(config.data.max_prompt_tokens + longest, rollout.vllm_memory_share)
    else:
        backend = HfBackend(teacher if rollout.teacher_share else None, rollout.teacher_share)
    return BackendSampler(longest, rollout.temperature, rollout.responses, backend)


def _writes_with_vllm(config: RunConfig) -> bool:
    return config.rollout.backend is Backend.vllm and config.objective.beta < 1.0


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


def _task(data: DataConfig) -> Task:
    module = TASKS[data.task]
    limits = {"train": data.train_rows, "valid": data.valid_rows, "test": data.test_rows}

    def load(split: str) -> Any:
        return module.load(
            split,
            str(data.source),
            path=data.path,
            limit=limits[split],
            seed=data.seed,
            revision=data.revision or module.REVISION,
        )

    return Task(
        name=data.task,
        load=load,
        template=data.template,
        limits=Limits(
            data.max_prompt_tokens,
            data.max_response_tokens,
            data.long_prompts.value,
            data.long_responses.value,
        ),
        scorers=scorers(
            module.METRICS,
            module.checker(str(data.source)),
            parse=getattr(module, "parse_answer", None),
        ),
        sets=tuple(data.evaluation_sets),
        load_set=partial(load_set, data.evaluation_path or "", limit=data.test_rows),
    )


def _model(model: TeacherConfig | StudentConfig, stage: StageConfig) -> ModelSpec:
    lora = model.lora
    architecture = asdict(model.architecture) | {"family": str(model.architecture.family)}
    if model.architecture.family is Family.llama:
        architecture = {name: value for name, value in architecture.items() if name not in ONLY_T5}
    return ModelSpec(
        path=model.path,
        revision=model.revision,
        dtype=model.dtype,
        architecture=architecture,
        stage=_stage(stage),
        attn_implementation=model.attn_implementation and str(model.attn_implementation),
        gradient_checkpointing=model.gradient_checkpointing,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        quantization=model.quantization if isinstance(model, TeacherConfig) else None,
        lora=Lora(lora.rank, lora.alpha, lora.dropout, tuple(lora.target_modules)) if lora.rank else None,
        layers=layers_of(model),
    )


def layers_of(model: TeacherConfig | StudentConfig) -> Layers | None:
    """Which of the teacher's layers a model starts from; None for one that is loaded or built by itself."""
    if not isinstance(model, StudentConfig) or model.path is not None or model.init is not Init.layers:
        return None
    return Layers(model.layers.count, model.layers.indices, model.layers.encoder_indices)


def _stage(stage: StageConfig) -> StageSpec:
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


def _top_k(config: RunConfig) -> TopKSpec | None:
    k = config.rollout.teacher_top_k
    if k is None or not uses_off_policy(config.objective):
        return None
    return TopKSpec(k, config.objective.teacher_temperature)


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


def _loggers(
    config: RunConfig, folder: Path, logged_config: Mapping[str, Any], run_id: str | None
) -> list[Logger]:
    wandb, objective = config.logger.wandb, objective_name(config)
    data, distance, beta = config.data.task, config.objective.distance, config.objective.beta
    settings = WandbSettings(
        mode=str(wandb.mode),
        project=wandb.project,
        entity=wandb.entity,
        group=wandb.group or f"{data}/{config.pair.name}/{config.scale}",
        job_type=objective,
        name=wandb.name or f"{objective} seed {config.seed}",
        tags=(data, config.pair.name, config.scale, str(distance), f"beta={beta:g}", *wandb.tags),
        config=logged_config,
    )
    mlflow = config.logger.mlflow
    found: list[Logger | None] = [wandb_logger(folder, settings, run_id)]
    if config.logger.tensorboard:
        found.append(tensorboard_logger(folder))
    if mlflow.enabled:
        found.append(mlflow_logger(folder, mlflow.uri, mlflow.experiment, settings))
    return [logger for logger in found if logger is not None]
