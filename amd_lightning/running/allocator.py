"""How the C library keeps freed memory: thresholds for runs whose tensors come and go at every update.

glibc gives freed tensors back to the system, and every page is then faulted in and zeroed anew at the next
update. Larger thresholds keep them. What the environment says of malloc stands; other C libraries, other
systems and other allocators are left as they are.
"""

import ctypes
import os
import platform
from collections.abc import Mapping

THRESHOLDS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**28),
    "MALLOC_TOP_PAD_": (-2, 2**26),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**25),
}
"""The variable of the environment -> mallopt's parameter (malloc.h) and our choice, in bytes. For mmap glibc
accepts no more."""

OTHERS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Heads of variables by which a user chooses how memory is kept, or another allocator."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Set glibc's thresholds for this process, before its tensors are made. Whether they were set."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name.startswith(OTHERS) and value for name, value in environment.items()):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*given) == 1 for given in THRESHOLDS.values())
