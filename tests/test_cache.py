"""The artifact cache: hits and misses, keys, two processes at once, killed makers, every kind of damage."""

import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amd_lightning import cache as cache_module
from amd_lightning.cache import ArtifactCache, directory_digest, file_digest, key_of
from amd_lightning.errors import CacheError

INPUTS: dict[str, Any] = {"seed": 0, "sizes": {"layers": 2, "lr": 1e-3}, "split": ["train", None, True]}
spawn = multiprocessing.get_context("spawn")


def write_model(path: Path) -> None:
    (path / "nested").mkdir()
    (path / "nested" / "weights.bin").write_bytes(bytes(range(256)))
    (path / "config.json").write_text("{}")


def must_not_make(path: Path) -> None:
    raise AssertionError("make was called although the artifact is there")


def leftovers(root: Path) -> list[str]:
    """Everything in the cache but lock files."""
    return sorted(p.relative_to(root).as_posix() for p in root.glob("*/*") if p.suffix != ".lock")


# -- hits and misses


def test_a_second_request_is_a_hit_with_the_same_files_and_the_first_ones_seconds(tmp_path: Path) -> None:
    def slow(path: Path) -> None:
        time.sleep(0.05)
        write_model(path)

    first = ArtifactCache(tmp_path / "deep" / "root").get_or_make("teacher", INPUTS, slow)
    second = ArtifactCache(tmp_path / "deep" / "root").get_or_make("teacher", INPUTS, must_not_make)

    assert not first.cached
    assert second.cached
    assert second.path == first.path == tmp_path / "deep" / "root" / "teacher" / key_of(INPUTS)
    assert second.seconds == first.seconds >= 0.05
    assert (second.path / "nested" / "weights.bin").read_bytes() == bytes(range(256))


def test_the_manifest_says_what_the_artifact_is(tmp_path: Path) -> None:
    artifact = ArtifactCache(tmp_path).get_or_make("teacher", INPUTS, write_model)
    manifest = json.loads((artifact.path / "artifact.json").read_text())
    assert set(manifest) == {"kind", "key", "inputs", "files", "seconds", "created"}
    assert (manifest["kind"], manifest["key"], manifest["inputs"]) == ("teacher", artifact.key, INPUTS)
    assert manifest["files"] == {
        name: file_digest(artifact.path / name) for name in ("config.json", "nested/weights.bin")
    }


def test_other_inputs_and_other_kinds_are_other_artifacts(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    made = [
        cache.get_or_make("teacher", INPUTS, write_model),
        cache.get_or_make("teacher", INPUTS | {"seed": 1}, write_model),
        cache.get_or_make("student_start", INPUTS, write_model),
    ]
    assert not any(artifact.cached for artifact in made)
    assert len({artifact.path for artifact in made}) == 3


def test_unicode_in_inputs_file_names_and_the_root(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "Ablage für β → 0.5")
    inputs = {"präfix": "Fasse zusammen: „Grüße“ 😀", "lone": "\ud800"}

    def make(path: Path) -> None:
        (path / "größe-β.txt").write_text("Straße", encoding="utf-8")

    cache.get_or_make("responses", inputs, make)
    hit = cache.get_or_make("responses", dict(reversed(inputs.items())), must_not_make)
    assert (hit.path / "größe-β.txt").read_text(encoding="utf-8") == "Straße"


@pytest.mark.parametrize("kind", ["", "Teacher", "../teacher", "a/b", ".hidden"])
def test_a_kind_that_is_no_plain_word_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="lower-case word"):
        ArtifactCache(tmp_path).get_or_make(kind, INPUTS, write_model)


# -- keys

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


