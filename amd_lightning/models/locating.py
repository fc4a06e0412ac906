"""From a folder, the hub's cached copy or the hub, in this order, with one line for whatever goes wrong."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from amd_lightning.data.sources import DEMO, hub_reachable
from amd_lightning.errors import HubUnreachableError, ModelError
from amd_lightning.models import adapters

log = logging.getLogger(__name__)
Loaded = TypeVar("Loaded")

FAILURES = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for files that are missing, damaged or of another kind."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
NO_ANSWER = (ConnectionError, TimeoutError)
REMEDIES = (
    ("trust_remote_code", "with code that you have read, set pair.NAME.trust_remote_code=true"),
    ("safetensors", "pickled weights from a source that you trust: pair.NAME.allow_pickle=true"),
    ("flash", "install flash-attn, or leave pair.NAME.attn_implementation to transformers"),
    ("scaled_dot_product", "set pair.NAME.attn_implementation=eager"),
    ("out of memory", "a smaller model, or pair.NAME.dtype=bfloat16"),
)
"""What a reason speaks of -> what helps."""


def from_folder_or_hub(load: Callable[..., Loaded], path: str, revision: str | None, what: str) -> Loaded:
    """What `load` makes of a folder, of the hub's cached copy, or of what the hub gives.

    Args:
        load: takes the path, then `revision` and `local_files_only` as transformers does.
        path: a folder or a hub id.
        what: "model" or "tokenizer", for messages.

    Raises:
        ModelError: nothing loadable there, or the hub refuses it.
        HubUnreachableError: a hub id that is not cached, and no hub.
    """
    folder = Path(path).expanduser()
    if folder.exists() or path.startswith((".", "/", "~")):
        if not folder.is_dir():
            raise ModelError(
                f"there is no model folder {path}; give one that save_pretrained wrote, or a hub id"
            )
        with without_bars():
            return _described(lambda: load(str(folder), local_files_only=True), path, what)
    options = {"revision": revision} if revision else {}
    try:
        with without_bars():
            return load(path, local_files_only=True, **options)
    except (OSError, ValueError):
        log.info("%s %s is not in the local cache: asking the hub", what, path)
    if not hub_reachable():
        raise HubUnreachableError(
            f"the hub cannot be reached for {what} {path}: give a model folder (pair.teacher.path=DIR "
            f"pair.student.path=DIR), or {DEMO}"
        )
    return _described(lambda: load(path, **options), path, what)


def adapter_folder(source: str, **options: Any) -> Path | None:
    """The local folder of a peft adapter that `source` (folder or hub id) is; None where it is none."""
    file = find_adapter_config_file(source, **options)
    if file is None:
        return None
    if not Path(source).is_dir():
        huggingface_hub.hf_hub_download(source, adapters.WEIGHTS, **options)
    return Path(file).parent


def require_tokenizer_file(source: str, *, local_files_only: bool = False, **options: Any) -> None:
    """Raise OSError where a folder or a cached repository has no tokenizer, for which transformers would make
    up an empty one from the model's config: of a hub's model, the weights may be cached and this not yet."""
    if not local_files_only:
        return
    quiet = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    if all(cached_file(source, name, **quiet, **options) is None for name in TOKENIZER_FILES):
        raise OSError(f"it has none of {', '.join(TOKENIZER_FILES)}")


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers while local files are read or written; downloads keep theirs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _described(load: Callable[[], Loaded], path: str, what: str) -> Loaded:
    try:
        return load()
    except FAILURES as error:
        chain = list(_chain(error))
        refused = next((cause for cause in chain if isinstance(cause, HfHubHTTPError)), None)
        if refused is not None and (status := refused.response.status_code) < 500 and status != 429:
            raise ModelError(
                f"the hub refuses {what} {path} ({status}): there is none of this name, revision or file, or "
                "it is private or gated; check the name, and give access with HF_TOKEN"
            ) from error
        if refused is not None or any(_is_no_answer(cause) for cause in chain):
            raise HubUnreachableError(
                f"the hub stopped answering for {what} {path} ({_words(chain[-1])}): try again, or give a "
                "folder"
            ) from error
        raise ModelError(f"the {what} {path} cannot be loaded: {_words(error)}; {_remedy(error)}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_no_answer(error: BaseException) -> bool:
    """The HTTP client's errors are no ConnectionErrors, and its package is httpx or httpx2 by version."""
    return isinstance(error, NO_ANSWER) or type(error).__module__.startswith("httpx")


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300].rstrip(".")
    plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError)
    return text if text and plain else f"{type(error).__name__}: {text}"


def _remedy(error: BaseException) -> str:
    if isinstance(error, SafetensorError):
        return "the file is damaged or cut off: copy or download it again"
    text = str(error).lower()
    found = next((remedy for word, remedy in REMEDIES if word in text), None)
    return found or "give a folder that save_pretrained wrote, or a hub id"
