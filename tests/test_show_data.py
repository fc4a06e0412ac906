"""`python -m amd_lightning.data`: the data as the models see it, offline, without training one."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from amd_lightning import show_data

SMALL = ("data.train_rows=60", "data.valid_rows=8", "data.test_rows=8", "data.long_prompts=drop")


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["data", *arguments])
    show_data.main()
    return capsys.readouterr().out


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["data", *arguments])
    with pytest.raises(SystemExit) as caught:
        show_data.main()
    return str(caught.value.code)


@pytest.mark.parametrize("task", ["samsum", "dolly", "iwslt", "strategyqa"])
def test_rows_lengths_and_a_picture(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(
        monkeypatch,
        capsys,
        f"+experiment={task}",
        *SMALL,
        f"hydra.run.dir={tmp_path / 'here'}",
        f"cache.dir={tmp_path / 'cache'}",
    )
    assert out.startswith(f"{task} (embedded), t5_demo, scale demo\n")
    assert out.count("</s>") == 6, "three prompts and three responses, special tokens visible"
    assert [line for line in out.splitlines() if line.endswith(" rows")] == [
        "train: 60 rows",
        "valid: 8 rows",
        "test: 8 rows",
    ]
    picture = tmp_path / "here" / "lengths.png"
    assert out.rstrip().endswith(str(picture))
    with Image.open(picture) as image:
        assert min(image.size) > 300
    assert not (tmp_path / "here" / "results.json").exists()


def test_what_is_cut_is_counted_and_the_template_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out = shown(
        monkeypatch,
        capsys,
        "+experiment=dolly",
        *SMALL,
        "data.template=alpaca",
        "data.max_prompt_tokens=80",
        "cache=off",
    )
    assert "### Instruction:" in out
    assert "### Response:" in out
    dropped = next(line for line in out.splitlines() if "limit 80" in line)
    assert int(dropped.split("limit 80: ")[1].split()[0]) > 0
    assert (tmp_path / "runs" / "dolly" / "data" / "lengths.png").is_file()


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(monkeypatch, "+experiment=dolly", "--multirun").startswith(
        "error: --multirun is not for this"
    )
    assert "data.tsak is not a knob; did you mean data.task?" in refused(monkeypatch, "data.tsak=dolly")
    missing = refused(monkeypatch, "data.source=files", f"data.path={tmp_path / 'none'}")
    assert missing.startswith("error: ")
    assert "does not exist" in missing
    assert list(tmp_path.iterdir()) == []


def test_help_is_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m amd_lightning.data +experiment=dolly" in shown(monkeypatch, capsys, "--help")
