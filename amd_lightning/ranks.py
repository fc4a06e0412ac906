"""One run on several processes (ranks): what they tell each other. With one process every function gives back
what it was given.

A batch is cut into as many parts as there are ranks, in their order, and every token carries its weight in
the whole batch; so sums over ranks are the values of one process: of gradients, losses and counts alike.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Anything = TypeVar("Anything")

BUCKET = 2**24
"""Elements of a gradient bucket: that many are copied into one piece for one exchange (64 MiB in float32)."""

POLL_S = 0.1
"""Between two looks at whether rank 0 is done with what it does by itself."""

_alone = 0
_store: Any = None
_rounds = 0


@contextmanager
def joined(
    store: Any, own: int, size: int, *, gpu: bool = False, timeout: timedelta = timedelta(minutes=30)
) -> Iterator[None]:
    """Within, this process is rank `own` of `size`.

    Args:
        store: where they meet, one of torch.distributed's.
        gpu: tensors on a GPU travel by NCCL, others by gloo.
        timeout: after which a rank gives up waiting for another within an exchange.
    """
    global _store, _rounds
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=timeout)
    _store, _rounds = store, 0
    if gpu:
        torch.cuda.set_device(local_rank())
    try:
        yield
    finally:
        _store = None
        dist.destroy_process_group()


def world_size() -> int:
    """How many ranks work together now."""
    joined = dist.is_available() and dist.is_initialized() and not _alone
    return dist.get_world_size() if joined else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of the ranks are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if world_size() > 1 else 1


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works by itself, whatever the others do."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def share(count: int) -> slice:
    """Which of so many items are this rank's: consecutive ones, none left out, none twice."""
    size, own = world_size(), rank()
    return slice(own * count // size, (own + 1) * count // size)


def total(tensor: Tensor) -> Tensor:
    """The sum over ranks."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def totals(values: Sequence[float]) -> list[float]:
    """The sums over ranks of plain numbers, the same on every rank to the last bit."""
    if world_size() == 1:
        return list(values)
    found: list[float] = total(torch.tensor(values, dtype=torch.float64)).tolist()
    return found


def summed(parts: Sequence[Tensor]) -> float:
    """The sum of scalars on a device, of all ranks; the device is waited for once."""
    found = 0.0
    for part in torch.stack(list(parts)).tolist():  # in their order, to the last bit
        found += part
    return totals([found])[0]


def largest(value: int) -> int:
    """The largest of the ranks' numbers."""
    if world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gathered(own: Sequence[Anything]) -> list[Anything]:
    """Every rank's items, one rank's behind another's; plain values and tensors on the CPU."""
    if world_size() == 1:
        return list(own)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(own))
    return [item for part in parts for item in part]


def of_first(value: Anything) -> Anything:
    """What rank 0 was given."""
    if world_size() == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def first_alone(work: Callable[[], Anything]) -> Anything:
    """What `work` gives on rank 0, which does it by itself while the others wait, for as long as it takes:
    they look at the store now and then, where an exchange would give up."""
    global _rounds
    if world_size() == 1:
        return work()
    _rounds += 1
    done = f"amd_lightning/done/{_rounds}"
    found: Any = None
    if rank() == 0:
        with alone():
            found = work()
        if _store is not None:
            _store.set(done, b"1")
    elif _store is not None:
        while not _store.check([done]):
            time.sleep(POLL_S)
    return of_first(found)


def turns(count: int) -> Iterator[tuple[int, bool]]:
    """(place, whether it counts) of this rank's among so many pieces of work, dealt out in turn.

    Every rank gets as many: where they do not come out even, the first piece stands in for one that is not
    there, so that networks which are spread over ranks are called as often on each.
    """
    for first in range(0, count, world_size()):
        place = first + rank()
        yield (place, True) if place < count else (0, False)


# -- networks ----------------------------------------------------------------------------------------


@torch.no_grad()
def sum_gradients(network: nn.Module) -> None:
    """Replace the gradient of every parameter by its sum over ranks.

    It is called once for exactly the network that is stepped, after its last backward: a step that leaves
    another network, or some of this one's parameters, without gradients waits for nobody. A parameter that
    got a gradient on no rank keeps none. Sharded parameters are left alone: FSDP has summed theirs.
    """
    if world_size() == 1:
        return
    learning = [
        parameter
        for parameter in network.parameters()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    if not learning:
        return
    present = torch.tensor([parameter.grad is not None for parameter in learning], dtype=torch.uint8)
    dist.all_reduce(present, dist.ReduceOp.MAX)
    gradients = []
    for parameter, found in zip(learning, present.tolist(), strict=True):
        if found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def whole(tensor: Tensor) -> Tensor:
    """The same tensor on every rank, where it is spread over them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def same_weights(network: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0, to the last bit."""
    if world_size() > 1:
        for tensor in (*network.parameters(), *network.buffers()):
            if not isinstance(tensor, DTensor):
                dist.broadcast(tensor.detach(), src=0)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one kind in groups of about `BUCKET` elements."""
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        bucket = kinds.setdefault((tensor.dtype, tensor.device), [])
        if bucket and sum(map(torch.numel, bucket)) + tensor.numel() > BUCKET:
            yield list(bucket)
            bucket.clear()
        bucket.append(tensor)
    yield from (bucket for bucket in kinds.values() if bucket)
