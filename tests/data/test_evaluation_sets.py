"""Further test sets in MiniLLM's format: references of enough words, and every refusal in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.config.data import DataConfig
from amd_lightning.data.evaluation_sets import SETS, load_set
from amd_lightning.data.examples import Example
from amd_lightning.errors import DataError

LONG = "one two three four five six seven eight nine ten eleven"


def write(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_knob_names_the_sets() -> None:
    assert DataConfig.__dataclass_fields__["evaluation_sets"].metadata["choices"] == tuple(SETS)


def test_rows_have_an_input_or_none_and_one_reference_or_several(tmp_path: Path) -> None:
    one = {"instruction": "Add.", "input": "1, 2\r\n", "output": ["3", " three "], "prompt": "unused"}
    path = write(tmp_path, "self_inst.jsonl", one, {"instruction": "Say hi.", "input": "", "output": "Hi."})
    assert load_set(path, "self_inst") == [
        Example("self_inst-0", "Add.", "3", ("3", "three"), "1, 2"),
        Example("self_inst-1", "Say hi.", "Hi.", ("Hi.",)),
    ]
    assert len(load_set(path, "self_inst", limit=1)) == 1
    write(tmp_path, "vicuna.jsonl", {"instruction": "Why?", "category": "c", "output": "So."})
    assert load_set(path, "vicuna") == [Example("vicuna-0", "Why?", "So.", ("So.",))]


def test_un_ni_is_restricted_to_references_of_eleven_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"instruction": "Count.", "input": "", "output": text} for text in (LONG, LONG[:-7], LONG + " x")]
    found = load_set(write(tmp_path, "uinst_11_.jsonl", *rows), "un_ni")
    assert [row.id for row in found] == ["un_ni-0", "un_ni-2"]
    assert "left out 1 rows with references of under 11 words" in caplog.text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s_ni in .*: looked for sinst_11_\.jsonl, s_ni\.jsonl; set data"):
        load_set(str(tmp_path), "s_ni")
    path = write(tmp_path, "uinst_subset.jsonl", {"instruction": "Count.", "input": "", "output": "one"})
    with pytest.raises(DataError, match=r"no row whose references have 11 words and more.*leave un_ni out"):
        load_set(path, "un_ni")
    write(tmp_path, "vicuna.jsonl", {"instruction": "Why?", "output": [1]})
    with pytest.raises(DataError, match="the output of row 0 is neither a text nor a list"):
        load_set(path, "vicuna")


@pytest.mark.data
@pytest.mark.parametrize("name, rows", [("self_inst", 242), ("vicuna", 80), ("s_ni", 1_694)])
def test_the_real_files(data_root: Path, name: str, rows: int) -> None:
    examples = load_set(str(data_root / "minillm_eval"), name)
    assert len(examples) == rows
    assert sum(not example.prompt or not all(example.references) for example in examples) == 0
