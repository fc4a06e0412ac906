"""Where rows come from: a directory of files, or the hub. Tasks turn these plain dicts into examples.

Both readers return the rows of one split with at least the columns asked for, and raise a DataError or
HubUnreachableError that says what was looked for, what was found, and what to do instead.
"""

import csv
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import datasets
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

from amd_lightning.data.examples import Split
from amd_lightning.errors import DataError, HubUnreachableError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

NETWORK_ERRORS = (ConnectionError, TimeoutError, HfHubHTTPError, LocalEntryNotFoundError)
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
DEMO = "run the demo on generated data (scale=demo data.source=embedded)"
INSTEAD = f"read your own copy (data.source=files data.path=DIR), or {DEMO}"

PROBE_SECONDS = 10.0
"""How long the hub has for its first answer, name look-up included; users are promised 20 s for it all."""
DOWNLOAD_SECONDS = 600.0
"""How long a whole download may take; meanwhile the hub is asked every PROBE_SECONDS if it is there."""


def read_files(
    directory: str | Path, split: Split, columns: Sequence[str], names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of the one file in `directory` called as in SPLIT_NAMES or `names`, with one of EXTENSIONS.

    CSV cells are text, empty ones "". Nothing is written next to the data, and nothing is read from a cache:
    a file that changed is read as it is now.

    Raises DataError for a missing directory or file, two files for one split, an unreadable file, a missing
    column, or no rows.
    """
    path = find_file(directory, split, names)
    return read_file(path, columns)


def read_file(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one file, as `read_files` reads them; raises what it raises."""
    with tempfile.TemporaryDirectory(prefix="amd_lightning_") as cache, _quiet():
        try:
            rows = _parse(path, cache)
        except Exception as error:
            # What the readers make of a header or an empty list, without rows.
            if "corresponds to no data" not in str(error):
                raise DataError(
                    f"{path} cannot be read ({_reason(error)}): is it complete? or {DEMO}"
                ) from error
            rows = []
    return _checked(rows, columns, str(path))


def read_hub(
    hub_id: str,
    split: Split,
    columns: Sequence[str],
    revision: str = "main",
    config: str | None = None,
    folder: str | None = None,
) -> list[dict[str, Any]]:
    """The rows of one split of a data set on the hub, or of its cached copy where the hub cannot be reached.

    `folder` is the part of the repository that holds the data, where it has no card that says so.

    `revision` is a branch, tag or commit. Without the hub a branch or tag means the latest cached copy, and a
    warning names its commit, while a commit means exactly that commit. HF_ENDPOINT, HF_HOME, HF_TOKEN and
    HF_HUB_OFFLINE are honoured, as read when `datasets` was imported.

    Raises HubUnreachableError within 20 s where the hub doesn't answer and there is no cached copy; DataError
    where it refuses (401, 403, 404), the files cannot be read, or the split or a column is missing.
    """
    splits = _hub_splits(hub_id, config, revision, folder)
    found = next((splits[alias] for alias in SPLIT_NAMES[split] if alias in splits), None)
    if found is None:
        raise DataError(f"data set {hub_id} has no {split} split: it has {', '.join(splits)}; {INSTEAD}")
    rows: list[dict[str, Any]] = found.to_list()
    return _checked(rows, columns, f"data set {hub_id}, split {split}")


def hub_reachable(endpoint: str | None = None, timeout: float = PROBE_SECONDS) -> bool:
    """Whether the hub (default: HF_ENDPOINT) gives any answer within `timeout` seconds of wall-clock time.

    An error of the client's making (401, 404) is an answer, a server's error (502) is none. In offline mode
    the answer is False, without a request.
    """
    address = endpoint or datasets.config.HF_ENDPOINT
    if _offline():
        return False
    try:
        answer = _start(lambda: huggingface_hub.get_session().head(address, timeout=timeout)).result(timeout)
    except Exception:  # whatever keeps the client from an answer, it is not a hub within reach
        return False
    return bool(answer.status_code < 500)


def find_file(directory: str | Path, split: Split, names: Sequence[str] = ()) -> Path:
    """The one file of a split, called as in SPLIT_NAMES or `names`; raises DataError for none or several."""
    directory = Path(directory).expanduser()
    wanted = [f"{name}{extension}" for name in (*SPLIT_NAMES[split], *names) for extension in EXTENSIONS]
    if not directory.is_dir():
        what = "is a file, not a directory" if directory.exists() else "does not exist"
        raise DataError(f"data.path={directory} {what}: give the directory that holds {wanted[0]}, or {DEMO}")
    found = [name for name in wanted if (directory / name).is_file()]
    if not found:
        looked_for = ", ".join(wanted)
        raise DataError(
            f"no {split} split in {directory}: looked for {looked_for}; set data.path=DIR, or {DEMO}"
        )
    if len(found) > 1:
        raise DataError(
            f"{directory} has several files for the {split} split ({', '.join(found)}): keep one of them"
        )
    return directory / found[0]


def _parse(path: Path, cache: str) -> list[dict[str, Any]]:
    """All rows, by the readers of `datasets`; `load_dataset("json")` would report the use to a server."""
    if path.stat().st_size == 0:
        return []
    if path.suffix == ".csv":
        # Every column is text: pandas would guess numbers chunk by chunk, and take the answer "NA" for a gap.
        with path.open(newline="", encoding="utf-8-sig") as lines:
            header = next(csv.reader(lines))
        features = datasets.Features({column: datasets.Value("string") for column in header})
        table = datasets.Dataset.from_csv(
            str(path), features=features, cache_dir=cache, keep_default_na=False
        )
    elif path.suffix == ".parquet":
        table = datasets.Dataset.from_parquet(str(path), cache_dir=cache)
    else:
        table = datasets.Dataset.from_json(str(path), cache_dir=cache)
    rows: list[dict[str, Any]] = table.to_list()
    return rows


def _checked(rows: list[dict[str, Any]], columns: Sequence[str], where: str) -> list[dict[str, Any]]:
    if not rows:
        raise DataError(f"{where} has no rows; {INSTEAD}")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        found = ", ".join(rows[0])
        raise DataError(f"{where} has no column {' or '.join(missing)}: it has {found}; rename its columns")
    return rows


@lru_cache(maxsize=4)
def _hub_splits(hub_id: str, config: str | None, revision: str, folder: str | None) -> datasets.DatasetDict:
    """All splits, memory-mapped. Kept: a run's three splits are of one commit and cost one time-out."""
    try:
        commit = _commit(hub_id, revision)
    except ConnectionError as error:
        problem = f"the hub cannot be reached for data set {hub_id} ({error})"
        cached = _cached(hub_id, config, revision, folder)
        if cached is None:
            missing = f"there is no cached copy of revision {revision}"
            raise HubUnreachableError(f"{problem}, and {missing}: {INSTEAD}") from error
        log.warning("%s: using the cached copy of commit %s", problem, _cached_commit(cached))
        return cached
    return _download(hub_id, config, commit, folder)


def _commit(hub_id: str, revision: str) -> str:
    """The commit that `revision` stands for: the first question, which shows whether there is a hub at all.

    A commit rather than "main" also keeps `datasets` from asking a second server, whose address is fixed.
    Raises ConnectionError (with a short reason) where there is no answer, DataError where the hub refuses.
    """
    if _offline():
        raise ConnectionError("offline mode is on")
    api = huggingface_hub.HfApi(endpoint=datasets.config.HF_ENDPOINT)
    try:
        info = _start(lambda: api.dataset_info(hub_id, revision=revision, timeout=PROBE_SECONDS))
        return info.result(PROBE_SECONDS).sha or revision
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 429 or status >= 500:
            raise ConnectionError(f"{api.endpoint} answers {status}") from error
        if isinstance(error, RevisionNotFoundError):
            refusal = f"it has no revision {revision!r}"
        elif status == 404:
            refusal = "there is none of this name"
        else:
            refusal = "it does not exist, or it is private or gated and HF_TOKEN gives no access to it"
        raise DataError(
            f"{api.endpoint} refuses data set {hub_id} ({status}): {refusal}; {INSTEAD}"
        ) from error
    except TimeoutError as error:
        raise ConnectionError(f"{api.endpoint} gave no answer within {PROBE_SECONDS:g} s") from error
    except Exception as error:  # name look-up, refusal, TLS, proxies, an answer that is no JSON: no hub
        raise ConnectionError(f"{api.endpoint}: {_reason(error)}") from error


def _download(hub_id: str, config: str | None, commit: str, folder: str | None) -> datasets.DatasetDict:
    """All splits at `commit`, out of the cache where it has them; ends when the hub goes away meanwhile."""
    loading = _start(lambda: datasets.load_dataset(hub_id, name=config, revision=commit, data_dir=folder))
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    unanswered = 0
    while not wait([loading], PROBE_SECONDS).done:
        # Twice: on a thin line the download itself may crowd out one question.
        unanswered = 0 if hub_reachable() else unanswered + 1
        if unanswered == 2 or time.monotonic() > deadline:
            raise HubUnreachableError(
                f"the hub stopped answering while data set {hub_id} was read: {INSTEAD}"
            )
    try:
        splits: datasets.DatasetDict = loading.result()
    except Exception as error:
        message = f"data set {hub_id} cannot be read from the hub ({_reason(error)})"
        # The HTTP client's errors are no ConnectionErrors, and its package is httpx or httpx2 by version.
        by_client = type(error).__module__.startswith("httpx")
        if by_client or isinstance(error, NETWORK_ERRORS):
            raise HubUnreachableError(f"{message}: try again, or {INSTEAD}") from error
        raise DataError(f"{message}: {INSTEAD}") from error
    if _cached_commit(splits) != commit:
        # On trouble `datasets` falls back to whatever copy it has.
        raise HubUnreachableError(
            f"data set {hub_id} could not be read at commit {commit}: try again, or {INSTEAD}"
        )
    return splits


def _cached(
    hub_id: str, config: str | None, revision: str, folder: str | None
) -> datasets.DatasetDict | None:
    """The latest copy in the cache of `datasets`, or None; a `revision` that is a commit must be that one."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        with _quiet():
            splits: datasets.DatasetDict = datasets.load_dataset(hub_id, name=config, data_dir=folder)
    except Exception:  # `datasets` has no one error for "not cached"
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    pinned = re.fullmatch("[0-9a-f]{40}", revision) is not None
    return None if pinned and _cached_commit(splits) != revision else splits


def _cached_commit(splits: datasets.DatasetDict) -> str:
    """The commit of a loaded data set: its cache is .../CONFIG/VERSION/COMMIT/SPLIT.arrow."""
    table = next(iter(splits.values()))
    return Path(table.cache_files[0]["filename"]).parent.name


def _offline() -> bool:
    return bool(huggingface_hub.is_offline_mode() or datasets.config.HF_HUB_OFFLINE)


def _start(call: Callable[[], Result]) -> "Future[Result]":
    """Run `call` in a daemon thread, which doesn't keep the process alive if it waits on a dead server.

    Time-outs of HTTP clients don't cover the name look-up, and start anew with every byte that drips in.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _reason(error: BaseException) -> str:
    """The first line of the error at the bottom of the chain: the ones that wrap it say nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or log lines of `datasets` where it takes a second and we report what matters."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