def shuffled(value: Any) -> Any:
    """The same value with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(item) for key, item in reversed(value.items())}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(json_objects)
def test_the_key_depends_on_the_json_and_not_on_the_order_of_its_keys(inputs: dict[str, Any]) -> None:
    assert key_of(shuffled(inputs)) == key_of(inputs) == key_of(json.loads(json.dumps(inputs)))
    assert len(key_of(inputs)) == 20


@given(json_objects, json_objects)
def test_different_inputs_have_different_keys(left: dict[str, Any], right: dict[str, Any]) -> None:
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (key_of(left) == key_of(right)) is same


def test_the_key_is_pinned_so_that_a_new_version_finds_old_artifacts() -> None:
    # sha256 of {"a":[1,2.5,null,true],"b":{"c":"\u03b2"}}
    assert key_of({"b": {"c": "β"}, "a": (1, 2.5, None, True)}) == "0e427533fb1dcb6d1e3a"


@pytest.mark.parametrize(
    "value, message",
    [
        (math.nan, r"inputs\['a'\]\[1\] is nan"),
        (math.inf, r"inputs\['a'\]\[1\] is inf"),
        (Path("x"), r"inputs\['a'\]\[1\] is a PosixPath"),
        ({1, 2}, r"inputs\['a'\]\[1\] is a set"),
        (b"x", r"inputs\['a'\]\[1\] is a bytes"),
        ({1: "x"}, r"inputs\['a'\]\[1\] has the key 1"),
    ],
)
def test_inputs_that_json_cannot_hold_are_refused_with_their_place(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        key_of({"a": [0, value]})


# -- digests


def test_a_directory_digest_sees_names_and_contents_but_not_times(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file.replace("_", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    original = folder("original", config="{}", sub_weights="1")
    same = folder("same", sub_weights="1", config="{}")
    os.utime(same / "config", (0, 0))
    assert directory_digest(same) == directory_digest(original)
    others = [
        folder("changed", config="{}", sub_weights="2"),
        folder("renamed", config="{}", sub_weight="1"),
        folder("extra", config="{}", sub_weights="1", more=""),
    ]
    assert len({directory_digest(path) for path in [original, *others]}) == 4


def test_a_directory_digest_of_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        directory_digest(tmp_path / "absent")


def test_a_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


# -- failures of the maker


def test_when_make_raises_nothing_remains_and_the_error_is_the_makers_own(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)

    def fail(path: Path) -> None:
        write_model(path)
        raise OSError("the disk of the data is gone")

    with pytest.raises(OSError, match="the disk of the data is gone"):
        cache.get_or_make("teacher", INPUTS, fail)
    assert leftovers(tmp_path) == []
    assert not cache.get_or_make("teacher", INPUTS, write_model).cached


def test_an_interrupt_leaves_nothing_either(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        write_model(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ArtifactCache(tmp_path).get_or_make("teacher", INPUTS, interrupted)
    assert leftovers(tmp_path) == []


def test_the_manifests_name_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"artifact\.json belongs to the cache"):
        ArtifactCache(tmp_path).get_or_make("teacher", INPUTS, lambda p: (p / "artifact.json").touch())
    assert leftovers(tmp_path) == []


# -- several processes


def request_in_child(root: Path, log: Path, started: Event, seconds: float, answers: Any) -> None:
    """Asks for the artifact; its maker leaves one line in the log, says that it has begun, takes its time."""

    def make(path: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        (path / "half.bin").write_bytes(b"half")
        started.set()
        time.sleep(seconds)
        write_model(path)

    artifact = ArtifactCache(root).get_or_make("teacher", INPUTS, make)
    data = (artifact.path / "half.bin").read_bytes()
    answers.put({"cached": artifact.cached, "seconds": artifact.seconds, "data": data})


def test_two_processes_make_an_artifact_once(tmp_path: Path) -> None:
    started, answers = spawn.Event(), spawn.Queue()
    arguments = (tmp_path / "cache", tmp_path / "log", started, 0.5, answers)
    processes = [spawn.Process(target=request_in_child, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert {first["cached"], second["cached"]} == {True, False}
    assert first["seconds"] == second["seconds"] >= 0.5
    assert first["data"] == second["data"] == b"half"


@pytest.fixture
def busy_maker(tmp_path: Path) -> Iterator[Any]:
    """A process in the middle of making the artifact under tmp_path/cache."""
    started = spawn.Event()
    arguments = (tmp_path / "cache", tmp_path / "log", started, 60.0, spawn.Queue())
    process = spawn.Process(target=request_in_child, args=arguments)
    process.start()
    assert started.wait(timeout=60)
    yield process
    process.kill()
    process.join(timeout=60)


def test_after_a_killed_maker_the_next_one_cleans_up_and_makes_anew(tmp_path: Path, busy_maker: Any) -> None:
    os.kill(busy_maker.pid, signal.SIGKILL)
    busy_maker.join(timeout=60)
    (remains,) = leftovers(tmp_path / "cache")
    assert remains.endswith(".tmp")

    artifact = ArtifactCache(tmp_path / "cache").get_or_make("teacher", INPUTS, write_model)
    assert not artifact.cached
    assert leftovers(tmp_path / "cache") == [f"teacher/{artifact.key}"]
    assert not (artifact.path / "half.bin").exists()


def test_a_long_wait_says_for_whom_and_ends_with_a_remedy(
    tmp_path: Path, busy_maker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "ANNOUNCE_AFTER_S", 0.05)
    cache = ArtifactCache(tmp_path / "cache", lock_timeout=0.3)
    caplog.set_level(logging.INFO, logger="amd_lightning.cache")
    with pytest.raises(CacheError, match=rf"process {busy_maker.pid} on .* cache\.dir=DIR.*cache=off"):
        cache.get_or_make("teacher", INPUTS, must_not_make)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert f"waiting for process {busy_maker.pid} on " in record.message


def test_the_maker_of_one_key_does_not_hold_up_another(tmp_path: Path, busy_maker: Any) -> None:
    cache = ArtifactCache(tmp_path / "cache", lock_timeout=5.0)
    other = cache.get_or_make("teacher", INPUTS | {"seed": 1}, write_model)
    names = leftovers(tmp_path / "cache")
    assert f"teacher/{other.key}" in names
    assert any(name.endswith(f".{busy_maker.pid}.tmp") for name in names)  # its work is left alone


# -- damage


UNREADABLE = "artifact.json cannot be read"


def edit_manifest(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "artifact.json").read_text())
        (path / "artifact.json").write_text(json.dumps(manifest | changes))

    return edit


def replace_manifest(content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / "artifact.json").write_bytes(content)


def swap_for_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a directory")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: (p / "config.json").unlink(), "missing: config.json"),
    "changed": (lambda p: (p / "nested" / "weights.bin").write_bytes(b"?"), "changed: nested/weights.bin"),
    "extra": (lambda p: (p / "nested" / "new").touch(), "extra: nested/new"),
    "dangling": (lambda p: (p / "dangling").symlink_to("nowhere"), "No such file"),
    "no manifest": (lambda p: (p / "artifact.json").unlink(), UNREADABLE),
    "torn manifest": (replace_manifest(b'{"kind": "tea'), UNREADABLE),
    "binary manifest": (replace_manifest(b"\xff\xfe"), UNREADABLE),
    "list for manifest": (replace_manifest(b"[]"), UNREADABLE),
    "no files listed": (edit_manifest(files=None), UNREADABLE),
    "no seconds": (edit_manifest(seconds=None), UNREADABLE),
    "other inputs": (edit_manifest(inputs={"seed": 7}), "belongs to another artifact"),
    "no inputs": (edit_manifest(inputs=None), "belongs to another artifact"),
    "other kind": (edit_manifest(kind="student_start"), "belongs to another artifact"),
    "a file": (swap_for_file, UNREADABLE),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artifact_is_reported_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    damage, complaint = DAMAGE[name]
    cache = ArtifactCache(tmp_path)
    path = cache.get_or_make("teacher", INPUTS, write_model).path
    damage(path)

    assert not cache.get_or_make("teacher", INPUTS, write_model).cached
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.message
    assert complaint in record.message
    assert leftovers(tmp_path) == [f"teacher/{key_of(INPUTS)}"]
    assert cache.get_or_make("teacher", INPUTS, must_not_make).cached


# -- roots that cannot be used


def test_a_root_that_is_a_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("occupied")
    with pytest.raises(CacheError, match=r"cache cannot be used .*cache\.dir=DIR.*cache=off"):
        ArtifactCache(tmp_path / "cache").get_or_make("teacher", INPUTS, must_not_make)


@pytest.fixture
def read_only_root() -> Iterator[Path]:
    """A directory that the test's user may read and not write; root plays `nobody` for the time being."""
    parent = Path(tempfile.mkdtemp())
    root = parent / "cache"
    (root / "teacher").mkdir(parents=True)
    parent.chmod(0o755)
    for path in (root / "teacher", root):
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield root
    if is_root:
        os.seteuid(0)
    for path in (root, root / "teacher"):
        path.chmod(0o755)
    shutil.rmtree(parent)


@pytest.mark.parametrize("kind", ["teacher", "responses"])  # where the folder is there, and where it isn't
def test_a_read_only_root_is_refused_with_a_remedy(read_only_root: Path, kind: str) -> None:
    with pytest.raises(CacheError, match=r"Permission denied.*cache\.dir=DIR.*cache=off"):
        ArtifactCache(read_only_root).get_or_make(kind, INPUTS, must_not_make)
