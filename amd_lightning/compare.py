"""Several runs into one table and one report: `python -m amd_lightning.compare RUN_OR_SWEEP...`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amd_lightning.commands import Parser, say
from amd_lightning.errors import UserError

DESCRIPTION = """\
Compare finished runs: means over training seeds with 95 % bootstrap intervals over seeds and test examples,
paired tests with Holm's correction, figures, and one report that opens from disk.
"""
EPILOGUE = """\
examples:
  python -m amd_lightning.compare runs/samsum
  python -m amd_lightning.compare runs/beta runs/distance --out report --against "KL, β 1"
  python -m amd_lightning.compare runs --where data.task=samsum --by optim.student.updates
  python -m amd_lightning.compare wandb:ENTITY/PROJECT --metric rouge_l
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = Parser(
        prog="python -m amd_lightning.compare",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_OR_SWEEP",
        help="a run's folder, a folder with runs below it, or wandb:ENTITY/PROJECT",
    )
    found.add_argument("--out", type=Path, default=Path("comparison"), help="where to write (%(default)s)")
    found.add_argument(
        "--metric", help="what to rank and test by, as in results.json (the task's own, sampled)"
    )
    found.add_argument(
        "--against", metavar="METHOD", help="test the others against this one alone, as the table names it"
    )
    found.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this knob; repeatable",
    )
    found.add_argument(
        "--by", action="append", default=[], metavar="KEY", help="a knob that tells methods apart; repeatable"
    )
    found.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY",
        help="a knob to average over as over seeds (pair.seed); repeatable",
    )
    found.add_argument(
        "--shareable",
        action="store_true",
        help="a report without prompts, references and responses, which may not be yours to pass on, and "
        "without this machine's directories; the tables beside it name these",
    )
    found.add_argument("--seed", type=int, default=0, help="of the resampling (%(default)s)")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables and the report; an error that the user can mend is one line, and status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    say(lambda: compare(parser().parse_args(given), given))


def compare(options: argparse.Namespace, given: Sequence[str]) -> list[str]:
    """Everything; returns what to say.

    Raises:
        UserError: no runs, damaged ones, or ones that must not be averaged or compared.
    """
    from amd_lightning.analysis.compare.collect import find_runs
    from amd_lightning.analysis.compare.comparison import comparison
    from amd_lightning.analysis.compare.methods import methods
    from amd_lightning.analysis.compare.report import write_report
    from amd_lightning.analysis.compare.report_rows import in_short
    from amd_lightning.analysis.compare.tables import write_tables
    from amd_lightning.analysis.compare.wandb_runs import SCHEME, wandb_runs

    local = find_runs([Path(name) for name in options.runs if not name.startswith(SCHEME)])
    runs, skipped = list(local.runs), [str(folder) for folder in local.unfinished]
    for address in options.runs:
        if address.startswith(SCHEME):
            theirs, others = wandb_runs(address)
            runs += theirs
            skipped += others
    lines = [f"skipped, not finished: {name}" for name in skipped]
    if not runs:
        there = f" ({len(skipped)} not finished)" if skipped else ""
        raise UserError(
            f"no finished run in {', '.join(options.runs)}{there}: name a folder that holds a results.json, "
            "or one above it"
        )
    kept = [run for run in runs if _wanted(run, options.where)]
    if not kept:
        raise UserError(f"none of {len(runs)} runs is as --where {' '.join(options.where)} says")
    found, warnings = methods(kept, options.by, options.over)
    result = comparison(found, warnings, metric=options.metric, against=options.against, seed=options.seed)
    if skipped:
        result = replace(
            result, warnings=[*result.warnings, f"Not finished and left out: {', '.join(skipped)}."]
        )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        write_tables(result, options.out)
        report = write_report(
            result,
            options.out,
            shlex.join(["python", "-m", "amd_lightning.compare", *given]),
            shareable=options.shareable,
        )
    except OSError as error:
        raise UserError(
            f"cannot write to {options.out} ({error.strerror or error}): set --out DIR"
        ) from error
    lines += [f"note: {warning}" for warning in warnings]
    lines += in_short(result)
    lines.append(f"{len(kept)} runs of {len(found)} methods -> {report} and tables beside it")
    return lines


def _wanted(run: Any, where: Sequence[str]) -> bool:
    """Whether a run has the values of KEY=VALUE; numbers are compared as numbers."""
    for pair in where:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--where {pair} is no KEY=VALUE: write --where data.task=samsum")
        if not _equal(run.setting(key), value):
            return False
    return True


def _equal(stated: Any, wanted: str) -> bool:
    if isinstance(stated, bool) or stated is None:
        return str(stated).lower() in (wanted.lower(), {"null": "none"}.get(wanted.lower(), wanted.lower()))
    if isinstance(stated, int | float):
        try:
            return float(wanted) == float(stated)
        except ValueError:
            return False
    return str(stated) == wanted


if __name__ == "__main__":
    main()
