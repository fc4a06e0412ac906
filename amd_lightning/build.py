"""RunConfig -> objects: this file and `build_method` alone know both the configuration and the classes."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from amd_lightning.backends import require_vllm
from amd_lightning.build_method import make_fine_tuning, make_module, stage_of, writes_with_vllm
from amd_lightning.cache import ArtifactCache
from amd_lightning.config.choices import Family, Init, Writer
from amd_lightning.config.data import DataConfig
from amd_lightning.config.pair import StudentConfig, TeacherConfig
from amd_lightning.config.rules import ONLY_T5, uses_off_policy
from amd_lightning.config.running import StageConfig
from amd_lightning.config.schema import RunConfig
from amd_lightning.data import dolly, iwslt, samsum, strategyqa
from amd_lightning.data.evaluation_sets import load_set
from amd_lightning.data.examples import Limits
from amd_lightning.evaluation.decoding import Decoding
from amd_lightning.evaluation.metrics import scorers
from amd_lightning.models.adapters import Lora
from amd_lightning.models.students import Layers
from amd_lightning.running.description import objective_name
from amd_lightning.spec import EvaluationSpec, ModelSpec, RunSpec, Task, TopKSpec
from amd_lightning.training.fitting import TrainerSpec
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
    if writes_with_vllm(config):
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
        distillation=stage_of(config.optim.student),
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
        stage=stage_of(stage),
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


def _top_k(config: RunConfig) -> TopKSpec | None:
    k = config.rollout.teacher_top_k
    if k is None or not uses_off_policy(config.objective):
        return None
    return TopKSpec(k, config.objective.teacher_temperature)


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
