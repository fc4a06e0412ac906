"""What the commands beside `run` have in common: how they are read, and how they end."""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from amd_lightning.errors import UserError


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, as every other error is; `prog` is the whole command."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def say(work: Callable[[], Iterable[str]], interrupted: str = "interrupted") -> None:
    """Print the lines that `work` gives; an error that the user can mend is one line, and status 1.

    Args:
        interrupted: what Ctrl-C leaves to be said.
    """
    try:
        for line in work():
            sys.stdout.write(line + "\n")
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write(interrupted + "\n")
        sys.exit(130)
