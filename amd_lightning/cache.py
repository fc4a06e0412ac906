"""A content-addressed store of what pipeline stages make: a trained teacher, its responses, ...

An artifact is a directory of files. Its key is a digest of its inputs, which the caller chooses so that
they determine the artifact exactly; asking again with equal inputs gives the stored one back. Layout:

    root/kind/key/                   a complete artifact: its files and artifact.json, the manifest
    root/kind/.key.HOST.PID.tmp/     one that process PID is making
    root/kind/.key.unfinished/       what its maker goes on from; outlives it, until the artifact is complete
    root/kind/.key.lock              held while the key is made or checked; stays, since removing it is a race
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from amd_lightning.errors import CacheError

logger = logging.getLogger(__name__)

MANIFEST = "artifact.json"
KEY_DIGITS = 20  # 80 bits: a collision among 10^9 artifacts has probability 4e-7
LOCK_TIMEOUT_S = 6 * 3600.0
ANNOUNCE_AFTER_S = 10.0  # a shorter wait is not worth a line in the log
Make = Callable[[Path], float | None]
REMEDY = "choose another directory with cache.dir=DIR, or run without it: cache=off"


@dataclass(frozen=True)
class Artifact:
    """A stored artifact, checked or made a moment ago. Read from `path`, never write there."""

    kind: str
    key: str
    path: Path
    seconds: float  # how long making it took, also when it was made by an earlier run
    cached: bool  # whether it was there already


class ArtifactCache:
    """Artifacts under `root`, shared by any number of processes on any number of machines.

    root: made when it is first needed.
    lock_timeout: seconds to wait for another process that makes the same artifact.
    """

    def __init__(self, root: Path, lock_timeout: float = LOCK_TIMEOUT_S) -> None:
        self.root = root.absolute()
        self.lock_timeout = lock_timeout

    def get_or_make(self, kind: str, inputs: Mapping[str, Any], make: Make) -> Artifact:
        """The artifact of these inputs: the stored one if it is sound, else a new one.

        kind: a word such as `teacher`; it names the directory.
        inputs: JSON-able, and exactly what determines the artifact.
        make: writes the artifact's files into the empty directory it is given. If it raises, nothing stays
            but what it put into `unfinished`. It may return how many seconds went into that before.

        Raises TypeError for inputs that are not JSON, CacheError if the directory cannot be used or another
        process holds the lock for longer than `lock_timeout`, and whatever `make` raises.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", kind):
            raise ValueError(f"kind is a lower-case word, not {kind!r}")
        key = key_of(inputs)
        with self._locked(kind, key):
            seconds = self._seconds_if_sound(kind, key)
            cached = seconds is not None
            if seconds is None:
                seconds = self._make(kind, key, inputs, make)
            shutil.rmtree(self.unfinished(kind, inputs), ignore_errors=True)
            return Artifact(kind, key, self.root / kind / key, seconds, cached)

    def unfinished(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """The directory (made by whom needs it) of what `make` would lose if it were ended: the next process
        that makes this artifact finds it there. Only to be used within `make`, under the key's lock."""
        return self.root / kind / f".{key_of(inputs)}.unfinished"

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turns an operating system's refusal into an error that the user can act on."""
        try:
            yield
        except OSError as error:
            raise CacheError(f"the artifact cache {self.root} cannot be used ({error}): {REMEDY}") from error

    @contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[None]:
        """Holds the key's lock; unfinished work found under it belongs to dead processes and is removed."""
        folder = self.root / kind
        lock = FileLock(folder / f".{key}.lock")
        with self._usable():
            folder.mkdir(parents=True, exist_ok=True)
            self._acquire(lock, kind, key)
        try:
            with self._usable():
                for leftover in folder.glob(f".{key}.*.tmp"):
                    _remove(leftover)
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, kind: str, key: str) -> None:
        patience = min(ANNOUNCE_AFTER_S, self.lock_timeout)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            maker = self._maker(kind, key)
            logger.info("waiting for %s, which holds %s %s", maker, kind, key)
        else:
            return
        try:
            lock.acquire(timeout=self.lock_timeout - patience, poll_interval=0.25)
        except Timeout as error:
            raise CacheError(
                f"{maker} has held {kind} {key} in {self.root} for over {self.lock_timeout:.0f} s: "
                f"end it if it hangs; otherwise {REMEDY}"
            ) from error

    def _maker(self, kind: str, key: str) -> str:
        """Whoever is making the key, in words, as far as the name of its temporary directory tells."""
        for path in (self.root / kind).glob(f".{key}.*.tmp"):
            host, pid = path.name.removeprefix(f".{key}.").removesuffix(".tmp").rsplit(".", 1)
            return f"process {pid} on {host}"
        return "another process"

    def _seconds_if_sound(self, kind: str, key: str) -> float | None:
        """How long the stored artifact took to make; None if there is none, or none any more."""
        path = self.root / kind / key
        if not os.path.lexists(path):
            return None
        try:
            return _verify(path, kind, key)
        except _CorruptedError as problem:
            logger.warning("the artifact %s is corrupted (%s): it is removed and made again", path, problem)
        with self._usable():
            # Moved aside first, so that a kill in the middle of the removal leaves no half of an artifact.
            _remove(path.rename(self._temporary(kind, key)))
        return None

    def _temporary(self, kind: str, key: str) -> Path:
        return self.root / kind / f".{key}.{socket.gethostname()}.{os.getpid()}.tmp"

    def _make(self, kind: str, key: str, inputs: Mapping[str, Any], make: Make) -> float:
        temporary = self._temporary(kind, key)
        with self._usable():
            temporary.mkdir()
        try:
            start = time.perf_counter()
            before = make(temporary) or 0.0
            seconds = before + time.perf_counter() - start
            if (temporary / MANIFEST).exists():
                raise ValueError(f"{kind}: the name {MANIFEST} belongs to the cache")
            with self._usable():
                manifest = {
                    "kind": kind,
                    "key": key,
                    "inputs": _plain(inputs, "inputs"),
                    "files": _file_digests(temporary),
                    "seconds": seconds,
                    "created": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                _write_durably(temporary / MANIFEST, json.dumps(manifest, indent=2))
                temporary.rename(self.root / kind / key)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return seconds


class _CorruptedError(Exception):
    """A stored artifact is not what was stored; the message says how."""


def _verify(path: Path, kind: str, key: str) -> float:
    """Compares a stored artifact with its manifest and returns its `seconds`, or raises _CorruptedError."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = dict(manifest["files"])
        seconds = float(manifest["seconds"])
        named = (manifest["kind"], manifest["key"], key_of(manifest["inputs"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _CorruptedError(f"{MANIFEST} cannot be read: {error!r}") from error
    if named != (kind, key, key):
        raise _CorruptedError(f"{MANIFEST} belongs to another artifact")
    try:
        found = _file_digests(path)
    except OSError as error:
        raise _CorruptedError(str(error)) from error
    del found[MANIFEST]
    differing = {
        "missing": expected.keys() - found.keys(),
        "extra": found.keys() - expected.keys(),
        "changed": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
    }
    problems = [f"{how}: {', '.join(sorted(names))}" for how, names in differing.items() if names]
    if problems:
        raise _CorruptedError("; ".join(problems))
    return seconds


def key_of(inputs: Mapping[str, Any]) -> str:
    """The key of an artifact with these inputs: a digest of their JSON, whatever the order of their keys.

    Raises TypeError, naming the place, for what JSON cannot hold: other types, keys that are not strings,
    NaN and infinities. Tuples count as lists.
    """
    text = json.dumps(_plain(inputs, "inputs"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:KEY_DIGITS]


def _plain(value: object, where: str) -> object:
    """The value in JSON's own types; `where` is its place in the inputs, for the error message."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is not a string")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{where} is {value}, which JSON cannot hold")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_digest(path: Path) -> str:
    """sha256, in hex, of the names and contents of all files under a directory (times and modes don't count).

    It reads every byte. Raises OSError if the directory or a file in it cannot be read.
    """
    text = json.dumps(_file_digests(path), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _file_digests(folder: Path) -> dict[str, str]:
    """Relative POSIX path -> sha256 of every file under the folder, in the order of names, links followed."""
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _write_durably(path: Path, text: str) -> None:
    """Writes and syncs the text. Files written earlier need no sync: a checksum betrays a torn one."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
