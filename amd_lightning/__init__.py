"""Knowledge distillation of language models: a distance x a beta x a source of states."""

from pathlib import Path

__version__ = "0.1.0"


def conf_dir() -> Path:
    """The directory of Hydra's config groups: inside the package when installed, beside it in a checkout.

    The first place wins: beside an installed package any other project's `conf` may lie.
    Returns an absolute path; raises FileNotFoundError if the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no conf/ in or beside {package}: reinstall amd-lightning")
