"""What a run will take before it is started: `python -m amd_lightning.plan +experiment=samsum scale=paper`.

Parameters, tokens and floating-point operations of an update, and the memory of one device and of several,
or of this machine where a CPU trains, for each of the run's training stages, from the models' configs alone:
nothing is downloaded, no weight is made. Of a sweep it is the point that takes most. The estimate is
`planning/`, and experiments/speed/memory.md compares it with measured peaks.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from transformers import LlamaConfig, PreTrainedConfig, T5Config

from amd_lightning import conf_dir
from amd_lightning.build import layers_of
from amd_lightning.build_method import FULL_BELOW
from amd_lightning.cli import check_command_line, one_line, validated
from amd_lightning.config.choices import Actions, Distance, Family, Features
from amd_lightning.config.pair import ModelConfig, StudentConfig, TeacherConfig
from amd_lightning.config.rules import LEARNING
from amd_lightning.config.running import StageConfig
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import UserError
from amd_lightning.models.students import shortened
from amd_lightning.objectives.chunked import chunk_size
from amd_lightning.planning import report
from amd_lightning.planning.memory import Critics, Workload, memory
from amd_lightning.planning.report import GB, Stage
from amd_lightning.planning.shapes import Adapters, ModelShape, adapters_of, config_of, shape_of
from amd_lightning.sweeps.points import parsed, plain_key, points, sweeping

GPU_GB, DEVICES = 80.0, 8
"""Where the command line says no others, and a GPU trains."""
BITS = {"8bit": 1.0, "4bit": 0.5}
"""Bytes of a quantized weight; the scales of its blocks (under a tenth) are left out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan of a command line; an error that the user can mend is one line, and status 1."""
    options, overrides = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        config, stages, of_sweep = largest(overrides, options.multirun)
        capacity, devices = _machine(config, options)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {one_line(error)}")
    except UserError as error:
        sys.exit(f"error: {error}")
    title = _title(config) + of_sweep
    if options.json:
        found = {"run": title, **report.plain(stages, capacity, devices)}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    from rich.console import Console

    Console().print(report.render(stages, capacity, devices, title), highlight=False)


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m amd_lightning.plan",
        description="What a run will take: parameters, operations and memory, and what to change where it "
        "does not fit. All lengths are taken at their limits. Of a sweep (+sweep=NAME, --multirun) "
        "the point that takes most is planned: where it fits, all do.",
        epilog="KEY=VALUE, +experiment=NAME and the rest are those of `python -m amd_lightning.run` (see its "
        "--help). Example: python -m amd_lightning.plan +experiment=dolly scale=paper pair=gpt2_xl_base",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--gpu-gb",
        type=_positive,
        help=f"memory of a GPU in 10^9 bytes [{GPU_GB:g}]; where a CPU trains, it is this machine's",
    )
    parser.add_argument(
        "--devices", type=_count, help=f"also on so many GPUs, as copies and in shards [{DEVICES}]"
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="the commas are a sweep, as in a run")
    parser.add_argument("--json", action="store_true", help="everything as JSON, in bytes and operations")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the run")
    options = parser.parse_intermixed_args(list(arguments))
    return options, options.overrides


def _positive(text: str) -> float:
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _machine(config: RunConfig, options: argparse.Namespace) -> tuple[int, int]:
    """Bytes of a device to compare with, and on how many to plan too.

    Raises:
        UserError: an option for GPUs where a CPU trains.
    """
    if not _on_cpu(config):
        return round((options.gpu_gb or GPU_GB) * GB), options.devices or DEVICES
    for name in ("gpu_gb", "devices"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} is for GPUs, and a CPU trains here: leave it out, or set "
                "trainer.accelerator=gpu"
            )
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 1


def _on_cpu(config: RunConfig) -> bool:
    """Where the run would train; a plan for a GPU needs none."""
    accelerator = config.trainer.accelerator
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def largest(overrides: Sequence[str], multirun: bool) -> tuple[RunConfig, list[Stage], str]:
    """The run that a command line asks for; of a sweep, the point of the largest peak.

    Between equal peaks (a teacher that all points share) the next stage's count. Seeds change no memory, so
    points that differ in nothing else are planned once.

    Returns:
        The run, its stages, and which point of which sweep it is, in words for its title; "" of no sweep.

    Raises:
        ConfigError, ModelError: as `configuration` and `stages_of` do, for any point.
        UserError: a search, whose points nobody knows yet.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        sweeps, of_file = sweeping(overrides, multirun, None)
    if not sweeps:
        config = configuration(overrides)
        return config, stages_of(config), ""
    check_command_line([*overrides, *(["--multirun"] if multirun else [])])
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        found = map(parsed, [*of_file, *overrides])
        if intervals := [one.get_key_element() for one in found if one.is_interval_sweep()]:
            raise UserError(
                f"a search over {', '.join(intervals)} has no points to plan: leave it out, and name values"
            )
        every = list(points([*of_file, *overrides], True))
        distinct = list(dict.fromkeys(tuple(t for t in point if plain_key(t) != "seed") for point in every))
        runs = [
            validated(compose("config", ["output_dir=.", *point]), point, refuse_ignored=False)
            for point in distinct
        ]
    planned = [stages_of(config) for config in runs]
    peaks = [sorted((memory(stage.work).peak for stage in stages), reverse=True) for stages in planned]
    at = peaks.index(max(peaks))
    own = [text for text in distinct[at] if any(text not in other for other in distinct)]
    sweep = " ".join(text for text in overrides if plain_key(text) == "sweep") or "the sweep"
    which = f"; the largest of {len(every)} points of {sweep}" + (f": {' '.join(own)}" if own else "")
    return runs[at], planned[at], which if len(every) > 1 else ""


