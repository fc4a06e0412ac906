"""What an update and a validation hold in memory, part by part, and where the peak is.

Some of it stays (weights, gradients, optimizer state, critics), the rest belongs to a phase: the student
writes its responses; a micro-batch goes forward and backward, its logits chunk by chunk; critics step;
held-out prompts are answered. The peak is what stays and the largest phase. All lengths are at their limits,
so the estimate is an upper one for text that is shorter.

Sixteen bytes a parameter for weights, gradients and AdamW in float32: Rajbhandari et al. 2020 (arXiv
1910.02054, §3.1), less their additional half-precision copy. Activations: `activations.py`.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from amd_lightning.planning.activations import NARROW, WIDE, activation_bytes
from amd_lightning.planning.shapes import Adapters, ModelShape

CHUNK_TENSORS = {
    "moment_matching": 7.5,
    "kl": 5.25,
    "rkl": 5.25,
    "js": 13.0,
    "tv": 5.0,
    "skew_kl": 10.0,
    "skew_rkl": 10.0,
    "jeffreys": 7.25,
    "akl": 8.25,
    "alpha_beta": 14.25,
    "nll": 3.0,
}
"""[n, V] float32 tensors at a chunk's peak, both policies' log-probabilities and the distance's gradient
included; counted with a dispatch mode that sees every tensor live and die."""
DIAGNOSED = 9.5
"""The same, of an update that is logged, where that is more."""
USUAL = 10.0
"""Of a distance that is not in the table."""
SUPPORT_BYTES = 8 + 3 * 4
"""Of an action in a support: its index, and difference, mixture and log-ratio."""
PROCESS_BYTES = 510_000_000
"""Of Python with this project and its libraries, nothing loaded: on a CPU they lie in the same memory.
Measured (peak resident, 507 to 515 million; Linux, Python 3.11, torch 2.13 for CPUs) by
    python -c 'import resource as r, amd_lightning.pipeline; print(r.getrusage(0).ru_maxrss * 1024)'
