"""What the critics cost: their share of an update at a real vocabulary, by what their steps look at.

    python experiments/speed/critic_share.py [--vocabulary 32128] [--updates 3] [--rounds 2] [--threads 1]

A T5 student of 20M parameters (tied head), a teacher of twice its width, 16 prompts of 64 tokens, a stored
and a sampled response of 64 tokens to each (2,048 response tokens), K = 3.
Whole updates as the trainer runs them,
the variants in turn, `rounds` times over; the first update of each turn is not counted. The share is the time
inside critic steps, supports and the critic's forward in the student's step, over the update's.
Writes critic_share.json beside this file.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from transformers import T5Config, T5ForConditionalGeneration

from amd_lightning.critics import ClosedFormCritic, CriticHead, CriticPair, QCritic, ResidualCritic
from amd_lightning.data.examples import Example, TokenisedExample
from amd_lightning.modules.adversarial import AdversarialModule
from amd_lightning.modules.optim import Optimisation
from amd_lightning.objectives.support import full_support, sampled_support, top_k_support
from amd_lightning.policies import Policy
from amd_lightning.rollouts import BackendSampler
from amd_lightning.training.fitting import StageSpec, TrainerSpec, fit, quiet_libraries

STUDENT = 320  # width
PROMPTS, LENGTH, STEPS, RANK = 16, 64, 3, 64
SUPPORTS = {
    "full": partial(full_support, alpha=0.5),
    "top_k 64": partial(top_k_support, alpha=0.5, k=64),
    "sampled 32": partial(sampled_support, alpha=0.5, samples=32),
}
VARIANTS = ["closed_form", *SUPPORTS]


def policy(width: int, layers: int, vocabulary: int) -> Policy:
    """A T5 v1.1 with random weights that never ends a response early (no token is EOS in practice)."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=64,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=width // 64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return Policy(T5ForConditionalGeneration(config))


class Clock:
    """Seconds spent inside wrapped functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Any) -> Any:
        """The same function, on the clock."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return timed


class Updates(Callback):
    """Seconds of every update after the first, with what the clock saw in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.clock.seconds.clear()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx:
            self.rows.append({"update": time.perf_counter() - self.started, **self.clock.seconds})


def turn(variant: str, vocabulary: int, updates: int) -> list[dict[str, float]]:
    """A few updates of one variant."""
    student, teacher = policy(STUDENT, 4, vocabulary), policy(2 * STUDENT, 4, vocabulary)
    clock = Clock()

    def critic() -> QCritic:
        if variant == "closed_form":
            return ClosedFormCritic(0.5, 2.0)
        return ResidualCritic(CriticHead(STUDENT, 2 * STUDENT, vocabulary, RANK), 0.5, 2.0)

    critics = CriticPair(critic(), critic())
    module = AdversarialModule(
        student,
        teacher,
        critics=critics,
        support=clock.wrap("supports", SUPPORTS.get(variant, SUPPORTS["full"])),
        ridge=2.0,
        critic_optimisation=Optimisation(3e-3, betas=(0.5, 0.99), schedule="constant"),
        critic_steps_per_update=STEPS,
        sampler=clock.wrap("generation", BackendSampler(LENGTH)),
        beta=0.5,
        normalise="token",
        optimisation=Optimisation(1e-3, schedule="constant"),
        updates=updates,
        micro_batch_size=PROMPTS,
        log_every=10**6,
    )
    object.__setattr__(module, "critic_steps", clock.wrap("critic steps", module.critic_steps))
    object.__setattr__(critics, "forward", clock.wrap("critic in the student's step", critics.forward))
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, vocabulary, (PROMPTS * updates, 2 * LENGTH), generator=generator).tolist()
    examples = [TokenisedExample("", row[:LENGTH], row[LENGTH:], Example("", "", "", ("",))) for row in rows]
    recorded = Updates(clock)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(2)
        fit(
            module,
            examples,
            stage="bench",
            spec=StageSpec(updates, PROMPTS, PROMPTS, module.optimisation),
            trainer=TrainerSpec("cpu", "32-true", 10**6, 0, 10**6, "off"),
            seed=0,
            pad_id=0,
            folder=Path(folder),
            callbacks=[recorded],
        )
    print(f"{variant:12s} student {student.parameter_count / 1e6:.1f}M", recorded.rows[-1], flush=True)
    return recorded.rows


def main() -> None:
    """All variants in turn, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=32128)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_libraries()
    logging.getLogger("amd_lightning").setLevel(logging.WARNING)
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for variant in VARIANTS:
            rows[variant] += turn(variant, options.vocabulary, options.updates)
    table = {variant: _summary(found) for variant, found in rows.items()}
    print(
        f"\nvocabulary {options.vocabulary}, K = {STEPS}; seconds of an update (median), share of the critics"
    )
    for variant, summary in table.items():
        print(f"{variant:12s} " + "  ".join(f"{name} {value:.3f}" for name, value in summary.items()))
    result = {"options": vars(options), "variants": table}
    (Path(__file__).parent / "critic_share.json").write_text(json.dumps(result, indent=2) + "\n")


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    names = ["update", "generation", "supports", "critic steps", "critic in the student's step"]
    medians = {name: statistics.median(row.get(name, 0.0) for row in rows) for name in names}
    shares = [sum(row.get(name, 0.0) for name in names[2:]) / row["update"] for row in rows]
    without = [
        sum(row.get(name, 0.0) for name in names[2:]) / (row["update"] - row.get("generation", 0.0))
        for row in rows
    ]
    return {
        **medians,
        "share of the update": statistics.median(shares),
        "share without generation": statistics.median(without),
    }


if __name__ == "__main__":
    main()
