"""Text of a run: what the cache gives back is what was made, and keys name all that it depends on."""

from pathlib import Path
from typing import Any

import pytest

from amd_lightning import text
from amd_lightning.cache import Artifact, ArtifactCache
from amd_lightning.data.dolly import load
from amd_lightning.data.examples import Example, Limits
from amd_lightning.modules.optim import Optimisation
from amd_lightning.spec import ModelSpec, Task
from amd_lightning.text import Text, prepare_text
from amd_lightning.training.fitting import StageSpec

OPTIMISATION = Optimisation(1e-3, (0.9, 0.99), 0.0, 1.0, "constant", 0, 0.0)
TEACHER = ModelSpec(None, None, "float32", {"family": "t5"}, StageSpec(1, 1, 1, OPTIMISATION))
LIMITS = Limits(28, 6, "drop", "drop")


def prepared(cache: Path, limits: Limits = LIMITS, rows: int = 40) -> tuple[Text, dict[str, Artifact]]:
    def load_rows(split: str) -> list[Example]:
        found: list[Example] = load(split, "embedded", limit=rows if split == "train" else 9)  # type: ignore[arg-type]
        return found

    task = Task("dolly", load_rows, "auto", limits, {}, ("extra",), lambda _: load_rows("test")[:4])
    found: dict[str, Artifact] = {}

    def artifact(kind: str, inputs: Any, make: Any, name: str) -> Artifact:
        found[name] = ArtifactCache(cache).get_or_make(kind, inputs, make)
        return found[name]

    return prepare_text(task, TEACHER, 400, ArtifactCache(cache), artifact), found


def test_a_large_split_comes_from_the_cache_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    direct, artifacts = prepared(tmp_path)
    assert set(artifacts) == {"tokenizer"}, "few rows take less time than the look-up"
    monkeypatch.setattr(text, "CACHED_FROM", 4)
    made, artifacts = prepared(tmp_path)
    assert set(artifacts) == {"tokenizer", *(f"tokens_{name}" for name in direct.splits)}
    monkeypatch.setattr(text, "tokenise", None)  # nobody asks it again
    caplog.clear()
    found, artifacts = prepared(tmp_path)
    assert all(artifact.cached for artifact in artifacts.values())
    for other in (made, found):
        assert other.splits == direct.splits
        assert other.reports == direct.reports
    assert direct.reports["train"].dropped_prompts > 0, "the limits bite, so places matter"
    assert "prompts over 28 tokens dropped" in caplog.text, "said again, though nothing was done"


def test_the_key_names_rows_template_limits_and_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CACHED_FROM", 4)
    _, one = prepared(tmp_path)
    for other in (prepared(tmp_path, LIMITS._replace(prompt_tokens=29))[1], prepared(tmp_path, rows=41)[1]):
        assert other["tokens_train"].key != one["tokens_train"].key


def test_a_further_test_set_is_prepared_as_a_test_split(tmp_path: Path) -> None:
    found, _ = prepared(tmp_path, LIMITS._replace(prompt_tokens=14))
    assert len(found.splits["extra"]) == 4, "truncated, whatever the limits say: fewer rows are another score"
    assert found.splits["extra"] == found.splits["test"][:4]
    assert set(found.rows) == set(found.splits) == set(found.inputs) == {"train", "valid", "test", "extra"}
