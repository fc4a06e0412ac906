"""Memory, operations and advice on cases that are computed by hand."""

from dataclasses import replace
from typing import Any

import pytest

from amd_lightning.planning.advice import changes, devices_that_fit, largest_micro_batch
from amd_lightning.planning.compute import flops, forward_flops
from amd_lightning.planning.memory import Critics, Workload, chunk_bytes, kv_cache_bytes, memory
from amd_lightning.planning.shapes import Adapters, ModelShape, shape_of
from tests.planning.test_shapes import tiny

SHAPE = ModelShape(
    name="by hand",
    kind="llama",
    vocabulary=1000,
    width=10,
    feed_forward=30,
    heads=2,
    key_value_heads=1,
    head_size=5,
    activation="silu",
    gated=True,
    encoder_layers=0,
    decoder_layers=2,
    dropout=False,
    parameters=100_000,
    encoder_weights=0,
    decoder_weights=2_000,
    cross_weights=0,
    largest_unit=10_000,
)


def work(**changed: Any) -> Workload:
    usual: dict[str, Any] = {
        "student": SHAPE,
        "teacher": replace(SHAPE, parameters=300_000, width=20),
        "batch_size": 8,
        "micro_batch_size": 4,
        "prompt_tokens": 6,
        "response_tokens": 5,
        "off_responses": 1,
        "on_responses": 1,
        "distance": "kl",
        "critics": None,
        "chunk_tokens": 16,
    }
    return Workload(**usual | changed)


LONG = {"response_tokens": 200, "prompt_tokens": 400, "chunk_tokens": 2000}
CRITICS = Critics(count=2, parameters=5_000, rank=4, actions=65, steps=3)


def test_what_stays_is_sixteen_bytes_a_learned_parameter() -> None:
    stays = memory(work(critics=CRITICS, teacher_bytes=2)).stays
    assert stays == {
        "weights": 400_000,
        "teacher weights": 600_000,
        "gradients": 400_000,
        "optimizer state": 800_000,
        "critics": 2 * 16 * 5_000,
    }


def test_adapters_alone_have_gradients() -> None:
    adapters = Adapters(1_000, 0, 60, dropout=False)
    stays = memory(work(adapters=adapters, student_bytes=2)).stays
    assert (stays["weights"], stays["gradients"], stays["optimizer state"]) == (204_000, 4_000, 8_000)


def test_shards_hold_their_share_and_copies_a_bucket_of_gradients() -> None:
    alone = memory(work()).stays
    copies = memory(work().on(4, sharded=False)).stays
    shards = memory(work().on(4, sharded=True)).stays
    assert copies == {**alone, "gradient buckets": 400_000}
    assert {name: 4 * size for name, size in shards.items() if name in alone} == alone
    assert shards["gathered weights"] == 2 * 4 * 10_000


def test_devices_share_the_batch_and_not_the_micro_batch() -> None:
    part = work().on(4, sharded=False)
    assert (part.batch_size, part.micro_batch_size) == (2, 2)
    assert work().on(2, sharded=False).micro_batch_size == 4


def test_a_chunk_by_hand() -> None:
    assert chunk_bytes(1000, 16, "nll") == 4 * 16 * 1000 * 3
    assert chunk_bytes(1000, 16, "js") == 4 * 16 * 1000 * 13


def test_cache_by_hand() -> None:
    """Two of 2 layers, 1 head of 5, 8 responses, 11 tokens, 4 bytes."""
    assert kv_cache_bytes(SHAPE, 8, 6, 5, 4) == 2 * 2 * 1 * 5 * 8 * 11 * 4
    found = memory(work()).phases["writing responses"]
    assert found["KV cache"] == 2 * 2 * 1 * 5 * 8 * 11 * 4
    both = memory(work(mixes_teacher=True)).phases["writing responses"]
    assert both["KV cache"] == 2 * found["KV cache"]  # of the same layers and heads
    assert "writing responses" not in memory(work(on_responses=0)).phases


def test_validation_holds_every_beam() -> None:
    greedy = memory(work(decoded_prompts=16)).phases["validation"]["KV cache"]
    beams = memory(work(decoded_prompts=16, beams=5)).phases["validation"]["KV cache"]
    assert beams == 5 * greedy * 3 // 2  # and one of the 2 layers while it is put into the beams' new order
    assert "validation" not in memory(work()).phases


