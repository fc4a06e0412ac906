"""Student-written responses that serve more than once, always with the prompts that they answer.

An update that needs the student's states either has the student write (the expensive part) or takes
responses that an earlier student wrote. Those count as on-policy states: their weight is 1 − β, and β stays
a weight whoever wrote. How old they are is logged.

DistiLLM (Ko et al. 2024, arXiv 2402.03898; code) draws r once an update and takes one source for the whole
batch: written anew if r < φ(1 − t/T), replayed if r < φ, else the data. In expectation that is
φ·on + (1 − φ)·off with the on-policy half anew with probability 1 − t/T. Here φ = 1 − β is the weight itself
(`modules.adaptive.AdaptiveBeta` moves it), every update has both halves, and only "anew or replayed" is
drawn, from the buffer's own random stream, so that processes with one seed decide alike. Every rank holds the
rows of all, draws for all, and takes its part: replay on several ranks is that on one.
"""

from collections import deque
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from amd_lightning import ranks
from amd_lightning.policies import Policy
from amd_lightning.rollouts import Sampler
from amd_lightning.types import PromptBatch, Rollout


class Replay(Protocol):
    """Where the student's states of an update come from; part of what a checkpoint holds."""

    def states(
        self, sampler: Sampler, student: Policy, prompt: PromptBatch, update: int, updates: int
    ) -> Rollout:
        """As many prompts as `prompt` has, with responses of the student: these prompts, or earlier ones.

        Args:
            update, updates: the one that is being made, from 0, and how many the run has.
        """

    def metrics(self) -> dict[str, float]:
        """Of the last update: see `modules.diagnostics`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""


class Row(NamedTuple):
    """A prompt with what the student wrote to it, without padding and on the CPU."""

    prompt: Tensor
    """[P] long."""
    responses: tuple[Tensor, ...]
    """C times [T] long, up to and including EOS."""
    written: int
    """The update that wrote it, from 0."""


class ReplayBuffer:
    """The responses to the last `capacity` prompts.

    An update writes anew until the buffer is full, then with probability `refresh`; else it replays prompts
    drawn from the buffer without replacement.

    Args:
        capacity: prompts, at least as many as a batch has.
        refresh: the probability that an update writes, once the buffer is full.
        decay: `refresh` falls linearly to 0 over the run.
        shuffle: an update that writes trains on a draw from the buffer as well, after it has added to it.
        seed: of the decisions and draws.
    """

    def __init__(
        self,
        capacity: int,
        *,
        refresh: float = 1.0,
        decay: bool = False,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.rows: deque[Row] = deque(maxlen=capacity)
        self.capacity = capacity
        self.refresh = refresh
        self.decay = decay
        self.shuffle = shuffle
        self.generator = torch.Generator().manual_seed(seed)
        self.writings = 0
        self.age = 0.0

    def states(
        self, sampler: Sampler, student: Policy, prompt: PromptBatch, update: int, updates: int
    ) -> Rollout:
        """See `Replay`."""
        share = self.refresh * (1.0 - update / updates) if self.decay else self.refresh
        full = len(self.rows) == self.capacity
        drawn = torch.rand(
            (), generator=self.generator, dtype=torch.float32
        )  # bfloat16 knows no small shares
        if not full or float(drawn) < share:
            written = sampler(student, prompt)
            self.rows.extend(ranks.gathered(unpadded(written, update)))
            self.writings += 1
            if not self.shuffle:
                self.age = 0.0
                return written
        count, device = len(prompt.input_ids) * ranks.world_size(), prompt.input_ids.device
        chosen = torch.randperm(len(self.rows), generator=self.generator)[:count].tolist()
        rows = [self.rows[place] for place in chosen]
        self.age = sum(update - row.written for row in rows) / len(rows)
        return padded(rows[ranks.share(count)]).to(device)

    def metrics(self) -> dict[str, float]:
        """See `Replay`."""
        return {
            "rollout/age": self.age,
            "rollout/writings": float(self.writings),
            "rollout/buffer": float(len(self.rows)),
        }

    def state_dict(self) -> dict[str, Any]:
        """See `Replay`."""
        return {
            "rows": [(row.prompt, list(row.responses), row.written) for row in self.rows],
            "generator": self.generator.get_state(),
            "writings": self.writings,
            "age": self.age,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Replay`."""
        self.rows.clear()
        self.rows.extend(Row(prompt.cpu(), tuple(own), written) for prompt, own, written in state["rows"])
        self.generator.set_state(state["generator"].cpu())
        self.writings, self.age = state["writings"], state["age"]


class Reuse:
    """Every batch that the student writes serves `times` updates in a row (MiniLLM's inner epochs).

    Args:
        times: updates a writing, at least 1.
    """

    def __init__(self, times: int) -> None:
        self.times = times
        self.rows: list[Row] = []
        self.served = 0
        self.writings = 0
        self.age = 0.0

    def states(
        self, sampler: Sampler, student: Policy, prompt: PromptBatch, update: int, updates: int
    ) -> Rollout:
        """See `Replay`."""
        if self.rows and self.served < self.times:
            self.served += 1
            self.age = float(update - self.rows[0].written)
            own = self.rows[ranks.share(len(self.rows))]
            return padded(own).to(prompt.input_ids.device)
        written = sampler(student, prompt)
        self.rows = ranks.gathered(unpadded(written, update))
        self.served, self.age = 1, 0.0
        self.writings += 1
        return written

    def metrics(self) -> dict[str, float]:
        """See `Replay`."""
        return {"rollout/age": self.age, "rollout/writings": float(self.writings)}

    def state_dict(self) -> dict[str, Any]:
        """See `Replay`."""
        return {
            "rows": [(row.prompt, list(row.responses), row.written) for row in self.rows],
            "served": self.served,
            "writings": self.writings,
            "age": self.age,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Replay`."""
        self.rows = [Row(prompt.cpu(), tuple(own), written) for prompt, own, written in state["rows"]]
        self.served, self.writings, self.age = state["served"], state["writings"], state["age"]


def unpadded(rollout: Rollout, written: int) -> list[Row]:
    """A row for every prompt, with all of its responses."""
    rollout = rollout.to(torch.device("cpu"))
    prompts = zip(rollout.prompt.input_ids, rollout.prompt.attention_mask.bool(), strict=True)
    answers = zip(rollout.response_ids, rollout.response_mask, strict=True)
    return [
        Row(ids[mask], tuple(own[kept] for own, kept in zip(responses, masks, strict=True)), written)
        for (ids, mask), (responses, masks) in zip(prompts, answers, strict=True)
    ]


def padded(rows: list[Row]) -> Rollout:
    """The rollout of some rows, on-policy, padded anew on the right (with id 0: nothing reads padding)."""
    prompt, prompt_mask = _filled([row.prompt for row in rows])
    ids, mask = _filled([response for row in rows for response in row.responses])
    shape = (len(rows), -1)
    off_policy = torch.zeros(len(rows), len(rows[0].responses), dtype=torch.bool)
    return Rollout(
        PromptBatch(prompt, prompt_mask.long()),
        ids.unflatten(0, shape),
        mask.unflatten(0, shape),
        off_policy,
    )


def _filled(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = True
    return ids, mask
