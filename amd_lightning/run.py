"""The entry: `python -m amd_lightning.run +experiment=samsum`.

Composes a configuration with Hydra, runs its stages, and leaves results, figures and the student in the
run's directory. Returns the validation metric that a sweeper optimises.
"""

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amd_lightning import conf_dir
from amd_lightning.cli import check_command_line, knobs, one_line, validated
from amd_lightning.config import Distance, RunConfig, Source
from amd_lightning.errors import UserError

log = logging.getLogger("amd_lightning")

OWN_FILES = ("config.yaml", "run.log")
"""What a run writes before its first stage."""


def main() -> None:
    """Run what the command line says; an error that the user can mend is one line, and status 1."""
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(knobs() + "\n")
        return
    # Hydra then raises what a run raises, and it is said once, here, rather than wrapped.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        check_command_line(arguments)
        hydra_main()
        if _refusals:
            raise _refusals[0]
    except UserError as error:
        sys.exit(f"error: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("interrupted; finished stages are in the cache, the last checkpoint under checkpoints/")


_refusals: list[UserError] = []


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def hydra_main(composed: DictConfig) -> float | None:
    """One run, or one point of a sweep."""
    state = HydraConfig.get()
    overrides = list(state.overrides.task)
    config = validated(composed, overrides, refuse_ignored=state.mode is RunMode.RUN)
    plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    command = "python -m amd_lightning.run " + " ".join(overrides)
    try:
        return run(config, plain, command)
    except UserError as error:
        if state.mode is RunMode.MULTIRUN:
            raise  # Hydra marks the point as failed and goes on with the next
        _refusals.append(error)  # raised here, Hydra would print the overrides before main's one line
        return None


def run(config: RunConfig, plain: Mapping[Any, Any], command: str) -> float | None:
    """All stages of one run.

    Args:
        config: validated.
        plain: the same as plain values, for config.yaml and W&B.
        command: that made it.

    Returns:
        `evaluation.metric` on the validation split after the last update.
    """
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    handlers = _start_log(folder)
    try:
        return _run(config, without_secrets(plain), command, folder)
    finally:
        for handler in handlers:
            handler.close()
            logging.getLogger().removeHandler(handler)
        _remove_if_nothing_ran(folder)


def _run(config: RunConfig, plain: dict[str, Any], command: str, folder: Path) -> float | None:
    import torch
    from rich.console import Console

    from amd_lightning.analysis.figures import draw_curves, draw_models
    from amd_lightning.analysis.tables import models_table
    from amd_lightning.build import build
    from amd_lightning.pipeline import Pipeline
    from amd_lightning.results import assemble, write
    from amd_lightning.tracking import finish
    from amd_lightning.training import quiet_libraries

    _say_what_it_is(config)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)), encoding="utf-8")
    quiet_libraries()
    outcome = Pipeline(build(config, plain)).run()
    results = assemble(outcome, describe(config, command))
    write(folder, results, outcome)
    figures = [draw_curves(folder), draw_models(folder)]
    predictions = {who: evaluation.predictions for who, evaluation in outcome.evaluations.items()}
    finish(outcome.loggers, results, predictions, figures)
    console = Console()
    console.print(models_table(results))
    console.print(
        f"Everything lies in {folder}: results.json, metrics.csv, predictions.jsonl, figures/, student/"
    )
    return outcome.validation.get(config.evaluation.metric)


def describe(config: RunConfig, command: str) -> dict[str, Any]:
    """What was run, for results.json."""
    objective: dict[str, Any] = {
        "distance": str(config.objective.distance),
        "beta": config.objective.beta,
        "normalise": str(config.objective.normalise),
    }
    if config.objective.distance is Distance.moment_matching:
        objective["critic"] = {"kind": str(config.critic.kind), "alpha": config.critic.alpha}
    return {
        "task": config.data.task,
        "experiment": config.experiment,
        "scale": config.scale,
        "source": str(config.data.source),
        "pair": config.pair.name,
        "objective": objective,
        "updates": config.optim.student.updates,
        "seed": config.seed,
        "pair_seed": config.pair.seed,
        "command": command,
    }


def without_secrets(plain: Mapping[Any, Any]) -> dict[str, Any]:
    """The configuration with the values of keys that name a secret replaced."""

    def cleaned(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: cleaned(str(inner), item) for inner, item in value.items()}
        secret = any(word in key.lower() for word in ("api_key", "password", "secret", "access_token"))
        return "***" if secret and value is not None else value

    return {str(key): cleaned(str(key), value) for key, value in plain.items()}


def _say_what_it_is(config: RunConfig) -> None:
    real = f"python -m amd_lightning.run +experiment={config.experiment}"
    if config.data.source is Source.embedded:
        log.info(
            "This is the DEMO: generated text%s. The real data: %s scale=laptop data.source=files data.path=DIR "
            "(or data.source=hub); the paper's setting: %s scale=paper",
            " and two small models trained from scratch" if config.pair.teacher.path is None else "",
            real,
            real,
        )
    log.info(
        "%s on %s: %s, beta %g, seed %d -> %s",
        config.experiment,
        config.data.task,
        config.objective.distance,
        config.objective.beta,
        config.seed,
        config.output_dir,
    )


def _start_log(folder: Path) -> list[logging.Handler]:
    """The console (stderr) and run.log."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = RichHandler(
        console=Console(stderr=True), show_path=False, show_level=False, log_time_format="[%H:%M:%S]"
    )
    file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [console, file]
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    log.setLevel(logging.INFO)
    return handlers


def _remove_if_nothing_ran(folder: Path) -> None:
    """A run that was refused before its first artifact leaves no directory behind."""
    if any(path.name not in OWN_FILES for path in folder.iterdir()):
        return
    for name in OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


if __name__ == "__main__":
    main()
