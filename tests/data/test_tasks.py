"""What every task file promises, and what is special to Dolly, IWSLT and StrategyQA."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from amd_lightning.config.rules import TEXT_METRICS_OF
from amd_lightning.data import dolly, iwslt, samsum, strategyqa
from amd_lightning.data.embedded import distinct_rows
from amd_lightning.data.embedded_dolly import KINDS, dolly_rows
from amd_lightning.data.embedded_iwslt import iwslt_rows
from amd_lightning.data.embedded_strategyqa import WORLD, strategyqa_rows
from amd_lightning.data.examples import Example, Split
from amd_lightning.errors import DataError

TASKS: dict[str, ModuleType] = {"samsum": samsum, "dolly": dolly, "iwslt": iwslt, "strategyqa": strategyqa}
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
each_task = pytest.mark.parametrize("module", TASKS.values(), ids=list(TASKS))


def write(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


class TestEmbedded:
    @each_task
    def test_is_a_function_of_split_number_and_seed(self, module: ModuleType) -> None:
        rows = module.load("train", "embedded", limit=60)
        assert len({row.id for row in rows}) == len(rows) == 60
        assert rows == module.load("train", "embedded", limit=120)[:60]
        assert rows != module.load("train", "embedded", limit=60, seed=1)

    @each_task
    def test_the_response_is_right_and_that_of_another_row_mostly_is_not(self, module: ModuleType) -> None:
        rows = module.load("test", "embedded", limit=100)
        right = module.checker("embedded")
        assert all(right(row.response, row.references) for row in rows)
        assert all(right(text, row.references) for row in rows for text in row.references)
        others = [right(other.response, row.references) for row, other in pairwise(rows)]
        assert sum(others) < (0.7 if module is strategyqa else 0.1) * len(others)
        assert not right("", rows[0].references)

    @each_task
    def test_splits_share_no_prompt(self, module: ModuleType) -> None:
        prompts = [
            {(row.prompt, row.context) for row in module.load(split, "embedded", limit=limit, seed=seed)}
            for split, limit, seed in (("train", 2000, 0), ("valid", 100, 0), ("test", 300, 1))
        ]
        assert not prompts[0] & prompts[1]
        assert not prompts[0] & prompts[2]

    def test_these_rows_come_in_every_process(self) -> None:
        """A cache key names (split, n, seed), so the text behind it may not depend on the process."""
        first = [rows("test", 1, 0)[0] for rows in (dolly_rows, iwslt_rows, strategyqa_rows)]
        assert [row.get("instruction") or row.get("en") or row.get("question") for row in first] == PINNED

    def test_an_exhausted_generator_says_so(self) -> None:
        with pytest.raises(DataError, match=r"no 3 different rows to generate: lower data\.valid_rows"):
            distinct_rows("valid", 3, 0, "text", lambda rng: {"text": rng.choice("ab")})

    def test_every_kind_of_instruction_comes_with_and_without_context(self) -> None:
        rows = dolly_rows("train", 700, 0)
        kinds = Counter(row["category"] for row in rows)
        assert set(kinds) == set(KINDS)
        assert min(kinds.values()) > 60
        assert 0.15 < sum(not row["context"] for row in rows) / len(rows) < 0.45

    def test_german_is_declined_and_its_verbs_are_where_they_belong(self) -> None:
        """By hand: each frame, gender, a separable prefix; the orders that are right and none else."""
        rows = {row["en"]: row["references"] for row in iwslt_rows("train", 6000, 0)}
        for english, german in TRANSLATIONS.items():
            assert rows[english] == german

    def test_the_facts_are_the_worlds_and_decide_the_answer(self) -> None:
        values = {name: {str(value) for value in things.values()} for name, things in WORLD.items()}
        assert all(len(found) > 8 for found in values.values())
        rows = strategyqa_rows("train", 500, 0)
        for row in rows:
            one, other = (int(re.findall(r"\d+", fact)[0]) for fact in row["facts"])
            assert row["answer"] == (one > other)
        assert 0.4 < sum(row["answer"] for row in rows) / len(rows) < 0.6


PINNED = ["Name the first item.", "Felix can find the big door today.", "Is the inn higher than the palace?"]
TRANSLATIONS = {
    "I know that they open a small bag today.": [
        "Ich weiß, dass sie heute eine kleine Tasche aufmachen.",
        "Ich weiß, dass sie eine kleine Tasche heute aufmachen.",
    ],
    "He opened the big map yesterday.": [
        "Er hat gestern die große Karte aufgemacht.",
        "Gestern hat er die große Karte aufgemacht.",
        "Er hat die große Karte gestern aufgemacht.",
    ],
    "Does Clara see a heavy window today?": [
        "Sieht Clara heute ein schweres Fenster?",
        "Sieht Clara ein schweres Fenster heute?",
    ],
    "They can find a new table today.": [
        "Sie können heute einen neuen Tisch finden.",
        "Heute können sie einen neuen Tisch finden.",
        "Sie können einen neuen Tisch heute finden.",
    ],
}


class TestFiles:
    @each_task
    def test_the_same_rows_from_files_are_the_same_examples(self, module: ModuleType, tmp_path: Path) -> None:
        generate = {samsum: None, dolly: dolly_rows, iwslt: iwslt_rows, strategyqa: strategyqa_rows}[module]
        if generate is None:
            pytest.skip("see test_samsum.py")
        rows = [{k: v for k, v in row.items() if k != "references"} for row in generate("valid", 20, 0)]
        found = module.load("valid", "files", path=write(tmp_path, "validation.jsonl", rows))
        embedded = module.load("valid", "embedded", limit=20)
        assert [row.response for row in found] == [row.response for row in embedded]
        assert [(row.id, row.prompt, row.context) for row in found] == [
            (row.id, row.prompt, row.context) for row in embedded
        ]
        assert all(row.references == (row.response,) for row in found)

    @each_task
    def test_only_strategyqa_can_be_checked_without_all_wordings(self, module: ModuleType) -> None:
        assert (module.checker("files") is not None) == (module is strategyqa)

    def test_a_resplit_training_file_is_said_not_to_be_official(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path, "train_resplit.jsonl", [{"en": "Yes\u00a0 it is.\n", "de": "Ja."}])
        assert iwslt.load("train", "files", path=path) == [Example("train-0", "Yes it is.", "Ja.", ("Ja.",))]
        assert "is not the official training split" in caplog.text
        with pytest.raises(DataError, match="several files"):
            iwslt.load("train", "files", path=write(tmp_path, "train.jsonl", [{"en": "a", "de": "b"}]))

    def test_a_row_without_both_languages_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, "test.jsonl", [{"en": "Yes.", "fr": "Oui."}])
        with pytest.raises(DataError, match="a row has id, en, fr: it needs en and de"):
            iwslt.load("test", "files", path=path)

    def test_without_test_answers_strategyqa_is_tested_on_its_validation_split(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        row = {"qid": "a", "question": "Is it?", "answer": True, "facts": ["It is", " So  be it! ", ""]}
        write(tmp_path, "train.jsonl", [row])
        path = write(tmp_path, "dev.jsonl", [row])
        response = "It is. So be it! So the answer is yes."
        assert strategyqa.load("test", "files", path=path) == [Example("a", "Is it?", response, (response,))]
        assert "official test answers are not public" in caplog.text
        caplog.clear()
        assert len(strategyqa.load("valid", "files", path=path)) == 1
        assert caplog.text == ""

    def test_without_a_validation_split_strategyqa_holds_out_the_last_training_rows(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [{"qid": f"{n}", "question": "Is it?", "answer": "TRUE", "facts": "It is."} for n in range(20)]
        write(tmp_path, "train.jsonl", rows)
        path = write(tmp_path, "test.jsonl", rows[:3])
        ids = {split: [row.id for row in strategyqa.load(split, "files", path=path)] for split in SPLITS}
        assert ids["valid"] == ["18", "19"]
        assert ids["train"] == [f"{n}" for n in range(18)]
        assert len(ids["test"]) == 3
        assert "the last 2 of 20 training rows are held out" in caplog.text

    @pytest.mark.parametrize(
        "change, problem",
        [
            ({"answer": "perhaps"}, "the answer of row id a is 'perhaps', neither true nor false"),
            ({"facts": [1]}, "the facts of row id a are neither a list of texts nor a text"),
        ],
    )
    def test_a_cell_that_is_neither_is_refused(self, change: dict[str, Any], problem: str) -> None:
        row = {"qid": "a", "question": "Is it?", "answer": True, "facts": ["It is."]}
        with pytest.raises(DataError, match=problem):
            strategyqa.to_example({**row, **change})


@pytest.mark.parametrize(
    "response, answer",
    [
        ("It is so. So the answer is yes.", True),
        ("so the ANSWER is: No", False),
        ("The answer is yes. But then again the answer is no.", False),
        ("Yes.", True),
        (" no", False),
        ("Yes it is.", None),
        ("The answer is yesterday.", None),
        ("", None),
    ],
)
def test_the_answer_is_read_out_of_the_response(response: str, answer: bool | None) -> None:
    assert strategyqa.parse_answer(response) is answer
    assert strategyqa.is_right(response, ["So the answer is yes."]) == (answer is True)


def test_the_rules_know_what_each_task_is_scored_by() -> None:
    known = {name: set(module.METRICS) - {"unparsed"} for name, module in TASKS.items()}
    assert {name: set(metrics) for name, metrics in TEXT_METRICS_OF.items()} == known
    assert {name: metrics[0] for name, metrics in TEXT_METRICS_OF.items()} == {
        name: module.METRICS[0] for name, module in TASKS.items()
    }


def test_dollys_held_out_rows_are_1500() -> None:
    assert Counter(dolly.held_out().values()) == {"test": 500, "valid": 1000}


REAL = [
    *(("dolly", dolly, split, rows) for split, rows in (("train", 11_435), ("valid", 1_000), ("test", 500))),
    *(("iwslt17", iwslt, split, rows) for split, rows in (("train", 6_999), ("valid", 888), ("test", 1_080))),
    *(("strategyqa", strategyqa, split, rows) for split, rows in (("train", 2_061), ("valid", 229))),
    ("strategyqa", strategyqa, "test", 229),  # the validation split
]


@pytest.mark.data
@pytest.mark.parametrize("folder, module, split, rows", REAL, ids=lambda value: str(value).split("/")[-1])
def test_the_real_files(data_root: Path, folder: str, module: ModuleType, split: Split, rows: int) -> None:
    examples = module.load(split, "files", path=str(data_root / folder))
    assert len(examples) == rows
    # Counts only: a failing comparison would print the text.
    assert sum(not example.prompt or not example.response for example in examples) == 0
    assert sum(example.references != (example.response,) for example in examples) == 0
    assert len({example.id for example in examples}) == rows
    if module is strategyqa:
        assert sum(strategyqa.parse_answer(example.response) is None for example in examples) == 0


@pytest.mark.data
def test_the_fields_split_of_the_whole_of_dolly_is_minillms(data_root: Path) -> None:
    with gzip.open(data_root / "dolly" / "databricks-dolly-15k.v15015.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    for split in ("test", "valid"):
        theirs = [row.id for row in dolly.load(split, "files", path=str(data_root / "dolly"))]
        assert [str(row["id"]) for row in dolly.field_split(rows, split)] == theirs
    train = {row["id"] for row in dolly.field_split(rows, "train")}
    assert len(train) == 15_015 - 1_500 - 3  # three repeat a held-out row
