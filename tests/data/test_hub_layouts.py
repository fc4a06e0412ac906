"""The four data sets in the layouts that they have on the hub, through `datasets` against a local stub."""

import io
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from _pytest.logging import LogCaptureFixture

from amd_lightning.data import dolly, iwslt, samsum, sources, strategyqa
from amd_lightning.data.examples import Example, Split
from amd_lightning.errors import DataError, HubUnreachableError
from tests.data.hub_stub import HubStub

Rows = list[dict[str, Any]]


def csv_file(rows: Rows) -> bytes:
    lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
    return "\r\n".join([",".join(rows[0]), *lines, ""]).encode()


def jsonl_file(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_file(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def dialogues(count: int) -> Rows:
    return [{"id": f"{n}", "dialogue": f"A: {n}\r\nB: yes", "summary": f"About {n}."} for n in range(count)]


def instructions(count: int) -> Rows:
    return [
        {
            "instruction": f"Say {n}.",
            "context": "" if n % 2 else "A text.",
            "response": f"{n}",
            "category": "open_qa",
        }
        for n in range(count)
    ]


def pairs(count: int) -> Rows:
    return [{"translation": {"en": f"It is {n}.", "de": f"Es ist {n}."}} for n in range(count)]


def questions(count: int) -> Rows:
    return [
        {
            **{"qid": f"q{n}", "term": "t", "description": "d", "question": f"Is it {n}?"},
            **{"answer": n % 2 == 0, "facts": f"It is {n}. That is so"},
        }
        for n in range(count)
    ]


SIZES: dict[Split, int] = {"train": 20, "valid": 3, "test": 4}
LAYOUTS: dict[ModuleType, tuple[Mapping[str, bytes], str]] = {
    samsum: (
        {
            "README.md": b"---\nlicense: cc-by-nc-nd-4.0\n---\n",
            "train.csv": csv_file(dialogues(20)),
            "validation.csv": csv_file(dialogues(3)),
            "test.csv": csv_file(dialogues(4)),
        },
        "main",
    ),
    dolly: (
        {"databricks-dolly-15k.jsonl": jsonl_file(instructions(27)), "README.md": b"# Dolly\n"},
        dolly.REVISION,
    ),
    iwslt: (
        {
            f"{config}/{name}/0000.parquet": parquet_file(pairs(count if config == "iwslt2017-en-de" else 2))
            for config in ("iwslt2017-ar-en", "iwslt2017-en-de")
            for name, count in (("train", 20), ("validation", 3), ("test", 4))
        },
        "refs/convert/parquet",
    ),
    strategyqa: (
        {
            "data/train-00000-of-00001.parquet": parquet_file(questions(22)),
            "data/test-00000-of-00001.parquet": parquet_file(questions(4)),
        },
        "main",
    ),
}
FIRST = {
    samsum: Example("0", "A: 0\nB: yes", "About 0.", ("About 0.",)),
    dolly: Example("7", "Say 7.", "7", ("7",)),
    iwslt: Example("train-0", "It is 0.", "Es ist 0.", ("Es ist 0.",)),
    strategyqa: Example(
        "q0",
        "Is it 0?",
        "It is 0. That is so. So the answer is yes.",
        ("It is 0. That is so. So the answer is yes.",),
    ),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Online, with empty caches; the sizes that the code expects are the stub's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    sources._hub_splits.cache_clear()
    for module in (samsum, iwslt):
        monkeypatch.setattr(module, "HUB_ROWS", {split: (size,) for split, size in SIZES.items()})
    monkeypatch.setattr(strategyqa, "HUB_ROWS", {"train": (22,), "test": (4,)})
    monkeypatch.setattr(dolly, "HUB_ROWS", 27)
    held = {dolly.row_digest(row): "test" if n < 4 else "valid" for n, row in enumerate(instructions(7))}
    monkeypatch.setattr(dolly, "held_out", lambda: held)


def load(module: ModuleType, hub: HubStub, split: Split, **options: Any) -> list[Example]:
    sources._hub_splits.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
        found: list[Example] = module.load(split, "hub", **options)
    return found


def each_task(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.usefixtures("small")(
        pytest.mark.parametrize("module", LAYOUTS, ids=lambda module: module.__name__.rpartition(".")[2])(
            test
        )
    )


@each_task
def test_every_split_in_the_layout_of_the_hub(module: ModuleType) -> None:
    files, branch = LAYOUTS[module]
    with HubStub(files, branch=branch) as hub:
        found = {split: load(module, hub, split) for split in SIZES}
    sizes = SIZES if module is not strategyqa else {"train": 20, "valid": 2, "test": 4}
    assert {split: len(examples) for split, examples in found.items()} == sizes
    assert found["train"][0] == FIRST[module]
    texts = [{(example.prompt, example.context) for example in examples} for examples in found.values()]
    if module in (dolly, strategyqa):  # whose splits are made from one
        assert not texts[0] & texts[1]
    asked = f"/api/datasets/{module.HUB_ID}/revision/{branch}"
    assert ("GET", asked) in hub.requests


@each_task
@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_one_line(module: ModuleType, status: int) -> None:
    files, branch = LAYOUTS[module]
    problem = pytest.raises(DataError, match=rf"\({status}\).*data\.path=DIR")
    with HubStub(files, status, branch=branch) as hub, problem:
        load(module, hub, "train")


@each_task
def test_a_file_that_breaks_off(module: ModuleType) -> None:
    files, branch = LAYOUTS[module]
    problem = pytest.raises((HubUnreachableError, DataError), match=r"data\.path=DIR")
    with HubStub(files, "cut", branch=branch) as hub, problem:
        load(module, hub, "test")


@each_task
def test_a_slow_hub_is_waited_for(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROBE_SECONDS", 1.0)
    files, branch = LAYOUTS[module]
    with HubStub(files, "slow", branch=branch) as hub:
        assert len(load(module, hub, "test")) == 4


FEWER: dict[ModuleType, Mapping[str, bytes]] = {
    samsum: {"test.csv": csv_file(dialogues(2))},
    dolly: {"databricks-dolly-15k.jsonl": jsonl_file(instructions(2))},
    iwslt: {"iwslt2017-en-de/test/0000.parquet": parquet_file(pairs(2))},
    strategyqa: {"data/test-00000-of-00001.parquet": parquet_file(questions(2))},
}


@each_task
def test_a_split_of_another_length_is_refused_unless_the_revision_is_the_users(module: ModuleType) -> None:
    files, branch = LAYOUTS[module]
    with HubStub({**files, **FEWER[module]}, branch=branch) as hub:
        with pytest.raises(DataError, match=r"has 2 rows in .*it has changed; give a commit"):
            load(module, hub, "test")
        assert len(load(module, hub, "test", revision=hub.commit)) == 2


@pytest.mark.usefixtures("small")
def test_what_dolly_lacks_or_repeats_is_said(caplog: LogCaptureFixture) -> None:
    rows = [*instructions(27)[1:], instructions(5)[4]]
    with HubStub({"dolly.jsonl": jsonl_file(rows)}, branch=dolly.REVISION) as hub:
        assert len(load(dolly, hub, "test")) == 3
        assert len(load(dolly, hub, "train")) == 20
    assert "1 of MiniLLM's 4 rows are not among these rows" in caplog.text
    assert "left out 1 rows that repeat a held-out one" in caplog.text


@pytest.mark.usefixtures("small")
def test_a_missing_validation_split_is_said(caplog: LogCaptureFixture) -> None:
    files, branch = LAYOUTS[strategyqa]
    with HubStub(files, branch=branch) as hub:
        assert [example.id for example in load(strategyqa, hub, "valid")] == ["q20", "q21"]
    assert "the last 2 of 22 training rows are held out" in caplog.text
