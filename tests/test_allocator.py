"""Thresholds of glibc's malloc: set where nobody chose any, and seen in what malloc then does."""

import os
import platform
import subprocess
import sys

import pytest

from amd_lightning.running.allocator import keep_freed_memory

GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"

SCRIPT = """
import ctypes
from amd_lightning.running.allocator import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
print(keep_freed_memory())
before = libc.mallinfo2().hblkhd
libc.malloc(ctypes.c_size_t(2**24))
print(libc.mallinfo2().hblkhd - before >= 2**24)
"""


def outcome(**variables: str) -> list[str]:
    """Whether they were set, and whether 16 MiB are then mapped by themselves, in a process of its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=plain | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="glibc's own")
def test_large_pieces_stay_on_the_heap_where_nobody_chose() -> None:
    assert outcome() == ["True", "False"]


@pytest.mark.skipif(not GLIBC, reason="glibc's own")
def test_what_the_environment_says_stands() -> None:
    assert outcome(MALLOC_MMAP_THRESHOLD_="1048576") == ["False", "True"]


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"LD_PRELOAD": "libjemalloc.so"},
        {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"},
    ],
)
def test_another_choice_is_left_alone(environment: dict[str, str]) -> None:
    assert not keep_freed_memory(environment)


@pytest.mark.parametrize("name,libc", [("Darwin", "glibc"), ("Linux", "")])
def test_other_systems_and_libraries_are_left_alone(
    name: str, libc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    assert not keep_freed_memory({})
