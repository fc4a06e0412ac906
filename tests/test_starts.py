"""Whole runs on loaded pairs: adapters, layers of the teacher, heads of different sizes; and their keys."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from amd_lightning import starts
from amd_lightning.errors import ModelError
from amd_lightning.models.adapters import CONFIG, Lora
from amd_lightning.models.students import Layers
from amd_lightning.modules.optim import Optimisation
from amd_lightning.running.outcome import Outcome
from amd_lightning.spec import ModelSpec
from amd_lightning.training.fitting import StageSpec
from tests.helpers import tiny_run


class Pair(NamedTuple):
    """Models that a first run trained."""

    teacher: Path
    student: Path
    root: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    outcome = tiny_run(root / "run", root / "cache", "optim.student.updates=1", "pair.teacher.dtype=float32")
    found = (root / "cache" / who / outcome.keys[who] for who in ("teacher", "student_start"))
    return Pair(next(found), next(found), root)


def loaded(pair: Pair, name: str, *overrides: str) -> Outcome:
    """A run on the loaded pair, without a stage before distillation."""
    common = (
        f"pair.teacher.path={pair.teacher}",
        "optim.teacher.updates=0",
        "optim.student_start.updates=0",
        "optim.student.updates=2",
    )
    return tiny_run(pair.root / name, pair.root / "cache", *common, *overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()


# -- adapters ----------------------------------------------------------------------------------------


def test_a_student_with_adapters_leaves_them_alone_and_merged(pair: Pair) -> None:
    lora = ("pair.student.lora.rank=2", "pair.student.lora.dropout=0.1", f"pair.student.path={pair.student}")
    outcome = loaded(pair, "lora", *lora, "optim.student_start.updates=2")
    folder = pair.root / "lora"
    base, merged = weights(pair.student), weights(folder / "student")
    assert base.keys() == merged.keys()
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    assert changed
    assert not any("shared" in key or "norm" in key for key in changed)

    start = pair.root / "cache" / "student_start" / outcome.keys["student_start"]
    assert (start / CONFIG).is_file()
    assert not (start / "model.safetensors").exists()
    assert outcome.parameters["student"] == outcome.parameters["student_start"]
    adapters = json.loads((folder / "student_adapters" / CONFIG).read_text())
    assert (adapters["r"], adapters["base_model_name_or_path"]) == (2, str(pair.student))
    plain = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(pair.student), folder / "student_adapters"
    ).merge_and_unload()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(value, merged[key])
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    states = saved["optimizer_states"][0]["state"]
    assert len(states) == sum("lora_" in key for key in saved["state_dict"])  # and nothing else was trained

    again = loaded(pair, "lora_again", *lora, "optim.student_start.updates=2")
    assert again.cached["student_start"]
    assert again.evaluations["student"] == outcome.evaluations["student"]


def test_a_teacher_with_adapters_is_merged_and_its_adapters_are_a_path(pair: Pair) -> None:
    common = (f"pair.student.path={pair.student}", "pair.teacher.lora.rank=2")
    outcome = loaded(pair, "teacher_lora", *common, "optim.teacher.updates=2")
    folder = pair.root / "cache" / "teacher" / outcome.keys["teacher"]
    assert outcome.parameters["teacher"] == sum(
        value.numel() for value in AutoModelForSeq2SeqLM.from_pretrained(pair.teacher).parameters()
    )
    second = loaded(pair, "as_path", f"pair.student.path={pair.student}", f"pair.teacher.path={folder}")
    assert second.evaluations["teacher"].metrics["rouge_l"] == pytest.approx(
        outcome.evaluations["teacher"].metrics["rouge_l"]
    )


# -- layers of the teacher ---------------------------------------------------------------------------


def test_a_student_of_all_layers_starts_as_the_teacher(pair: Pair) -> None:
    outcome = loaded(pair, "layers", "pair.student.init=layers", "pair.student.layers.count=1")
    assert outcome.evaluations["student_start"].metrics["tv_off"] == pytest.approx(0.0, abs=1e-5)
    assert outcome.parameters["student_start"] == outcome.parameters["teacher"]
    assert outcome.evaluations["student"].metrics["tv_off"] > 1e-4  # type: ignore[operator]
    before, after = weights(pair.teacher), weights(pair.root / "layers" / "student")
    assert before.keys() == after.keys()
    assert not torch.equal(before["shared.weight"], after["shared.weight"])


# -- heads of different sizes ------------------------------------------------------------------------


def test_a_larger_head_is_cut_noted_and_part_of_the_keys(pair: Pair) -> None:
    wide = pair.root / "wide"
    model = AutoModelForSeq2SeqLM.from_pretrained(pair.teacher)
    size = model.config.vocab_size
    torch.manual_seed(0)
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    model.save_pretrained(wide)
    for file in pair.teacher.glob("tokenizer*"):
        (wide / file.name).write_bytes(file.read_bytes())
    common = (f"pair.student.path={pair.student}", "optim.student_start.updates=1")
    plain = loaded(pair, "plain", *common)
    cut = loaded(pair, "cut", *common, f"pair.teacher.path={wide}")
    assert plain.vocabulary == {"compared": size, "teacher_logits": size, "student_logits": size}
    assert cut.vocabulary == {"compared": size, "teacher_logits": size + 8, "student_logits": size}
    assert cut.keys["teacher_samples_test"] != plain.keys["teacher_samples_test"]
    for who in ("teacher", "student"):  # the same policies: what is left out changes no number
        for name, value in plain.evaluations[who].metrics.items():
            if "off" in name and value is not None:
                assert cut.evaluations[who].metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


# -- keys --------------------------------------------------------------------------------------------

SPEC = ModelSpec(None, None, "float32", {"d_model": 8}, StageSpec(1, 1, 1, Optimisation(0.1)))


def test_settings_that_are_left_alone_leave_no_trace_in_the_key() -> None:
    assert starts.identity(SPEC, None) == {"architecture": {"d_model": 8}}


def test_everything_that_changes_the_start_changes_its_key() -> None:
    lora = Lora(2, 4.0, 0.0, ("q",))
    specs = [
        SPEC,
        SPEC._replace(attn_implementation="eager"),
        SPEC._replace(gradient_checkpointing=True),
        SPEC._replace(quantization="4bit"),
        *(
            SPEC._replace(lora=replace(lora, **change))
            for change in ({}, {"rank": 3}, {"alpha": 5.0}, {"dropout": 0.1}, {"target_modules": ("k",)})
        ),
        SPEC._replace(layers=Layers(count=2)),
        SPEC._replace(layers=Layers(indices=[0, 1])),
        SPEC._replace(path="pypi:smollm2-135m-instruct"),
    ]
    found = {json.dumps(starts.identity(spec, "T")) for spec in specs}
    assert len(found) == len(specs)
    layered = SPEC._replace(layers=Layers(count=2))
    assert starts.identity(layered, "one") != starts.identity(layered, "other")


# -- families ----------------------------------------------------------------------------------------


def test_a_student_of_another_family_is_refused(pair: Pair) -> None:
    with pytest.raises(ModelError, match="the teacher is an encoder-decoder model and the student causal"):
        loaded(pair, "family", "pair.student.architecture.family=llama", "optim.student_start.updates=1")
