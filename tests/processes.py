"""Several ranks in a test: forked processes that join over a file."""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from amd_lightning import ranks


def on_ranks(
    count: int, work: Callable[..., Any], *arguments: Any, folder: Path, seconds: int = 60
) -> list[Any]:
    """What `work(*arguments)` returns on each of `count` ranks.

    Args:
        folder: for the files that they meet at.
        seconds: after which a rank that waits for another gives up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, count, work, arguments, folder, seconds))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds + 60)
    errors = [path.read_text() for path in sorted(folder.glob("error_*"))]
    assert not errors, "\n".join(errors)
    return [torch.load(folder / f"result_{rank}", weights_only=False) for rank in range(count)]


def _rank(
    rank: int, count: int, work: Callable[..., Any], arguments: Any, folder: Path, seconds: int
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)  # type: ignore[attr-defined]
    try:
        with ranks.joined(store, rank, count, timeout=timedelta(seconds=seconds)):
            torch.save(work(*arguments), folder / f"result_{rank}")
    except BaseException:
        (folder / f"error_{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
    finally:
        os._exit(0)
