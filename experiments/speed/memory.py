"""The memory estimate of `python -m amd_lightning.plan` against the measured peak of real updates.

    python experiments/speed/memory.py [--updates 2] [--threads 1] [--cases NAME ...]

Each case is a process of its own: it imports everything, makes an update of a tiny pair, and notes what it
then holds; then come the pair of the case and its updates, at the full length of all prompts and responses,
and the peak of resident memory above that note. Freed tensors are given back to the system at once (a fixed
MALLOC_MMAP_THRESHOLD_), or the peak would be the allocator's. Float32 on the CPU, without dropout.
Writes memory.json beside this file, case by case; memory.md has its table.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)

from amd_lightning.critics import ClosedFormCritic, CriticHead, CriticPair, QCritic, ResidualCritic
from amd_lightning.data.examples import Example, TokenisedExample
from amd_lightning.models.families import policy_for
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.base import DistillationModule
from amd_lightning.modules.divergence import DivergenceModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.chunked import chunk_size
from amd_lightning.objectives.support import full_support, top_k_support
from amd_lightning.planning.memory import Critics, Memory, Workload, memory
from amd_lightning.planning.shapes import shape_of
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.fitting import StageSpec, TrainerSpec, fit, quiet_libraries

RANK, STEPS = 64, 2
USUAL = {
    "family": "t5",
    "width": 384,
    "layers": 3,
    "teacher_width": 448,
    "vocabulary": 32128,
    "batch": 16,
    "micro": 16,
    "prompt": 128,
    "response": 32,
    "beta": 0.5,
    "distance": "moment_matching",
    "actions": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "batch 32, micro-batch 4": {"batch": 32, "micro": 4},
    "long prompts": {"prompt": 384, "batch": 8, "micro": 8},
    "vocabulary 8k": {"vocabulary": 8000},
    "all actions": {"vocabulary": 8000, "actions": 8000, "batch": 8, "micro": 8},
    "closed form": {"actions": 0},
    "beta 1": {"beta": 1.0},
    "kl": {"distance": "kl"},
    "llama": {"family": "llama"},
    "gpt2, beta 1": {"family": "gpt2", "beta": 1.0},
    "checkpointing": {"checkpointing": True, "batch": 32, "micro": 32},
}


def config_of(case: dict[str, Any], width: int) -> PreTrainedConfig:
    """Random models that never end a response early."""
    layers, heads = case["layers"], width // 64
    if case["family"] == "llama":
        return LlamaConfig(
            vocab_size=case["vocabulary"],
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
        )
    if case["family"] == "gpt2":
        free = {
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        }
        return GPT2Config(vocab_size=case["vocabulary"], n_embd=width, n_layer=layers, n_head=heads, **free)
    return T5Config(
        vocab_size=case["vocabulary"],
        d_model=width,
        d_ff=2 * width,
        d_kv=64,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )


def policy_of(case: dict[str, Any], width: int) -> Policy:
    """A policy of that config, its end token out of reach."""
    torch.manual_seed(0)
    config = config_of(case, width)
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    policy = policy_for(loader.from_config(config))
    policy.model.config.eos_token_id = case["vocabulary"] - 1
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[-1] = 0.0
    return policy


def work_of(case: dict[str, Any]) -> Workload:
    """The same case as the estimate knows it."""
    student, teacher = (shape_of(config_of(case, case[key]), key) for key in ("width", "teacher_width"))
    parameters = RANK * (student.width + teacher.width + 1 + case["vocabulary"]) + case["vocabulary"]
    moments = case["distance"] == "moment_matching"
    critics = Critics(1 if case["beta"] == 1.0 else 2, parameters, RANK, case["actions"], STEPS)
    return Workload(
        student=student,
        teacher=teacher,
        batch_size=case["batch"],
        micro_batch_size=case["micro"],
        prompt_tokens=case["prompt"],
        response_tokens=case["response"],
        off_responses=1 if case["beta"] else 0,
        on_responses=1 if case["beta"] < 1.0 else 0,
        distance=case["distance"],
        critics=critics if moments and case["actions"] else None,
        chunk_tokens=chunk_size(case["vocabulary"], on_cpu=True),
        checkpointing=case.get("checkpointing", False),
    )


def module_of(case: dict[str, Any]) -> DistillationModule:
    """The pair of a case and its method."""
    student, teacher = policy_of(case, case["width"]), policy_of(case, case["teacher_width"])
    if case.get("checkpointing"):
        student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shared: dict[str, Any] = {
        "sampler": BackendSampler(case["response"]),
        "beta": case["beta"],
        "normalise": "token",
        "optimisation": Optimisation(1e-4, schedule="constant"),
        "updates": 10,
        "micro_batch_size": case["micro"],
        "log_every": 2,
    }
    if case["distance"] != "moment_matching":
        return DivergenceModule(student, teacher, distance=case["distance"], parameters={}, **shared)

    def critic() -> QCritic:
        if not case["actions"]:
            return ClosedFormCritic(0.5, 2.0)
        head = CriticHead(student.hidden_size, teacher.hidden_size, case["vocabulary"], RANK)
        return ResidualCritic(head, 0.5, 2.0)

    full = case["actions"] == case["vocabulary"]
    first = critic()
    return AdversarialModule(
        student,
        teacher,
        critics=CriticPair(first, critic() if first.learns else first),
        support=partial(full_support, alpha=0.5)
        if full
        else partial(top_k_support, alpha=0.5, k=max(1, case["actions"])),
        ridge=2.0,
        critic_optimisation=Optimisation(3e-4, betas=(0.5, 0.99), schedule="constant"),
        critic_steps_per_update=STEPS,
        **shared,
    )


def train(case: dict[str, Any], updates: int) -> None:
    """A few updates on random text at the full lengths."""
    module = module_of(case)
    generator = torch.Generator().manual_seed(1)
    shape = (case["batch"] * updates, case["prompt"] + case["response"])
    rows = torch.randint(3, case["vocabulary"] - 2, shape, generator=generator).tolist()
    cut = case["prompt"]
    examples = [TokenisedExample("", row[:cut], row[cut:], Example("", "", "", ("",))) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        fit(
            module,
            examples,
            stage="bench",
            spec=StageSpec(updates, case["batch"], case["micro"], module.optimisation),
            trainer=TrainerSpec("cpu", "32-true", 2, 0, 10**6, "off"),
            seed=0,
            pad_id=0,
            folder=Path(folder),
        )


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(case: dict[str, Any], updates: int) -> dict[str, float]:
    """The peak of a case in this process above what it holds without the case."""
    tiny = {"width": 64, "teacher_width": 64, "layers": 2, "vocabulary": 512, "batch": 2, "micro": 2}
    train({**case, **tiny, "prompt": 8, "response": 8, "actions": min(case["actions"], 16)}, 2)
    before = resident("VmRSS")
    train(case, updates)
    return {"before": before, "measured": resident("VmHWM") - before}


def main() -> None:
    """Every case in turn, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_libraries()
    logging.getLogger("amd_lightning").setLevel(logging.WARNING)
    if options.one:
        print(json.dumps(measure(USUAL | CASES[options.one], options.updates)))
        return
    file = Path(__file__).parent / "memory.json"
    rows: dict[str, Any] = json.loads(file.read_text())["cases"] if file.exists() else {}
    for name in options.cases:
        estimate = memory(work_of(USUAL | CASES[name]))
        rows[name] = {
            **_in_process(name, options),
            "estimate": estimate.peak,
            "phase": estimate.largest_phase,
        }
        print(_row(name, rows[name]), flush=True)
        if len(options.cases) == 1:
            print(_parts(estimate))
        content = {
            "updates": options.updates,
            "cases": {known: rows[known] for known in CASES if known in rows},
        }
        file.write_text(json.dumps(content, indent=2) + "\n")


def _in_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    command = [sys.executable, __file__, "--one", name, "--updates", str(options.updates)]
    command += ["--threads", str(options.threads)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{name}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _row(name: str, row: dict[str, Any]) -> str:
    measured, estimate = row["measured"], row["estimate"]
    difference = f"{100 * (estimate / measured - 1):+.0f} %"
    return f"| {name} | {measured / 2**20:,.0f} | {estimate / 2**20:,.0f} | {difference} | {row['phase']} |"


def _parts(estimate: Memory) -> str:
    groups = {"stays": estimate.stays, **estimate.phases}
    lines = [
        f"  {group}: {name} {size / 2**20:,.0f}"
        for group, parts in groups.items()
        for name, size in parts.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
