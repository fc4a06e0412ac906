"""SAMSum: the three sources give the same kind of Examples, and bad rows are named, not swallowed."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from amd_lightning.data import samsum
from amd_lightning.data.embedded import is_correct
from amd_lightning.data.examples import Example, Split
from amd_lightning.data.loading import EMBEDDED_ROWS
from amd_lightning.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"id": "13-1", "dialogue": "Ann: hi\nBen: hello", "summary": "Ann greets Ben."},
    {"id": "13-2", "dialogue": "Carl: cake?\nAnn: yes", "summary": "Ann wants cake."},
]
EXAMPLES = [
    Example("13-1", "Ann: hi\nBen: hello", "Ann greets Ben.", ("Ann greets Ben.",)),
    Example("13-2", "Carl: cake?\nAnn: yes", "Ann wants cake.", ("Ann wants cake.",)),
]


def write(directory: Path, rows: Sequence[dict[str, Any]], split: str = "train") -> str:
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / f"{split}.jsonl").write_text("".join(lines))
    return str(directory)


class TestToExample:
    def test_one_reference(self) -> None:
        assert samsum.to_example(ROWS[0]) == EXAMPLES[0]

    def test_every_acceptable_wording(self) -> None:
        row = {**ROWS[0], "references": ["Ann greets Ben.", "Ann says hello to Ben."]}
        assert samsum.to_example(row).references == ("Ann greets Ben.", "Ann says hello to Ben.")

    def test_line_ends_and_outer_spaces(self) -> None:
        row = {"id": 7, "dialogue": " Ann: hi\r\nBen: hello\rAnn: bye\r\n", "summary": "They talk. "}
        example = samsum.to_example(row)
        assert (example.id, example.response, example.references) == ("7", "They talk.", ("They talk.",))
        assert example.prompt == "Ann: hi\nBen: hello\nAnn: bye"

    def test_a_cell_that_is_no_text_is_refused(self) -> None:
        with pytest.raises(DataError, match="dialogue of row id 13-1 is list, not text"):
            samsum.to_example({**ROWS[0], "dialogue": ["Ann: hi"]})


class TestFiles:
    def test_reads_a_split(self, tmp_path: Path) -> None:
        assert samsum.load("train", "files", path=write(tmp_path, ROWS)) == EXAMPLES

    def test_csv_gives_the_same_as_jsonl(self, tmp_path: Path) -> None:
        cells = [f'{row["id"]},"{row["dialogue"]}",{row["summary"]}\r\n' for row in ROWS]
        text = "id,dialogue,summary\r\n" + "".join(cells).replace("\nBen", "\r\nBen")
        (tmp_path / "train.csv").write_bytes(text.encode())
        assert samsum.load("train", "files", path=str(tmp_path)) == EXAMPLES

    def test_needs_a_path(self) -> None:
        with pytest.raises(DataError, match=r"data\.source=files needs data\.path=DIR"):
            samsum.load("train", "files")

    def test_a_limit_keeps_the_first_rows_and_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path, ROWS)
        with caplog.at_level(logging.INFO, "amd_lightning"):
            assert samsum.load("train", "files", path=path, limit=1) == EXAMPLES[:1]
        assert "the first 1 of 2 examples" in caplog.text

    def test_a_limit_beyond_the_end_is_no_limit(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "amd_lightning"):
            assert samsum.load("train", "files", path=write(tmp_path, ROWS), limit=2) == EXAMPLES
        assert caplog.text == ""

    @pytest.mark.parametrize("empty", ["", " \r\n", None])
    def test_an_empty_dialogue_is_left_out_with_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: str | None
    ) -> None:
        rows = [ROWS[0], {"id": "x", "dialogue": empty, "summary": "Nobody talks."}, ROWS[1]]
        assert samsum.load("train", "files", path=write(tmp_path, rows)) == EXAMPLES
        assert caplog.messages == ["SAMSum train: left out 1 rows with an empty dialogue"]
        assert samsum.load("train", "files", path=str(tmp_path), limit=2) == EXAMPLES

    @pytest.mark.parametrize("empty", ["", "  ", None])
    def test_an_empty_summary_is_refused(self, tmp_path: Path, empty: str | None) -> None:
        path = write(tmp_path, [ROWS[0], {**ROWS[1], "summary": empty}], "valid")
        with pytest.raises(DataError, match="valid: row id 13-2 has an empty summary: fill it in or remove"):
            samsum.load("valid", "files", path=path)

    def test_rows_may_share_an_id(self, tmp_path: Path) -> None:
        assert len(samsum.load("train", "files", path=write(tmp_path, [ROWS[0], ROWS[0]]))) == 2


class TestHub:
    def test_asks_for_the_readable_copy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def read_hub(*arguments: object) -> list[dict[str, Any]]:
            asked.append(arguments)
            return [{**row, "dialogue": row["dialogue"].replace("\n", "\r\n")} for row in ROWS]

        monkeypatch.setattr(samsum, "read_hub", read_hub)
        with pytest.raises(DataError, match="has 2 rows in valid at revision main, not 818"):
            samsum.load("valid", "hub")
        asked.clear()
        monkeypatch.setitem(samsum.HUB_ROWS, "valid", (2,))
        assert samsum.load("valid", "hub") == EXAMPLES
        assert samsum.load("valid", "hub", revision="abc", limit=1) == EXAMPLES[:1]
        columns = ("id", "dialogue", "summary")
        assert asked == [
            ("knkarthick/samsum", "valid", columns, "main"),
            ("knkarthick/samsum", "valid", columns, "abc"),
        ]


class TestEmbedded:
    def test_is_a_function_of_split_number_and_seed(self) -> None:
        rows = samsum.load("train", "embedded", limit=20)
        assert len(rows) == 20
        assert rows == samsum.load("train", "embedded", limit=20, seed=0)
        assert rows != samsum.load("train", "embedded", limit=20, seed=1)
        assert rows != samsum.load("valid", "embedded", limit=20)

    @pytest.mark.parametrize("split", ["train", "valid", "test"])
    def test_sizes_without_a_limit(self, split: Split) -> None:
        assert len(samsum.load(split, "embedded")) == EMBEDDED_ROWS[split]

    def test_the_response_is_one_of_the_references(self) -> None:
        for example in samsum.load("test", "embedded", limit=20):
            assert example.response in example.references
            assert is_correct(example.response, example.references)

    def test_only_generated_rows_can_be_checked(self) -> None:
        assert samsum.checker("embedded") is is_correct
        assert samsum.checker("files") is None
        assert samsum.checker("hub") is None


@pytest.mark.data
@pytest.mark.parametrize("split, rows", [("train", 14_731), ("valid", 818), ("test", 819)])
def test_the_real_files(data_root: Path, split: Split, rows: int) -> None:
    directory = data_root / "samsum"
    before = sorted(path.name for path in directory.iterdir())
    examples = samsum.load(split, "files", path=str(directory))
    assert len(examples) == rows
    # Counts only: a failing comparison would print the text.
    assert sum(not example.prompt or not example.response for example in examples) == 0
    assert sum("\r" in example.prompt + example.response for example in examples) == 0
    assert sum(example.references != (example.response,) for example in examples) == 0
    assert len({example.id for example in examples}) == rows
    assert sorted(path.name for path in directory.iterdir()) == before
