"""One run, from its configuration to what it leaves behind; on several devices, every process of it."""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from amd_lightning.config.choices import Source
from amd_lightning.config.schema import RunConfig
from amd_lightning.errors import Interrupted, Pruned, UserError
from amd_lightning.running.allocator import keep_freed_memory
from amd_lightning.running.description import describe, without_secrets
from amd_lightning.running.directory import remove_if_nothing_ran, replace
from amd_lightning.running.launching import joined_outside, others_started, outside
from amd_lightning.running.resume import (
    Start,
    going_on,
    held,
    how_to_go_on,
    start,
    unfinished_beside,
    with_command,
)
from amd_lightning.sweeps.study import Report
from amd_lightning.training import preemption
from amd_lightning.training.stopping import Stopping

log = logging.getLogger("amd_lightning")

OTHERS = "amd_lightning.running.one_run:work_with_rank_0"
"""What the other processes of a run on several devices do."""

NO_DIRECTORY = "the run's directory cannot be used ({}); set hydra.run.dir=DIR or hydra.sweep.dir=DIR"


def run(
    config: RunConfig, plain: Mapping[Any, Any], command: str, report: Report | None = None
) -> float | None:
    """All stages of one run.

    Args:
        config: validated.
        plain: the same as plain values, for config.yaml and W&B.
        command: that made it.
        report: takes an update and the metric of its validation; whether to give the run up.

    Returns:
        `evaluation.metric` on the validation split after the last update.
    """
    trainer = config.trainer
    keep_freed_memory()
    try:
        with joined_outside(trainer.devices, trainer.nodes, _on_gpus(config)) as place:
            if place is not None and place.rank > 0:
                with preemption.heard():
                    work_with_rank_0(config)
                return None
            return _as_rank_0(config, plain, command, report)
    except KeyboardInterrupt as stopped:
        if preemption.is_first_process():
            raise  # it has waited, and says what there is to say
        # Not within: rank 0, if it waits for this one's part in something, is to see that none comes.
        raise preemption.wait_for_the_end(_of_another_rank(stopped)) from stopped


def _on_gpus(config: RunConfig) -> bool:
    if config.trainer.accelerator == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def _set_up(config: RunConfig) -> None:
    from amd_lightning.training.torch_settings import set_up_torch

    trainer = config.trainer
    set_up_torch(threads=trainer.threads, on_gpu=_on_gpus(config), deterministic=trainer.deterministic)


def _as_rank_0(
    config: RunConfig, plain: Mapping[Any, Any], command: str, report: Report | None
) -> float | None:
    stopping = Stopping(config.trainer.time_budget and 60.0 * config.trainer.time_budget)
    stopping.report = report
    plain = without_secrets(plain)
    begin = start(config.resume, Path(config.output_dir).absolute(), plain)
    folder = begin.folder
    config.output_dir = plain["output_dir"] = str(folder)
    with ExitStack() as alone:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = {path.name for path in folder.iterdir()}
            alone.enter_context(held(folder))
            alone.callback(remove_if_nothing_ran, folder, before)  # while it is held
            handlers = _start_log(folder)
        except OSError as error:
            raise UserError(NO_DIRECTORY.format(error)) from error
        return _logged(config, plain, command, begin, stopping, handlers)


def _logged(
    config: RunConfig,
    plain: dict[str, Any],
    command: str,
    begin: Start,
    stopping: Stopping,
    handlers: Sequence[logging.Handler],
) -> float | None:
    folder = begin.folder
    try:
        if begin.finished is not None:
            log.info("%s holds this run, finished: nothing to do (remove it to run again)", folder)
            if outside() is not None:
                from amd_lightning import ranks

                ranks.of_first(None)
            return _metric(config, begin.finished["validation"], str(begin.finished["quality"]))
        with preemption.heard():
            return _run(config, plain, command, begin, stopping)
    except KeyboardInterrupt as stopped:
        log.debug("the run stopped here", exc_info=True)
        raise preemption.wait_for_the_end(how_to_go_on(stopped, folder, command)) from stopped
    except BaseException:
        log.debug("the run stopped here", exc_info=True)
        raise
    finally:
        for handler in handlers:
            handler.close()
            logging.getLogger().removeHandler(handler)


