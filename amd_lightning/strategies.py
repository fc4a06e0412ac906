"""How Lightning trains on several ranks, and which wrapper each network gets.

    network    ddp                              sharded
    student    none: gradients summed by hand   fully_shard (FSDP2) a block, embeddings and head in the root
    critics    none: gradients summed by hand   fully_shard, in one piece
    teacher    a whole one on every rank        the same, or fully_shard a block

Student and critics are stepped one after the other, each with gradients of its own. Lightning's DDP wraps the
module as a whole: a step of one network then waits for gradients of the other that never come, and needs
find_unused_parameters, a search through the graph in every backward. Here nothing is wrapped, and
`ranks.sum_gradients` exchanges the gradients of exactly the network that is stepped, once, after its last
micro-batch. They are the same bits, and weights that are counted over all ranks make a sum right where DDP
would take a mean.
"""

from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from amd_lightning import ranks


class Joined(ClusterEnvironment):
    """The ranks as they stand: `launching` has started and joined them, and Lightning starts none."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return ""

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return dist.get_world_size()

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return dist.get_rank()

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return ranks.local_rank()

    def node_rank(self) -> int:
        return ranks.rank() // ranks.local_world_size()


class UnwrappedDDP(DDPStrategy):
    """Data parallel without the wrapper; every rank begins with the weights of rank 0."""

    def configure_ddp(self) -> None:
        assert self.model is not None
        ranks.same_weights(self.model)


def trainer_options(strategy: str) -> tuple[dict[str, Any], list[Any]]:
    """What `L.Trainer` is told of devices, and the plugins that go with it.

    Args:
        strategy: of several ranks, "ddp" or "sharded".
    """
    size = ranks.world_size()
    if size == 1:
        # A rank that trains alone is no part of what a launcher's variables speak of.
        return {"devices": 1}, [LightningEnvironment()] if dist.is_initialized() else []
    here = ranks.local_world_size()
    return {"devices": here, "num_nodes": size // here, "strategy": UnwrappedDDP()}, [Joined()]
