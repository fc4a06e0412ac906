"""Dense against chunked evaluation: seconds and peak memory of head + distance + gradient.

    python experiments/speed/objectives.py [--vocabularies 32000 152000] [--tokens 1024 4096 16384] ...

Each measurement is a process of its own (student width 512, teacher width 1024, float32): the distance and
its gradient with respect to the features and the student's head, dense and chunked in turn, `--rounds` times
over; medians. Memory is the process's peak less what it held before: weights, features, library. A dense
form that would not fit into memory is not run (and is marked so). Writes objectives.json beside this file.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from amd_lightning.objectives.chunked import chunk_size, weighted_sum
from amd_lightning.objectives.divergences import DIVERGENCES
from amd_lightning.objectives.moments import closed_form_critic, log_ratio, moment_gap

STUDENT, TEACHER = 512, 1024
DENSE_TENSORS = {"kl": 6, "moment_matching": 8}
"""Whole [N, V] tensors that the dense form holds at its peak, rounded up: to know what will not fit."""


def measure(form: str, distance: str, vocabulary: int, tokens: int) -> dict[str, float]:
    """One evaluation with its gradient, in this process."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, STUDENT, requires_grad=True)
    teacher_hidden = torch.randn(tokens, TEACHER)
    head = torch.nn.Linear(STUDENT, vocabulary, bias=False)
    teacher_head = torch.nn.Linear(TEACHER, vocabulary, bias=False).requires_grad_(False)
    weight = torch.full((tokens,), 1.0 / tokens)

    def terms(rows: slice, log_q: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            log_p = teacher_head(teacher_hidden[rows]).log_softmax(-1)
        if distance in DIVERGENCES:
            return {"distance": DIVERGENCES[distance](log_p, log_q)}
        with torch.no_grad():
            f = closed_form_critic(log_ratio(log_p, log_q), 0.5, 2.0)
        return {"distance": moment_gap(log_p.exp(), log_q.exp(), f)}

    def log_probs(features: Tensor) -> Tensor:
        return head(features).log_softmax(-1)

    before = resident()
    started = time.perf_counter()
    if form == "dense":
        loss = (weight * terms(slice(None), log_probs(hidden))["distance"]).sum()
    else:
        loss, _ = weighted_sum(
            terms, hidden, weight, log_probs, list(head.parameters()), chunk_size(vocabulary, on_cpu=True)
        )
    loss.backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "MiB": peak - before, "loss": loss.item()}


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def available() -> float:
    """MiB that a new process could take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))


def main() -> None:
    """Every size and distance, dense and chunked in turn; then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32000, 152000])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--distances", nargs="+", default=["kl", "moment_matching"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        form, distance, vocabulary, tokens = options.one
        print(json.dumps(measure(form, distance, int(vocabulary), int(tokens))))
        return
    rows = []
    print("| V | N | distance | dense s | chunked s | ratio | dense MiB | chunked MiB | ratio |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    for vocabulary in options.vocabularies:
        for tokens in options.tokens:
            for distance in options.distances:
                rows.append(_compare(distance, vocabulary, tokens, options.rounds, options.threads))
                print(_line(rows[-1]), flush=True)
                result = {"options": vars(options), "rows": rows}
                (Path(__file__).parent / "objectives.json").write_text(json.dumps(result, indent=2) + "\n")


def _compare(distance: str, vocabulary: int, tokens: int, rounds: int, threads: int) -> dict[str, object]:
    row: dict[str, object] = {"V": vocabulary, "N": tokens, "distance": distance}
    forms = ["dense", "chunked"]
    if DENSE_TENSORS.get(distance, 9) * vocabulary * tokens * 4 / 2**20 > 0.9 * available():
        forms = ["chunked"]
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form in forms:
            command = [sys.executable, __file__, "--threads", str(threads), "--one"]
            arguments = [form, distance, str(vocabulary), str(tokens)]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
            found[form].append(json.loads(done.stdout))
    for form, measured in found.items():
        for key in ("seconds", "MiB", "loss"):
            row[f"{form} {key}"] = statistics.median(one[key] for one in measured)
    return row


def _line(row: dict[str, object]) -> str:
    cells = [str(row["V"]), str(row["N"]), str(row["distance"])]
    for key, digits in (("seconds", 2), ("MiB", 0)):
        dense, chunked = row.get(f"dense {key}"), row[f"chunked {key}"]
        assert isinstance(chunked, float)
        if isinstance(dense, float):
            cells += [f"{dense:.{digits}f}", f"{chunked:.{digits}f}", f"{chunked / dense:.2f}"]
        else:
            cells += ["does not fit", f"{chunked:.{digits}f}", "–"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