def configuration(overrides: Sequence[str]) -> RunConfig:
    """The run that a command line asks for.

    Raises:
        ConfigError: lists everything that is wrong with it, as `run` does.
    """
    check_command_line(overrides)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validated(compose("config", ["output_dir=.", *overrides]), overrides, refuse_ignored=True)


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages that a run trains in, those of 0 updates left out.

    Raises:
        ModelError: a model whose sizes are not known here.
    """
    teacher = _sizes(config, config.pair.teacher, "teacher")
    student = _sizes(config, config.pair.student, "student")
    optim = config.optim
    first = _fine_tuning(config, *teacher, optim.teacher)
    start = _fine_tuning(config, *student, optim.student_start)
    last = _distillation(config, student, teacher)
    stages = [
        Stage("teacher", first, optim.teacher.updates, "teacher", "teacher"),
        Stage("student start", start, optim.student_start.updates, "student", "student_start"),
        Stage("distillation", last, optim.student.updates, "student", "student"),
    ]
    return [stage for stage in stages if stage.updates]


Sizes = tuple[ModelShape, Adapters | None, ModelConfig]


def _sizes(config: RunConfig, model: TeacherConfig | StudentConfig, who: str) -> Sizes:
    """A model's shape and adapters."""
    layers = layers_of(model)
    hub = shortened(_config(config, config.pair.teacher), layers) if layers else _config(config, model)
    lora, name = model.lora, model.path or f"{config.pair.name} {who}"
    adapters = adapters_of(hub, lora.rank, lora.target_modules, lora.dropout) if lora.rank else None
    return shape_of(hub, name), adapters, model


def _config(config: RunConfig, model: TeacherConfig | StudentConfig) -> PreTrainedConfig:
    return config_of(model.path, model.revision) if model.path else _built(config, model)


def _built(config: RunConfig, model: ModelConfig) -> PreTrainedConfig:
    """The config of a model that is trained from scratch, its vocabulary that of a loaded teacher."""
    sizes, path = model.architecture, config.pair.teacher.path
    vocabulary = config.pair.tokenizer.vocabulary_size
    if path:
        vocabulary = shape_of(config_of(path, config.pair.teacher.revision), path).vocabulary
    if sizes.family is Family.llama:
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=sizes.d_model,
            head_dim=sizes.d_kv,
            intermediate_size=sizes.d_ff,
            num_hidden_layers=sizes.num_decoder_layers,
            num_attention_heads=sizes.num_heads,
            tie_word_embeddings=True,
        )
    return T5Config(
        vocab_size=vocabulary,
        d_model=sizes.d_model,
        d_kv=sizes.d_kv,
        d_ff=sizes.d_ff,
        num_layers=sizes.num_layers,
        num_decoder_layers=sizes.num_decoder_layers,
        num_heads=sizes.num_heads,
        dropout_rate=sizes.dropout_rate,
        feed_forward_proj=sizes.feed_forward_proj,
    )


