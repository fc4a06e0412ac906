"""Writing token by token: the loop around a policy's next-token logits, and the cache that it fills.

What `generate` of transformers does at every step beside the model's forward (inputs, processors, criteria,
outputs) takes longer than a small model, so sampling and greedy decoding have a loop of their own; the
random stream is `generate`'s (but see `drawn`). Beams and n-gram rules stay with `generate`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

NextLogits = Callable[[Tensor], Tensor]
"""written ids [B, t] -> next-token logits [B, V], for t = 0, 1, 2, … in turn."""

LARGE = 4096
"""From how many actions on a CPU draws by the cumulative distribution. `torch.multinomial` draws a random
number for each action of each row, 25 ns apiece there: at 50,000 actions a third of a small model's step."""


def write(
    following: NextLogits,
    rows: int,
    max_tokens: int,
    *,
    sample: bool,
    temperature: float,
    end_ids: Sequence[int],
    pad_id: int,
    device: torch.device,
) -> Tensor:
    """Write until every row has ended, or `max_tokens`. Ids [B, T]; `pad_id` behind the end of a row.

    Args:
        following: the policy, see `NextLogits`.
        sample: draw at `temperature`; otherwise take the likeliest.
    """
    written = torch.full((rows, max_tokens), pad_id, dtype=torch.long, device=device)
    ends = torch.tensor(list(end_ids), device=device)
    going_on = torch.ones(rows, dtype=torch.bool, device=device)
    for step in range(max_tokens):
        logits = following(written[:, :step])
        logits = logits.float()
        if sample:
            if temperature != 1.0:
                logits = logits / temperature
            chosen = drawn(logits.softmax(-1))
        else:
            chosen = logits.argmax(-1)
        written[:, step] = torch.where(going_on, chosen, pad_id)
        going_on &= ~torch.isin(chosen, ends)
        if not bool(going_on.any()):
            return written[:, : step + 1]
    return written


def drawn(probabilities: Tensor) -> Tensor:
    """One action a row, from its probabilities. [B, V] -> [B].

    Where actions are many and the device is a CPU: the first action at which the cumulative probability
    exceeds a uniform number, summed in float64. The law is that of `torch.multinomial`, the stream is not.
    """
    if not probabilities.is_cpu or probabilities.shape[-1] < LARGE:
        return torch.multinomial(probabilities, 1).squeeze(-1)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # Of the sum as it came out, so that rounding leaves no mass beyond the last action that has any.
    threshold = torch.rand(len(cumulative), 1, dtype=torch.float64) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


class RoomyLayer(DynamicLayer):
    """A layer's keys and values in memory that is there from the start, in place of a copy at every step.

    Args:
        room: positions it is made for; more make it grow.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._stores: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take in the states [B, H, t, D] of t more positions; all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._stores or after > self._stores[0].shape[-2]:
            self._make_room(key_states, value_states, before, after)
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., before:after, :] = states
        self.keys, self.values = (store[..., :after, :] for store in self._stores)
        return self.keys, self.values

    def _make_room(self, keys: Tensor, values: Tensor, before: int, after: int) -> None:
        self.room = max(self.room, after if not self._stores else 2 * after)
        held = (self.keys, self.values)
        self._stores = [one.new_empty(*one.shape[:-2], self.room, one.shape[-1]) for one in (keys, values)]
        if before:
            for store, states in zip(self._stores, held, strict=True):
                assert states is not None
                store[..., :before, :] = states


def roomy_cache(config: PreTrainedConfig, room: int) -> Cache:
    """A KV cache for `room` positions of a decoder; layers that keep a window of them stay transformers'."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if config.is_encoder_decoder:
        return EncoderDecoderCache(cache, DynamicCache(config=config))
    return cache