Loggers and pictures come on top: whole demos, planned at 0.58 GB, peaked at 0.6 to 0.8 (peak_memory_mb).
"""
CRITIC_COPIES = 4
"""Gathered rows of the critic's last layer, their gradient, and what is made of both, at a step's peak."""


@dataclass(frozen=True)
class Critics:
    """The critics that learn.

    Attributes:
        count: 2, or 1 that is shared.
        parameters: of one.
        rank: R.
        actions: M that critic steps look at; V where it is all of them.
        steps: K.
    """

    count: int
    parameters: int
    rank: int
    actions: int
    steps: int


@dataclass(frozen=True)
class Workload:
    """A training stage as plain numbers.

    Attributes:
        student: the policy that learns.
        teacher: None where no teacher takes part.
        batch_size, micro_batch_size: prompts an update, and a backward; over all devices.
        prompt_tokens, response_tokens: the longest.
        off_responses, on_responses: stored and written responses to each prompt.
        distance: a key of `CHUNK_TENSORS`.
        critics: None where none learns.
        chunk_tokens: tokens whose logits are in memory at once.
        precision: of training: "32-true", "bf16-mixed", "bf16-true".
        student_bytes, teacher_bytes: of a weight; 1 and 0.5 where quantized.
        checkpointing: gradient checkpointing of the student.
        adapters: of the student, where LoRA learns.
        teacher_adapters: parameters of the teacher's adapters.
        mixes_teacher: the teacher takes part in writing, with a KV cache of its own.
        decoded_prompts, beams: held-out prompts answered together; 0 where none are.
        devices, sharded: how many, and whether weights, gradients and optimizer state are spread over them
            (fully sharded data parallel) or copied (data parallel).
        on_cpu: the device is the machine, and its memory holds the process too.
    """

    student: ModelShape
    teacher: ModelShape | None
    batch_size: int
    micro_batch_size: int
    prompt_tokens: int
    response_tokens: int
    off_responses: int
    on_responses: int
    distance: str
    critics: Critics | None
    chunk_tokens: int
    precision: str = "32-true"
    student_bytes: float = 4
    teacher_bytes: float = 4
    checkpointing: bool = False
    adapters: Adapters | None = None
    teacher_adapters: int = 0
    mixes_teacher: bool = False
    decoded_prompts: int = 0
    beams: int = 1
    devices: int = 1
    sharded: bool = False
    on_cpu: bool = False

    @property
    def responses(self) -> int:
        """C, to each prompt."""
        return self.off_responses + self.on_responses

    @property
    def trainable(self) -> int:
        """Parameters of the student that learn."""
        return self.adapters.parameters if self.adapters else self.student.parameters

    @property
    def learned_bytes(self) -> float:
        """Of a weight that learns, of its gradient, and of each of AdamW's two moments; adapters are float32
        beside weights of any type."""
        if self.precision == "bf16-true":
            return 2
        return 4 if self.adapters else self.student_bytes

    def on(self, devices: int, sharded: bool) -> "Workload":
        """One device's part of the same update on so many."""
        batch = ceil(self.batch_size / devices)
        micro = min(self.micro_batch_size, batch)
        return replace(self, batch_size=batch, micro_batch_size=micro, devices=devices, sharded=sharded)


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        stays: part -> bytes that are held through the whole update.
        phases: phase -> part -> bytes beside them, while it lasts.
    """

    stays: dict[str, int]
    phases: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        """What stays and the largest phase."""
        return sum(self.stays.values()) + max(map(_total, self.phases.values()), default=0)

    @property
    def largest_phase(self) -> str:
        """Where the peak is."""
        return max(self.phases, key=lambda name: _total(self.phases[name]))


def memory(work: Workload) -> Memory:
    """Everything that a device holds; `work` is its part of the batch (see `Workload.on`)."""
    phases = {"a micro-batch": _micro_batch(work)}
    if work.on_responses:
        phases["writing responses"] = _writing(work)
    if work.critics:
        phases["critic steps"] = _critic_steps(work)
    if work.decoded_prompts:
        phases["validation"] = _validation(work)
    return Memory(_stays(work), {name: _whole(parts) for name, parts in phases.items()})


def _stays(work: Workload) -> dict[str, int]:
    share = work.devices if work.sharded else 1
    learned = work.learned_bytes
    weight = 2 if work.precision == "bf16-true" else work.student_bytes
    parts: dict[str, float] = {"weights": work.student.parameters * weight / share}
    if work.adapters:
        parts["weights"] += learned * work.adapters.parameters / share
    if work.teacher:
        teacher = work.teacher.parameters * work.teacher_bytes + 4 * work.teacher_adapters
        parts["teacher weights"] = teacher / share
    parts["gradients"] = learned * work.trainable / share
    parts["optimizer state"] = 2 * learned * work.trainable / share
    if work.critics:
        parts["critics"] = (
            4
            * (2 if work.precision == "bf16-true" else 4)
            * work.critics.count
            * work.critics.parameters
            / share
        )
    if work.devices > 1:
        if work.sharded:
            # The piece at work and the one that is fetched meanwhile, in the precision of products.
            parts["gathered weights"] = 2 * NARROW[work.precision] * _largest_unit(work)
        else:
            parts["gradient buckets"] = learned * work.trainable  # torch's DDP: a copy that is reduced
    if work.on_cpu:
        parts["Python and its libraries"] = PROCESS_BYTES
    return _whole(parts)


def _micro_batch(work: Workload) -> dict[str, float]:
    """A micro-batch between its forward and the end of its backward pass; what earlier ones left behind."""
    tokens = work.micro_batch_size * work.responses * work.response_tokens
    learned = work.learned_bytes
    casts = work.precision == "bf16-mixed" and work.student_bytes == 4
    activations = activation_bytes(
        work.student,
        *_sizes(work),
        work.precision,
        checkpointing=work.checkpointing,
        adapters=work.adapters,
        casts_weights=casts,
    )
    head = 0 if work.adapters else work.student.head_weights
    logits = chunk_bytes(work.student.vocabulary, min(work.chunk_tokens, tokens), work.distance)
    full = work.critics is not None and work.critics.actions == work.student.vocabulary
    busy = {
        # A layer, nothing kept.
        "teacher's forward": _teacher_forward(work),
        # Beside the head's own gradient the sum over chunks and the part that is added to it.
        "logits of a chunk": logits + (4 + learned) * head,
        # A layer again, of gradients; the head's waits to be added to its own.
        "backward of a layer": _forward(work.student, *_sizes(work), NARROW[work.precision])
        + activations.again
        + learned * head,
    }
    largest = max(busy, key=lambda name: busy[name])
    # A support of all actions: its pieces, and all of them as one.
    pieces = tokens * _support_bytes(work) if full and work.chunk_tokens < tokens else 0
    gradient = WIDE[work.precision] * tokens * work.student.width
    return {
        "activations": activations.kept,
        largest: busy[largest],
        "kept of all tokens": _kept(work) + pieces + gradient,
    }


def chunk_bytes(vocabulary: int, tokens: int, distance: str) -> float:
    """The [n, V] tensors of a chunk at its peak: of an update that is logged, where that holds more."""
    tensors = CHUNK_TENSORS.get(distance, USUAL)
    return 4 * tokens * vocabulary * (tensors if distance == "nll" else max(tensors, DIAGNOSED))


def _teacher_forward(work: Workload) -> float:
    """A layer of the teacher's at work, nothing kept."""
    if work.teacher is None:
        return 0
    return _forward(work.teacher, *_sizes(work), max(work.teacher_bytes, 2))


