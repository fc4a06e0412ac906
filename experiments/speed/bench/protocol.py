"""What a worker of the bench and its driver say to each other, a line at a time; standard library alone.

A worker makes updates when it is told to ("run 5"), so that two of them, in environments of their own, can
take turns. Its answers are lines of JSON behind `MARK`; whatever else it prints is somebody's chatter.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MARK = "@bench "
LIMIT_S = 900.0
"""How long a worker may take for one answer; then it is ended, and its group has failed."""


class Gate:
    """On the worker's side: `between_updates` is called before every update, and waits until it may begin."""

    def __init__(self) -> None:
        self.imported = _memory("VmRSS")
        self._seconds: list[float] | None = None
        self._cpu: list[float] = []
        self._left = 0
        self._at = self._cpu_at = 0.0
        # What libraries print goes to stderr; answers keep the pipe.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.extra: dict[str, Any] = {}

    def between_updates(self) -> None:
        """Account for the update that ended, and wait for the next command where none is left to make."""
        now, cpu = time.perf_counter(), time.process_time()
        if self._seconds is not None:
            self._seconds.append(now - self._at)
            self._cpu.append(cpu - self._cpu_at)
            self._left -= 1
        if self._left <= 0:
            found = {"seconds": self._seconds or [], "cpu_seconds": self._cpu}
            self._answer({**found, **memory(self.imported), **self.extra})
            self._seconds, self._cpu = [], []
            command = sys.stdin.readline().split()
            if not command or command[0] != "run":
                os._exit(0)  # in the middle of somebody's training loop
            self._left = int(command[1])
        self._at, self._cpu_at = time.perf_counter(), time.process_time()

    def _answer(self, content: dict[str, Any]) -> None:
        self._answers.write(MARK + json.dumps(content) + "\n")


class Worker:
    """On the driver's side: a process that makes updates when it is told to."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            bufsize=1,
            env={**os.environ, **environment},
        )
        self.ready = self._read()

    def run(self, updates: int) -> dict[str, Any]:
        """Make so many updates; their seconds, and the peak memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"run {updates}\n")
        return self._read()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        overdue = threading.Timer(LIMIT_S, self._process.kill)
        overdue.start()
        try:
            for line in self._process.stdout:
                if line.startswith(MARK):
                    answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                    return answer
        finally:
            overdue.cancel()
        tail = "\n".join(self.log.read_text().splitlines()[-15:])
        raise RuntimeError(f"the worker {self.name} ended; its log ({self.log}) ends with:\n{tail}")


def memory(imported: float) -> dict[str, float]:
    """The process's highest resident memory so far, and what it held once everything was imported. MiB."""
    return {"peak_mib": _memory("VmHWM"), "imported_mib": imported}


def _memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return float("nan")
