"""The plan of a run: its command, and the paper's four experiments as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.build import build
from amd_lightning.config.schema import RunConfig
from amd_lightning.objectives.chunked import chunk_size
from amd_lightning.plan import configuration, main, stages_of
from amd_lightning.planning.memory import PROCESS_BYTES, memory
from amd_lightning.planning.shapes import PUBLISHED
from tests.planning.test_shapes import tiny

TASKS = ["dolly", "samsum", "iwslt", "strategyqa"]
GPT2 = [f"+recipe=dolly_gpt2_xl_{size}" for size in ("base", "medium", "large")]
T5 = [f"pair=t5_v1_1_xl_{size}" for size in ("small", "base", "large")]
PAPER = [
    *(("dolly", pair) for pair in ("pair=open_llama_7b_3b", *GPT2)),
    *((task, pair) for task in TASKS[1:] for pair in T5),
]


def planned(*overrides: str) -> dict[str, Any]:
    """Stage -> its workload."""
    return {stage.name: stage.work for stage in stages_of(configuration(overrides))}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(line: str) -> str:
        main(line.split())
        return capsys.readouterr().out

    return run


# -- the paper's experiments -----------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_paper_experiment_prints_its_plan(task: str, printed: Callable[[str], str]) -> None:
    said = printed(f"+experiment={task} scale=paper")
    for words in ("trainable", "TFLOP", "activations", "KV cache", "optimizer state", "critics", "8 shards"):
        assert words in said, words
    assert "DOES NOT FIT" not in said
    assert said.count("1 device: fits") == 3


@pytest.mark.parametrize("task,pair", PAPER)
def test_every_paper_pair_fits_one_gpu_of_80_gb(task: str, pair: str, tmp_path: Path) -> None:
    config = configuration([f"+experiment={task}", "scale=paper", pair])
    config.output_dir = str(tmp_path)
    build(config, {})
    for stage in stages_of(config):
        assert stage.work.student.name in PUBLISHED
        assert memory(stage.work).peak < 80e9, stage.name
        assert stage.work.batch_size % stage.work.micro_batch_size == 0


def test_each_task_starts_with_a_pair_of_the_paper() -> None:
    started = {task: configuration([f"+experiment={task}", "scale=paper"]).pair.name for task in TASKS}
    assert started.pop("dolly") == "open_llama_7b_3b"
    assert set(started.values()) == {"t5_v1_1_xl_base"}


def test_dolly_is_distilled_as_the_field_does() -> None:
    def of(pair: str) -> RunConfig:
        return configuration(["+experiment=dolly", "scale=paper", pair])

    llama, large = of("pair=open_llama_7b_3b"), of(GPT2[2])
    assert (llama.optim.student.updates, llama.optim.student.learning_rate) == (10 * 357, 5e-4)
    assert (large.optim.student.updates, large.optim.student.learning_rate) == (10 * 357, 1e-4)
    assert (of(GPT2[0]).optim.student.updates, large.optim.teacher.learning_rate) == (20 * 357, 5e-5)
    for config in (llama, large):
        for stage in (config.optim.teacher, config.optim.student_start, config.optim.student):
            assert (stage.batch_size, stage.weight_decay, stage.clip_norm) == (32, 0.01, 1.0)
            assert stage.learning_rate * stage.final_share == pytest.approx(1e-7)
        assert config.data.max_prompt_tokens + config.data.max_response_tokens == 512
        assert config.evaluation.samples == 5
    assert (llama.pair.student.lora.rank, llama.pair.student.lora.alpha) == (16, 64.0)


# -- what the plan reads off a configuration -------------------------------------------------------


def test_the_plan_is_of_the_run_that_is_asked_for() -> None:
    stages = planned("+experiment=samsum", "objective=kd", "optim.student.micro_batch_size=8")
    assert list(stages) == ["teacher", "student start", "distillation"]
    work = stages["distillation"]
    assert (work.micro_batch_size, work.batch_size) == (8, 32)
    assert (work.off_responses, work.on_responses, work.critics) == (1, 0, None)
    assert work.chunk_tokens == chunk_size(512, on_cpu=True)
    assert stages["teacher"].teacher is None


def test_critics_are_those_that_are_built() -> None:
    critics = planned("+experiment=samsum")["distillation"].critics
    assert critics is not None
    student, teacher, vocabulary, rank = 32, 64, 512, 64
    assert critics.parameters == rank * (student + teacher + 1) + vocabulary * (rank + 1)
    assert (critics.count, critics.actions) == (2, 512)  # a small vocabulary is looked at in full
    one = planned("+experiment=samsum", "objective.beta=1", "critic.actions=top_k")["distillation"].critics
    assert one is not None
    assert (one.count, one.actions) == (1, 65)
    assert planned("+experiment=samsum", "critic=closed_form")["distillation"].critics is None


def test_a_loaded_model_that_is_not_fine_tuned_has_no_stage(tmp_path: Path) -> None:
    tiny("t5").save_pretrained(tmp_path)
    paths = [f"pair.teacher.path={tmp_path}", f"pair.student.path={tmp_path}"]
    stages = planned("+experiment=samsum", *paths, "optim.teacher.updates=0")
    assert list(stages) == ["student start", "distillation"]
    assert stages["distillation"].teacher.parameters == stages["distillation"].student.parameters


def test_a_student_of_its_teachers_layers_has_their_sizes() -> None:
    smollm2 = "+experiment=dolly", "+recipe=smollm2", "data.source=files", "data.path=DIR"
    (distillation,) = stages_of(configuration(smollm2))
    teacher, student = distillation.work.teacher, distillation.work.student
    assert teacher is not None
    assert (teacher.decoder_layers, student.decoder_layers) == (30, 6)
    assert (teacher.parameters, student.parameters) == (134_515_008, 49_552_704)
    assert teacher.vocabulary == student.vocabulary == 49_152


def test_a_built_teachers_layers_count_too() -> None:
    built = configuration(["+experiment=samsum", "pair.student.init=layers", "pair.student.layers.count=1"])
    student = stages_of(built)[-1].work.student
    assert (student.encoder_layers, student.decoder_layers) == (1, 1)
    assert student.width == built.pair.teacher.architecture.d_model


def test_number_types_count() -> None:
    quantized = ["pair.teacher.quantization=4bit", "optim.teacher.updates=0"]
    work = planned("+experiment=samsum", "scale=paper", *quantized, "pair.student.lora.rank=4")[
        "distillation"
    ]
    assert work.teacher_bytes == 0.5
    assert work.trainable < work.student.parameters / 50


# -- the command -----------------------------------------------------------------------------------


def test_json_has_the_numbers_of_the_table(printed: Callable[[str], str]) -> None:
    gpus = "--devices 4 --gpu-gb 0.001 trainer.accelerator=gpu"
    found = json.loads(printed(f"--json {gpus} +experiment=samsum"))
    assert found["capacity_bytes"] == 10**6
    stage = found["stages"][-1]
    assert [each["devices"] for each in stage["memory"]] == [1, 4, 4]
    first = stage["memory"][0]
    largest = max(sum(parts.values()) for parts in first["phases"].values())
    assert first["peak_bytes"] == sum(first["stays"].values()) + largest
    assert not first["fits"]
    assert any("micro_batch_size" in line for line in stage["advice"])


def test_a_cpu_is_compared_with_the_memory_of_this_machine(
    printed: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"SC_PHYS_PAGES": 4_000_000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    found = json.loads(printed("--json +experiment=samsum"))
    assert found["capacity_bytes"] == 4_000_000 * 4096
    for stage in found["stages"]:
        (machine,) = stage["memory"]
        assert machine["stays"]["Python and its libraries"] == PROCESS_BYTES
        assert machine["peak_bytes"] > PROCESS_BYTES
    said = printed("+experiment=samsum")
    assert said.count("this machine: fits") == 3
    assert "16.38 GB" in said
    assert not any(words in said for words in ("8 copies", "8 shards", "1 device"))
    sizes["SC_PHYS_PAGES"] = 100_000
    said = printed("+experiment=samsum")
    assert "this machine: DOES NOT FIT" in said
    assert "devices" not in said


@pytest.mark.parametrize("gpu", [False, True])
def test_auto_is_a_gpu_where_torch_sees_one(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    for accelerator, on_cpu in (("auto", not gpu), ("cpu", True), ("gpu", False)):
        work = planned("+experiment=samsum", f"trainer.accelerator={accelerator}")["distillation"]
        assert (work.on_cpu, work.chunk_tokens) == (on_cpu, chunk_size(512, on_cpu=on_cpu)), accelerator


@pytest.mark.parametrize("option", ["--gpu-gb 24", "--devices 4"])
def test_options_for_gpus_are_refused_where_a_cpu_trains(option: str) -> None:
    with pytest.raises(SystemExit, match=f"{option.split()[0]} is for GPUs.*set trainer.accelerator=gpu"):
        main([*option.split(), "+experiment=samsum"])


def test_of_a_sweep_the_largest_point_is_planned(printed: Callable[[str], str]) -> None:
    line = "+experiment=samsum scale=paper pair=t5_v1_1_xl_small,t5_v1_1_xl_large,t5_v1_1_xl_base seed=0,1"
    found = json.loads(printed(f"--json --multirun {line}"))
    assert found["run"].endswith("; the largest of 6 points of the sweep: pair=t5_v1_1_xl_large")
    alone = json.loads(printed("--json +experiment=samsum scale=paper pair=t5_v1_1_xl_large"))
    assert found["stages"] == alone["stages"]
    assert "sweep" not in alone["run"]


def test_a_sweep_by_name_is_planned_with_what_the_command_line_changes(
    printed: Callable[[str], str],
) -> None:
    line = "+experiment=samsum scale=paper +sweep=paper_table_2 pair=t5_v1_1_xl_base objective=sft,amm,kd"
    said = " ".join(printed(line).split())
    assert "the largest of 15 points of +sweep=paper_table_2: objective=amm" in said
    assert "t5_v1_1_xl_base" in said


def test_a_search_and_wrong_points_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"over optim.student.learning_rate, objective.beta.*leave it out"):
        main(["+experiment=samsum", "+sweep=optuna"])
    with pytest.raises(SystemExit, match="sweep=nothing is not an option"):
        main(["+experiment=samsum", "+sweep=nothing"])
    with pytest.raises(SystemExit, match="objective=nobody is not an option"):
        main(["-m", "+experiment=samsum", "objective=kd,nobody"])


def test_what_does_not_fit_comes_with_advice(printed: Callable[[str], str]) -> None:
    said = printed("+experiment=samsum scale=paper --gpu-gb 24 --devices 1")
    assert "DOES NOT FIT" in said
    assert "pair.teacher.gradient_checkpointing=true" in said
    assert "8 shards" not in said


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="bta is not a knob; did you mean objective"):
        main(["objective.bta=1"])
    with pytest.raises(SystemExit, match="the sizes of nobody/nothing are unknown"):
        main(["pair.teacher.path=nobody/nothing"])
    with pytest.raises(SystemExit):
        main(["--gpu-gb", "0"])
    assert "0 is not above 0" in capsys.readouterr().err


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("--gpu-gb", "--devices", "--multirun", "--json", "KEY=VALUE"))