def _fine_tuning(
    config: RunConfig, shape: ModelShape, adapters: Adapters | None, model: ModelConfig, stage: StageConfig
) -> Workload:
    """Maximum likelihood on stored responses; nothing is answered meanwhile."""
    return Workload(
        student=shape,
        teacher=None,
        batch_size=stage.batch_size,
        micro_batch_size=stage.micro_batch_size or stage.batch_size,
        prompt_tokens=config.data.max_prompt_tokens,
        response_tokens=config.data.max_response_tokens,
        off_responses=1,
        on_responses=0,
        distance="nll",
        critics=None,
        chunk_tokens=chunk_size(shape.vocabulary, on_cpu=_on_cpu(config)),
        precision=config.trainer.precision,
        student_bytes=_bytes(model),
        checkpointing=model.gradient_checkpointing,
        adapters=adapters,
        on_cpu=_on_cpu(config),
    )


def _distillation(config: RunConfig, student: Sizes, teacher: Sizes) -> Workload:
    objective, rollout = config.objective, config.rollout
    shape, adapters, model = student
    plain = _fine_tuning(config, shape, adapters, model, config.optim.student)
    alone = objective.distance is Distance.nll and objective.beta == 1.0
    return replace(
        plain,
        teacher=None if alone else teacher[0],
        teacher_bytes=_bytes(teacher[2]),
        off_responses=int(objective.beta > 0.0),
        on_responses=rollout.responses if objective.beta < 1.0 else 0,
        distance=str(objective.distance),
        critics=_critics(config, shape, teacher[0]),
        chunk_tokens=config.trainer.chunk_tokens or plain.chunk_tokens,
        mixes_teacher=rollout.teacher_share > 0.0 and objective.beta < 1.0,
        decoded_prompts=config.evaluation.batch_size,
        beams=config.evaluation.num_beams,
    )


def _critics(config: RunConfig, student: ModelShape, teacher: ModelShape) -> Critics | None:
    """What `build.py` makes: heads that learn, with the actions that their steps look at."""
    critic, beta = config.critic, config.objective.beta
    if config.objective.distance is not Distance.moment_matching or critic.kind not in LEARNING:
        return None
    widths = {Features.both: student.width + teacher.width, Features.student: student.width}
    inputs = widths.get(critic.features, teacher.width)
    vocabulary = student.vocabulary
    parameters = critic.rank * (inputs + 1) + vocabulary * (critic.rank + 1)
    actions = {Actions.full: vocabulary, Actions.top_k: critic.top_k + 1, Actions.sampled: 2 * critic.samples}
    small = vocabulary < FULL_BELOW * critic.top_k
    chosen = actions.get(critic.actions, vocabulary if small else critic.top_k + 1)
    one = critic.shared or beta in (0.0, 1.0)
    return Critics(1 if one else 2, parameters, critic.rank, min(chosen, vocabulary), critic.steps)


def _bytes(model: ModelConfig) -> float:
    """Of a weight."""
    if isinstance(model, TeacherConfig) and model.quantization:
        return BITS[model.quantization]
    return {"float32": 4.0, "bfloat16": 2.0}[model.dtype]


def _title(config: RunConfig) -> str:
    objective = config.objective
    return (
        f"{config.data.task}, {config.pair.name}, scale={config.scale}: {objective.distance} at beta "
        f"{objective.beta:g}, {config.trainer.precision}; prompts of {config.data.max_prompt_tokens} and "
        f"responses of {config.data.max_response_tokens} tokens"
    )


if __name__ == "__main__":
    main()