def _run(
    config: RunConfig, plain: dict[str, Any], command: str, begin: Start, stopping: Stopping
) -> float | None:
    import torch
    from rich.console import Console

    from amd_lightning import ranks
    from amd_lightning.analysis.card import model_card
    from amd_lightning.analysis.figures import draw_curves, draw_models
    from amd_lightning.analysis.tables import models_table, sets_table
    from amd_lightning.build import build
    from amd_lightning.pipeline import Pipeline
    from amd_lightning.running.results import assemble, write
    from amd_lightning.training.fitting import quiet_libraries
    from amd_lightning.training.loggers import finish

    _say_what_it_is(config)
    if config.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
        raise UserError("trainer.accelerator=gpu, but torch sees no GPU here; set trainer.accelerator=cpu")
    _set_up(config)
    folder = begin.folder
    if begin.checkpoint is None and (other := unfinished_beside(folder, plain)):
        log.info(
            "An unfinished run of this configuration lies in %s; resume=%s goes on with it", other, other
        )
    replace(folder / "config.yaml", with_command(command, OmegaConf.to_yaml(OmegaConf.create(plain))))
    (folder / "results.json").unlink(missing_ok=True)  # of a run that was stopped, or is to be longer
    quiet_libraries()
    try:
        with others_started(config.trainer.devices, _on_gpus(config), OTHERS, config):
            ranks.of_first((str(folder), begin.checkpoint))
            outcome = Pipeline(build(config, plain), begin.checkpoint, stopping).run()
    except SystemExit as stopped:  # what Lightning makes of a signal while it trains
        raise preemption.interruption(getattr(stopped.__context__, "signum", signal.SIGINT)) from stopped
    results = assemble(outcome, describe(config, command))
    write(folder, results, outcome)
    card = model_card(results, plain, outcome.template, folder / "student")
    (folder / "student" / "README.md").write_text(card, encoding="utf-8")
    figures = [draw_curves(folder), draw_models(folder)]
    predictions = {who: evaluation.predictions for who, evaluation in outcome.evaluations.items()}
    finish(outcome.loggers, results, predictions, figures)
    console = Console()
    console.print(models_table(results))
    if results["evaluation_sets"]:
        console.print(sets_table(results))
    console.print(
        f"Everything lies in {folder}: results.json, metrics.csv, predictions.jsonl, figures/, student/",
        markup=False,
        soft_wrap=True,
    )
    if outcome.stopped_at is not None:
        console.print(
            f"Stopped by trainer.time_budget after update {outcome.stopped_at}; "
            f"go on with: {going_on(command, folder)}",
            markup=False,
            soft_wrap=True,
        )
    return _metric(config, outcome.validation, outcome.quality)


def _of_another_rank(stopped: KeyboardInterrupt) -> Interrupted:
    """What stopped it, without words: rank 0 has them."""
    found = preemption.interruption(getattr(stopped, "signum", signal.SIGINT))
    found.words = ""
    return found


def work_with_rank_0(config: RunConfig) -> None:
    """The same stages on another rank, which says and writes nothing of its own."""
    from amd_lightning import ranks
    from amd_lightning.build import build
    from amd_lightning.pipeline import Pipeline
    from amd_lightning.training.fitting import quiet_libraries

    keep_freed_memory()
    _set_up(config)
    logging.getLogger().setLevel(logging.ERROR)  # what is to be said, rank 0 says
    quiet_libraries()
    stopping = Stopping(config.trainer.time_budget and 60.0 * config.trainer.time_budget)
    told = ranks.of_first(None)
    if told is None:
        return
    config.output_dir, checkpoint = told
    try:
        Pipeline(build(config, {}), checkpoint, stopping).run()
    except Pruned:
        return  # all ranks give up together, and rank 0 says so
    except SystemExit as stopped:
        raise preemption.interruption(getattr(stopped.__context__, "signum", signal.SIGINT)) from stopped


def _metric(config: RunConfig, validation: Mapping[str, float | None], quality: str) -> float | None:
    metric = config.evaluation.metric
    return validation.get(quality if metric == "auto" else metric)


def _say_what_it_is(config: RunConfig) -> None:
    unnamed = config.experiment == RunConfig().experiment  # no option; each task has one of its name
    experiment = config.data.task if unnamed else config.experiment
    real = f"python -m amd_lightning.run +experiment={experiment}"
    if config.data.source is Source.embedded:
        log.info(
            "This is the DEMO: generated text%s. The real data: %s scale=laptop data.source=files "
            "data.path=DIR (or data.source=hub); the paper's setting: %s scale=paper",
            " and two small models trained from scratch" if config.pair.teacher.path is None else "",
            real,
            real,
        )
    if config.scale == config.pair.name.rpartition("_")[2] == "demo" and config.pair.teacher.path is not None:
        log.warning(
            "a teacher of your own at scale=demo: its token limits and learning rates are for small models "
            "trained from scratch; scale=own has those for yours"
        )
    log.info(
        "%s: %s, beta %g, seed %d -> %s",
        config.data.task,
        config.objective.distance,
        config.objective.beta,
        config.seed,
        config.output_dir,
    )


def _start_log(folder: Path) -> list[logging.Handler]:
    """The console (stderr) and run.log."""
    console: logging.Handler = logging.StreamHandler()  # in a log file lines are not folded
    console.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        terminal = Console(stderr=True)
        console = RichHandler(
            console=terminal, show_path=False, show_level=False, log_time_format="[%H:%M:%S]"
        )
    console.setLevel(logging.INFO)
    file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [console, file]
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    log.setLevel(logging.DEBUG)  # tracebacks of errors that main says in one line; to run.log alone
    return handlers
