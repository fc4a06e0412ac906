"""What Hydra's launcher starts of a point, beside what the point itself expects."""

import shutil
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from amd_lightning.errors import UserError

SLURM, LOCAL = "submitit_slurm", "submitit_local"
COMMANDS = ("srun", "sbatch")
"""What submitit looks for on this machine, and calls."""


def require_scheduler(composed: DictConfig) -> None:
    """Refuse SLURM's launcher where there is no SLURM, which submitit would notice with the sweep begun.

    Args:
        composed: what all points share, with Hydra's own section.

    Raises:
        UserError: its commands are not here.
    """
    launcher = OmegaConf.select(composed, "hydra.runtime.choices")["hydra/launcher"]
    if launcher == SLURM and not all(map(shutil.which, COMMANDS)):
        raise UserError(
            "cluster=slurm needs SLURM's srun and sbatch, and they are not on this machine's PATH: run it on "
            "a login node, or try it with cluster=submitit_local"
        )


def problems(composed: DictConfig) -> Iterator[str]:
    """What is wrong, one line each.

    A job of SLURM may start the processes (ranks) of a point itself, one a task; then they are to be as many
    as the point has devices. One task, which starts them itself (`launching`), goes with any number.

    Args:
        composed: what all points share, with Hydra's own section.
    """
    launcher = OmegaConf.select(composed, "hydra.runtime.choices")["hydra/launcher"]
    if launcher not in (SLURM, LOCAL):
        return
    tasks = int(OmegaConf.select(composed, "hydra.launcher.tasks_per_node") or 1)
    nodes = int(OmegaConf.select(composed, "hydra.launcher.nodes") or 1)
    devices, machines = composed.trainer.devices, composed.trainer.nodes
    if launcher == LOCAL and tasks > 1:
        yield (
            f"hydra.launcher.tasks_per_node={tasks}: without SLURM the processes of a point do not find each "
            f"other; leave it out, trainer.devices={tasks} starts them"
        )
    elif launcher == SLURM and not tasks == nodes == machines == 1 and (tasks, nodes) != (devices, machines):
        yield (
            f"hydra.launcher.tasks_per_node={tasks} hydra.launcher.nodes={nodes} are the processes of every "
            f"point, and it has trainer.devices={devices} trainer.nodes={machines}: make them equal, or "
            "leave tasks_per_node out, and trainer.devices=N starts N processes on one machine"
        )