def test_supports_are_kept_of_the_whole_batch() -> None:
    tokens, features = 8 * 2 * 5, 4 * (10 + 20)
    small = memory(work(critics=CRITICS)).phases["critic steps"]["kept of all tokens"]
    assert small == tokens * (features + 65 * 20)
    full = replace(CRITICS, actions=1000)
    assert memory(work(critics=full)).phases["critic steps"]["kept of all tokens"] == tokens * (
        features + 1000 * 12
    )


def test_the_peak_is_what_stays_and_the_largest_phase() -> None:
    found = memory(work(critics=CRITICS, decoded_prompts=4))
    sizes = {name: sum(parts.values()) for name, parts in found.phases.items()}
    assert found.peak == sum(found.stays.values()) + max(sizes.values())
    assert sizes[found.largest_phase] == max(sizes.values())
    assert set(sizes) == {"a micro-batch", "writing responses", "critic steps", "validation"}


@pytest.mark.parametrize(
    "smaller",
    [{"micro_batch_size": 1}, {"chunk_tokens": 16}, {"checkpointing": True}, {"teacher_bytes": 2}],
    ids=str,
)
def test_what_should_lower_the_peak_does(smaller: dict[str, Any]) -> None:
    assert memory(work(**LONG | smaller)).peak < memory(work(**LONG)).peak


# -- operations ------------------------------------------------------------------------------------


def test_operations_by_hand() -> None:
    length, pairs = 10, 100
    forward = 16 * (2 * 2_000 * length + 2 * 4 * 10 * pairs)
    assert forward_flops(SHAPE, 8, 2, 6, 5) == forward
    found = flops(work())
    assert found["forward and backward"] == 3 * forward
    assert found["teacher forward"] == forward
    assert found["head"] == 3 * 2 * 80 * 10_000
    assert found["teacher's head"] == 2 * 80 * 20_000
    assert flops(work(checkpointing=True))["forward and backward"] == 4 * forward
    frozen = flops(work(adapters=Adapters(10, 0, 0, dropout=False)))
    assert (frozen["forward and backward"], frozen["head"]) == (2 * forward, 2 * 2 * 80 * 10_000)


def test_an_encoder_reads_a_prompt_once_for_all_its_responses() -> None:
    shape = shape_of(tiny("t5"), "t5")
    one, three = (forward_flops(shape, 2, responses, 6, 5) for responses in (1, 3))
    encoder = 2 * (2 * shape.encoder_weights * 6 + 3 * 4 * 36 * 36)
    assert three - encoder == 3 * (one - encoder)


def test_critics_cost_k_steps_and_a_look_at_every_action() -> None:
    hidden = 5_000 - 5 * 1000  # the first layer's: all but the last layer's weights and biases
    tokens = 80
    expected = 2 * tokens * (hidden + 4 * 1000) + 3 * 3 * 2 * tokens * (hidden + 4 * 65)
    assert flops(work(critics=CRITICS))["critics"] == expected


# -- advice ----------------------------------------------------------------------------------------


def test_advice_says_what_the_change_gives() -> None:
    stage = work(**LONG)
    found = {change.option: change.peak for change in changes(stage, capacity=10**12)}
    assert found["optim.{stage}.micro_batch_size=2"] == memory(replace(stage, micro_batch_size=2)).peak
    assert found["{student}.gradient_checkpointing=true"] == memory(replace(stage, checkpointing=True)).peak
    assert all(peak < memory(stage).peak for peak in found.values())


def test_changes_are_put_together_where_none_is_enough() -> None:
    stage = work(**LONG)
    singles = changes(stage, capacity=10**12)
    best = min(change.peak for change in singles)
    together = changes(stage, capacity=best - 1)[-1]
    assert len(together.option.split()) > 1
    assert together.peak < best


def test_devices_and_micro_batches_that_fit() -> None:
    stage = work(**LONG)
    capacity = memory(stage).peak - 1
    assert largest_micro_batch(stage, capacity) == 2
    assert largest_micro_batch(stage, 10**12) == 8
    assert largest_micro_batch(stage, 1) == 0
    found = devices_that_fit(stage, capacity)
    assert found is not None
    assert found[0] == 2
    assert found[1] == memory(stage.on(2, sharded=True)).peak <= capacity
    assert devices_that_fit(stage, 1) is None
