"""Torch's settings for a whole process: threads, and algorithms that repeat themselves on a GPU."""

import os
import warnings

import torch


def set_up_torch(*, threads: int | None, on_gpu: bool, deterministic: bool) -> None:
    """Before any tensor is made on a GPU.

    Some sums of torch's default algorithms for GPUs (gradients of embeddings and of chosen logits among them)
    are added as threads come, so that no run repeats another. Its deterministic ones sort first. A CPU has
    one order anyway, and keeps torch's defaults: other algorithms there would be slower, with other bits.

    Args:
        threads: of the CPU; None leaves torch's choice.
        on_gpu: whether this process computes on one.
        deterministic: whether a GPU's algorithms are to repeat themselves, wherever torch has such.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if not on_gpu:
        return
    torch.use_deterministic_algorithms(deterministic, warn_only=deterministic)
    if deterministic:
        # cuBLAS has one order of its own with a workspace of a fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # finds bugs, slowly
        # Of cumulative sums, whose rows are each added in one order; there is nothing a user could do.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
