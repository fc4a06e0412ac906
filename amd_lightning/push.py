"""A run's student onto the Hugging Face hub: `python -m amd_lightning.push RUN --to ORG/NAME`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from amd_lightning.commands import Parser, say
from amd_lightning.errors import HubUnreachableError, ModelError, UserError

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
"""What belongs to a model; whatever else lies in the folder stays here."""


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        """Make the repository, unless it is there."""

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> Any:
        """One commit with the files of a folder."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = Parser(
        prog="python -m amd_lightning.push",
        description="Upload a run's student with its model card. The token is that of `hf auth login` or "
        "HF_TOKEN. Read the card's note on licences first: some data sets allow no derivatives.",
    )
    option = found.add_argument
    option("run", type=Path, metavar="RUN", help="a finished run's folder, or a model's folder")
    found.add_argument(
        "--to", required=True, metavar="ORG/NAME", help="the repository; made if it is not there"
    )
    option("--private", action="store_true", help="make a new repository private")
    found.add_argument(
        "--adapters", action="store_true", help="the LoRA adapters alone, not the merged model"
    )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Upload; an error that the user can mend is one line, and status 1."""
    say(lambda: _upload(parser().parse_args(arguments)))


def _upload(options: argparse.Namespace) -> list[str]:
    from huggingface_hub import HfApi

    folder = model_folder(options.run, options.adapters)
    return [f"{folder} -> {push(folder, options.to, HfApi(), private=options.private)}"]


def model_folder(run: Path, adapters: bool) -> Path:
    """What is uploaded of a run; a model's own folder stands for itself.

    Raises:
        ModelError: there is no model.
    """
    if adapters:
        folder, file = run / "student_adapters", "adapter_config.json"
    else:
        folder, file = run / "student" if (run / "student").is_dir() else run, "config.json"
    if not (folder / file).is_file():
        raise ModelError(f"{folder} has no {file}: name the folder of a finished run, or of a saved model")
    return folder


def push(folder: Path, to: str, hub: Hub, *, private: bool) -> str:
    """Upload the model files of the folder; returns the address.

    Raises:
        HubUnreachableError: offline mode, or no answer.
        UserError: the hub refuses: the name, the token, the rights.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        hub.create_repo(to, private=private or None, exist_ok=True)
        done = hub.upload_folder(
            repo_id=to, folder_path=folder, allow_patterns=FILES, commit_message="A distilled student"
        )
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            "nothing can be uploaded in offline mode: unset HF_HUB_OFFLINE, and run this again"
        ) from error
    except HFValidationError as error:
        raise UserError(f"--to {to} is no repository's name: write ORG/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(
            f"the hub refuses {to} ({status}): log in with `hf auth login` or set HF_TOKEN, to a token that "
            "may write there"
        ) from error
    except Exception as error:
        if not _is_no_answer(error):
            raise
        raise HubUnreachableError(
            f"the hub does not answer ({type(error).__name__}): check the network, and run this again"
        ) from error
    return str(getattr(done, "repo_url", to))


def _is_no_answer(error: Exception) -> bool:
    """The HTTP client's errors are no ConnectionErrors, and its package is httpx or httpx2 by version."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith("httpx")


if __name__ == "__main__":
    main()
