"""Networks spread over the ranks with FSDP2, and what brings them together again.

A policy is sharded a block at a time, so that a forward or backward holds one whole block; its embeddings,
last norm and head form the root group. `hidden` and `respond` count as the root's forward: they bring the
root group together, and it stays so until the backward is over. So the head is whole while its chunks run
(`objectives.chunked`), tied to the embeddings or not, and no exchange depends on how many chunks a rank has.
Critics are small and sharded in one piece.

Every rank calls each network equally often: batches have as many prompts on each, evaluation deals out work
by `ranks.turns`, and `generate` goes on until the slowest rank is through (`synced_gpus`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from amd_lightning.policies import Policy


def shard_policy(policy: Policy, mesh: DeviceMesh) -> None:
    """Spread a policy over the mesh, in place."""
    if policy.sharded:
        return
    for block in _blocks(policy.model):
        fully_shard(block, mesh=mesh)
    fully_shard(policy, mesh=mesh, reshard_after_forward=False)
    for method in ("hidden", "respond"):
        register_fsdp_forward_method(policy, method)
    _sum_gradients(policy)
    policy.sharded = True


def shard_critics(critics: nn.Module, mesh: DeviceMesh) -> None:
    """The same for the critics of a game, whose own methods are `forward` and `at`."""
    fully_shard(critics, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(critics, "at")
    _sum_gradients(critics)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer: the members of its outermost lists of modules."""
    found: list[nn.Module] = []
    above: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in above)
        if isinstance(module, nn.ModuleList) and not inside:
            above.append(name)
            found.extend(module)
    return found


def _sum_gradients(network: nn.Module) -> None:
    """Over ranks, where FSDP would take their mean: tokens carry their weight in the whole batch."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply as it sums


def whole_weights(model: nn.Module) -> dict[str, Any] | None:
    """The state of a sharded model on rank 0's CPU, nothing on others; None where it is not sharded.

    Every rank calls it.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    found = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if torch.distributed.get_rank() == 0:
            found[name] = whole.detach().cpu()
    return found


def spread_like(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state with the shards of this rank in place of tensors."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved = [place for group in state["param_groups"] for place in group["params"]]
    found = dict(state["state"])
    for place, parameter in zip(saved, own, strict=True):
        if place in found and isinstance(parameter, DTensor):
            found[place] = {name: _spread(value, parameter) for name, value in found[place].items()}
    return {**state, "state": found}


def _spread(value: Any, parameter: DTensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
