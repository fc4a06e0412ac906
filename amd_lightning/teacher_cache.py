"""The teacher written down: its likeliest actions at every state of the stored responses, for all epochs.

Two arrays over the states of all rows, one row's behind another's, read by memory mapping:

    actions.npy     int32   [M, k]       the k likeliest
    log_probs.npy   float32 [M, k + 1]   of these and of all others together; [M, V] where k reaches V

8k + 4 bytes a state. What the lumping leaves out is measured once, see `truncation`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amd_lightning.data.examples import TokenisedExample, collate
from amd_lightning.objectives.chunked import chunk_size, chunks
from amd_lightning.objectives.coarse import coarsened, likeliest
from amd_lightning.objectives.divergences import kl, tv
from amd_lightning.policies import Policy

log = logging.getLogger(__name__)

BATCH = 64
"""Rows that a policy reads at once."""
SAMPLE = 256
"""Rows on which the truncation error is measured."""


def with_teacher(
    artifact: Callable[[str, Mapping[str, Any], Callable[[Path], None]], Path],
    examples: Sequence[TokenisedExample],
    teacher: Policy,
    student: Policy,
    *,
    keys: Mapping[str, Any],
    k: int,
    temperature: float,
    pad_id: int,
) -> tuple[list[TokenisedExample], dict[str, float]]:
    """The rows with the teacher written down at their states, and what that leaves out (`truncation`).

    Args:
        artifact: kind, inputs, make -> the folder of an artifact, made unless it is in the cache.
        examples: the stored responses.
        student: before distillation, for the truncation error alone.
        keys: what identifies "teacher", "responses" and "student_start".
        k, temperature: of the teacher.
    """
    inputs = {"teacher": keys["teacher"], "responses": keys["responses"], "k": k, "temperature": temperature}

    def write(folder: Path) -> None:
        write_down(folder, teacher, examples, k=k, temperature=temperature, pad_id=pad_id)

    rows = attach(examples, artifact("teacher_top_k", inputs, write))

    def measure(folder: Path) -> None:
        found = truncation(rows, teacher, student, temperature=temperature, pad_id=pad_id)
        (folder / "truncation.json").write_text(json.dumps(found))

    folder = artifact("truncation", {**inputs, "student_start": keys["student_start"]}, measure)
    error: dict[str, float] = json.loads((folder / "truncation.json").read_text())
    log.info(
        "the teacher's top %d leave %.2g of its mass (%.2g at most) and miss %.2g of kl's %.3g nats a token",
        *(k, error["mass_mean"], error["mass_max"], error["kl_lost"], error["kl"]),
    )
    return rows, error


@torch.no_grad()
def write_down(
    folder: Path,
    teacher: Policy,
    examples: Sequence[TokenisedExample],
    *,
    k: int,
    temperature: float,
    pad_id: int,
) -> None:
    """Ask the teacher once at every state of every row's response; `folder` gets the two arrays."""
    states = sum(len(example.response_ids) for example in examples)
    k = min(k, teacher.vocabulary_size)
    events = k + 1 if k < teacher.vocabulary_size else k

    def array(name: str, kind: type, width: int) -> np.memmap:
        return np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=(states, width))

    actions, log_probs = array("actions.npy", np.int32, k), array("log_probs.npy", np.float32, events)
    place = 0
    for start in range(0, len(examples), BATCH):
        hidden = _features(teacher, examples[start : start + BATCH], pad_id)
        for rows in chunks(len(hidden), chunk_size(teacher.vocabulary_size, on_cpu=hidden.is_cpu)):
            top, found = likeliest(teacher.log_probs(hidden[rows], temperature), k)
            actions[place : place + len(top)] = top.cpu().numpy()
            log_probs[place : place + len(top)] = found.float().cpu().numpy()
            place += len(top)
    actions.flush()
    log_probs.flush()


def attach(examples: Sequence[TokenisedExample], folder: Path) -> list[TokenisedExample]:
    """The rows, each with its part of what `write_down` left: views, nothing is read before it is needed."""
    actions = np.load(folder / "actions.npy", mmap_mode="r")
    log_probs = np.load(folder / "log_probs.npy", mmap_mode="r")
    ends = np.cumsum([len(example.response_ids) for example in examples]).tolist()
    starts = [0, *ends[:-1]]
    return [
        example._replace(top_k=(actions[start:end], log_probs[start:end]))
        for example, start, end in zip(examples, starts, ends, strict=True)
    ]


@torch.no_grad()
def truncation(
    examples: Sequence[TokenisedExample],
    teacher: Policy,
    student: Policy,
    *,
    temperature: float,
    pad_id: int,
) -> dict[str, float]:
    """What k + 1 events leave out, at the first rows' states.

    Args:
        examples: with the teacher written down.
        student: before distillation; at temperature 1.

    Returns:
        mass_mean, mass_max: of the rest, which bounds what tv may lose, over all rows;
        kl, tv: of all actions, nats a token and 0..1; kl_lost, tv_lost: how much less k + 1 events see.
    """
    found = {"mass": 0.0, "states": 0.0, "mass_max": 0.0}
    for example in examples:
        assert example.top_k is not None
        actions, log_probs = example.top_k
        if log_probs.shape[-1] > actions.shape[-1]:
            mass = np.exp(log_probs[:, -1].astype(np.float64))
            found["mass"] += float(mass.sum())
            found["mass_max"] = max(found["mass_max"], float(mass.max()))
        found["states"] += len(log_probs)
    sums = dict.fromkeys(("kl", "tv", "kl_lost", "tv_lost"), 0.0)
    sample, seen = list(islice(examples, SAMPLE)), 0
    for start in range(0, len(sample), BATCH):
        batch = sample[start : start + BATCH]
        features = [_features(policy, batch, pad_id) for policy in (teacher, student)]
        top_k = collate(batch, pad_id).top_k
        assert top_k is not None
        device = features[0].device
        size = chunk_size(teacher.vocabulary_size, on_cpu=features[0].is_cpu)
        for rows in chunks(len(features[0]), size):
            log_p = teacher.log_probs(features[0][rows], temperature)
            log_q = student.log_probs(features[1][rows])
            coarse = top_k.log_probs[rows].to(device), coarsened(log_q, top_k.actions[rows].to(device))
            for name, divergence in (("kl", kl), ("tv", tv)):
                full = float(divergence(log_p, log_q).sum())
                sums[name] += full
                sums[f"{name}_lost"] += full - float(divergence(*coarse).sum())
            seen += len(log_q)
    return {
        "mass_mean": found["mass"] / found["states"],
        "mass_max": found["mass_max"],
        **{name: total / seen for name, total in sums.items()},
    }


def _features(policy: Policy, examples: Sequence[TokenisedExample], pad_id: int) -> torch.Tensor:
    device = next(policy.parameters()).device
    return policy.hidden(collate(examples, pad_id).to(device))
