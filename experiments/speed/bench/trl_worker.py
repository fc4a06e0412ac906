"""A worker of the bench: TRL's GKDTrainer or DistillationTrainer on the pair, in the peers' environment.

    .venv-trl/bin/python experiments/speed/bench/trl_worker.py gkd|distillation PAIR OUTPUT THREADS

On-policy js at temperature 1, as ours; gradient checkpointing, on by default there, is off, and so is bf16.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from protocol import Gate
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Waits(TrainerCallback):
    """Hands over to the gate between two updates."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.gate.between_updates()

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.gate.between_updates()


def main() -> None:
    """Train until the driver ends it."""
    kind, pair, output, threads = sys.argv[1:]
    gate = Gate()
    torch.set_num_threads(int(threads))
    tokenizer = AutoTokenizer.from_pretrained(f"{pair}/student")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(f"{pair}/{who}", dtype=torch.float32)
        for who in ("student", "teacher")
    )
    rows = [json.loads(line) for line in Path(pair, "train.jsonl").read_text().splitlines()]
    prompts = [" ".join(row["dialogue"].split()[:64]) for row in rows]
    settings: dict[str, Any] = {
        "output_dir": output,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 1_000_000,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "beta": 0.5,
        "temperature": 1.0,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    trainer: Any
    if kind == "gkd":
        settings |= {"lmbda": 1.0, "max_new_tokens": 64, "max_length": 128}
        messages = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["summary"]}]
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(**settings),
            train_dataset=Dataset.from_dict({"messages": messages}),
            processing_class=tokenizer,
            callbacks=[Waits(gate)],
        )
    else:
        settings |= {"max_completion_length": 64}
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(**settings),
            train_dataset=Dataset.from_dict({"prompt": chats}),
            processing_class=tokenizer,
            callbacks=[Waits(gate)],
        )
    trainer.train()


if __name__ == "__main__":
    main()