def _sizes(work: Workload) -> tuple[int, int, int, int]:
    """Of a micro-batch: prompts, responses to each, and their lengths."""
    return work.micro_batch_size, work.responses, work.prompt_tokens, work.response_tokens


def _forward(
    shape: ModelShape, prompts: int, responses: int, prompt_tokens: int, response_tokens: int, size: float
) -> float:
    """Bytes of a forward pass without gradients at its peak, `size` bytes an entry: the residual stream, a
    norm, and the larger of attention and feed-forward layer; the encoder's output."""
    sequences = prompts * responses
    if shape.encoder_layers:
        tokens = max(prompts * prompt_tokens, sequences * response_tokens)
        pairs = max(prompts * prompt_tokens**2, sequences * prompt_tokens * response_tokens)
    else:
        tokens = sequences * (prompt_tokens + response_tokens - 1)
        pairs = 0
    scores = 3 * pairs * shape.heads * size if shape.kind == "t5" else 0
    inner = (4 if shape.gated else 3) * shape.feed_forward * size * tokens
    attention = 4 * shape.attention * size * tokens + scores
    encoded = shape.width * size * sequences * prompt_tokens * 2 if shape.encoder_layers else 0
    return 3 * shape.width * size * tokens + max(inner, attention) + encoded


def _kept(work: Workload) -> float:
    """What the update keeps of all its tokens until critics have stepped: features of both, and supports."""
    tokens = work.batch_size * work.responses * work.response_tokens
    widths = work.student.width + (work.teacher.width if work.teacher else 0)
    return tokens * (widths * WIDE[work.precision] + _support_bytes(work))


def _support_bytes(work: Workload) -> int:
    """Of one state; a support of all actions needs no indices."""
    if work.critics is None:
        return 0
    full = work.critics.actions == work.student.vocabulary
    return work.critics.actions * (SUPPORT_BYTES - (8 if full else 0))


def _critic_steps(work: Workload) -> dict[str, float]:
    """One micro-batch in the last layer of the critics: M rows of R weights at each state, or values at every
    action."""
    assert work.critics is not None
    tokens = work.micro_batch_size * work.responses * work.response_tokens
    full = work.critics.actions == work.student.vocabulary
    per_action = 2 if full else work.critics.rank
    values = CRITIC_COPIES * 4 * tokens * work.critics.actions * per_action
    return {"critic steps": values, "kept of all tokens": _kept(work)}


def kv_cache_bytes(
    shape: ModelShape, sequences: int, prompt_tokens: int, response_tokens: int, size: float
) -> float:
    """Keys and values of every layer for everything that was read and written. A decoder with cross-attention
    keeps the prompt's and the response's apart, as many in all.

    2 · layers · key-value heads · head size · (P + T) · size a sequence: Pope et al. 2022 (arXiv 2211.05102).
    """
    entries = 2 * shape.decoder_layers * shape.key_value_heads * shape.head_size
    return entries * sequences * (prompt_tokens + response_tokens) * size


def _writing(work: Workload) -> dict[str, float]:
    """The whole batch writes at once: KV cache, and next-token scores with their softmax and draw."""
    sequences, size = work.batch_size * work.on_responses, NARROW[work.precision]
    cache = kv_cache_bytes(work.student, sequences, work.prompt_tokens, work.response_tokens, size)
    if work.mixes_teacher and work.teacher:
        size_of_teacher = max(work.teacher_bytes, 2)
        cache += kv_cache_bytes(
            work.teacher, sequences, work.prompt_tokens, work.response_tokens, size_of_teacher
        )
    prefill = _forward(work.student, sequences, 1, work.prompt_tokens, 1, NARROW[work.precision])
    return {"KV cache": cache, "reading prompts": prefill, "next-token scores": 20 * sequences * _v(work)}


def _validation(work: Workload) -> dict[str, float]:
    """Held-out prompts are answered outside of autocast, in the type of the student's weights."""
    size = max(work.student_bytes, 2)
    sequences = work.decoded_prompts * work.beams
    cache = kv_cache_bytes(work.student, sequences, work.prompt_tokens, work.response_tokens, size)
    reordered = cache / work.student.decoder_layers if work.beams > 1 else 0
    prefill = _forward(work.student, work.decoded_prompts, 1, work.prompt_tokens, 1, size)
    scores = 4 * 6 * sequences * _v(work)
    return {"KV cache": cache + reordered, "reading prompts": prefill, "next-token scores": scores}


def _v(work: Workload) -> int:
    return work.student.vocabulary


def _largest_unit(work: Workload) -> int:
    return max(work.student.largest_unit, work.teacher.largest_unit if work.teacher else 0)


def _total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _whole(parts: dict[str, float]) -> dict[str, int]:
    """Bytes, rounded up, without the parts that are not there."""
    return {name: ceil(value) for name, value in parts.items() if value > 0}
