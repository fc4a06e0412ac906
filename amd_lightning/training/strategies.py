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

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from amd_lightning import ranks
from amd_lightning.training.sharding import shard_critics, shard_policy, spread_like


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


class Sharded(ModelParallelStrategy):
    """Student and critics (and by choice the teacher) spread by FSDP2, each in a tree of its own, so that a
    step of one waits for nothing of the other. A checkpoint is one file of whole tensors, for any number of
    ranks.

    Args:
        size: ranks.
        teacher: spread it as well.
    """

    def __init__(self, size: int, teacher: bool) -> None:
        super().__init__(data_parallel_size=size, tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.teacher = teacher

    def setup(self, trainer: L.Trainer) -> None:
        module: Any = self.lightning_module
        mesh = self.device_mesh["data_parallel"]
        ranks.same_weights(module)
        module.to(self.root_device)
        shard_policy(module.student, mesh)
        if getattr(module, "critics", None) is not None and module.critics.learns:
            shard_critics(module.critics, mesh)
        if self.teacher and module.teacher is not None:
            shard_policy(module.teacher.to(self.root_device), mesh)
        super().setup(trainer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(spread_like(state, optimizer))


def trainer_options(strategy: str, sharded_teacher: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """What `L.Trainer` is told of devices, and the plugins that go with it.

    Args:
        strategy: of several ranks, "ddp" or "sharded".
    """
    size = ranks.world_size()
    if size == 1:
        # A rank that trains alone is no part of what a launcher's variables speak of. And where Lightning
        # finds SLURM by itself it saves within a signal handler, perhaps between the critics' step and the
        # student's (Lightning issue 21406): `preemption.py` has ours.
        return {"devices": 1}, [LightningEnvironment()]
    here = ranks.local_world_size()
    chosen = Sharded(size, sharded_teacher) if strategy == "sharded" else UnwrappedDDP()
    return {"devices": here, "num_nodes": size // here, "strategy": chosen}, [Joined()]
