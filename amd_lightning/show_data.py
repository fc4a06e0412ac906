"""`python -m amd_lightning.data +experiment=dolly`: what the models of a run would see, without training any.

Takes the command line of a run. Prints the first training rows with their special tokens, and for every split
the lengths, what is dropped and what is truncated; draws the lengths with their limits into
`runs/EXPERIMENT/data/lengths.png` (hydra.run.dir=DIR: elsewhere). A pair that is trained from scratch gets
its tokenizer trained, or taken from the cache.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amd_lightning import conf_dir
from amd_lightning.cache import Artifact
from amd_lightning.cli import check_command_line, one_line, validated
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import UserError

HELP = """\
Show the data of a run as its models see it: rows with their special tokens, lengths, what limits cut.

  python -m amd_lightning.data +experiment=dolly
  python -m amd_lightning.data +experiment=samsum scale=laptop data.source=files data.path=DIR
  python -m amd_lightning.data +experiment=dolly data.template=alpaca data.max_prompt_tokens=256

Every option of a run may be given (python -m amd_lightning.run --help); those of the data, the pair, the
scale and the cache make a difference here. hydra.run.dir=DIR says where the picture goes.
"""
ROWS = 3
"""How many rows are printed; our choice."""


def main() -> None:
    """Show what the command line says; an error that the user can mend is one line, and status 1."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(HELP)
        return
    logging.basicConfig(format="%(message)s")
    try:
        if flags := [text for text in arguments if text.startswith("-")]:
            raise UserError(
                f"{flags[0]} is not for this command, which shows the data of one run; leave it out"
            )
        check_command_line(arguments)
        config, plain, folder = _composed(arguments)
        sys.stdout.write(show(config, plain, folder) + "\n")
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {one_line(error)}")


def show(config: RunConfig, plain: Mapping[Any, Any], folder: Path) -> str:
    """What there is to see of a run's data; the picture goes to `folder/lengths.png`.

    Raises:
        UserError: the data, the tokenizer or the folder cannot be used.
    """
    from amd_lightning.build import build
    from amd_lightning.data.examples import token_lengths
    from amd_lightning.data.preview import lengths_figure, lengths_in_words, rows_as_seen
    from amd_lightning.text import prepare_text

    spec = build(config, plain)

    def artifact(kind: str, inputs: Mapping[str, Any], make: Any, _: str) -> Artifact:
        return spec.cache.get_or_make(kind, inputs, make)

    text = prepare_text(spec.task, spec.teacher, spec.vocabulary_size, spec.cache, artifact)
    lengths = {name: token_lengths(rows, text.tokenizer, text.template) for name, rows in text.rows.items()}
    limits = (spec.task.limits.prompt_tokens, spec.task.limits.response_tokens)
    title = f"{config.data.task} ({config.data.source}), {config.pair.name}, scale {config.scale}"
    picture = folder / "lengths.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lengths_figure(lengths, limits, title).savefig(picture, dpi=100)
    except OSError as error:
        raise UserError(f"{folder} cannot be used ({error}); set hydra.run.dir=DIR") from error
    return "\n".join(
        [
            title,
            "",
            rows_as_seen(text.splits["train"], text.tokenizer, ROWS),
            lengths_in_words(text.reports),
            "",
            f"The lengths, drawn: {picture}",
        ]
    )


def _composed(arguments: Sequence[str]) -> tuple[RunConfig, dict[Any, Any], Path]:
    """The configuration, the same as plain values, and where the picture goes."""
    elsewhere = [text.partition("=")[2] for text in arguments if text.startswith("hydra.run.dir=")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", ["output_dir=.", *arguments])
    folder = Path(elsewhere[-1] if elsewhere else f"runs/{composed.experiment}/data")
    composed.output_dir = str(folder)
    config = validated(composed, (), refuse_ignored=False)
    plain: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    return config, plain, folder


if __name__ == "__main__":
    main()
