"""A W&B project's workspace and report: `python -m amd_lightning.dashboard [PROJECT]`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amd_lightning.commands import Parser, say
from amd_lightning.errors import UserError

DESCRIPTION = """\
Build a W&B project's dashboard: a workspace and a report with moment matching against KL and reverse KL, the
β curve, both moment distances, step-wise total variation, cost against quality, and what the students write.
"""
EPILOGUE = """\
examples:
  python -m amd_lightning.dashboard --dry-run                # what would be sent, without account or network
  wandb sync runs/*/*/*/wandb/offline-*                      # the runs first
  python -m amd_lightning.dashboard amd_lightning --entity TEAM
"""
REMEDY = "log in with `wandb login`, check --entity and the project's name, or see --dry-run"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = Parser(
        prog="python -m amd_lightning.dashboard",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "project", nargs="?", default="amd_lightning", help="as in logger.wandb.project (%(default)s)"
    )
    found.add_argument("--entity", help="team or user (the account's default)")
    found.add_argument(
        "--metric", default="rouge_l", help="the task's own: rouge_l, bleu or accuracy (%(default)s)"
    )
    found.add_argument(
        "--dry-run", action="store_true", help="write the specification as JSON and send nothing"
    )
    found.add_argument("--out", type=Path, help="where --dry-run writes it (dashboard.json)")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Send or write the dashboard; an error that the user can mend is one line, and status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    say(lambda: dashboard(parser().parse_args(given)))


def dashboard(options: argparse.Namespace) -> list[str]:
    """Everything; returns what to say.

    Raises:
        UserError: the package is missing, W&B refuses, or the file cannot be written.
    """
    from amd_lightning.analysis.dashboard import METRICS, parts

    if options.metric not in METRICS:
        raise UserError(f"--metric {options.metric} is none of {', '.join(METRICS)}")
    if "/" in options.project:
        raise UserError(f"{options.project} is no project's name: write PROJECT --entity ENTITY")
    if options.out is not None and not options.dry_run:
        raise UserError("--out would be ignored without --dry-run, which writes there")
    _require_package()
    shown = parts(options.metric)
    if options.dry_run:
        return _write(options, shown)
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise UserError("W&B is told to stay offline (WANDB_MODE): unset it, or see --dry-run")
    return _send(options, shown)


def _require_package() -> None:
    try:
        import wandb_workspaces.reports.v2
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the package wandb-workspaces is not there ({error}): pip install -e '.[dashboard]'"
        ) from error


def _write(options: argparse.Namespace, shown: Sequence[Any]) -> list[str]:
    from amd_lightning.analysis.workspaces import report, specification, workspace

    entity = options.entity or ""
    found = {
        "entity": options.entity,
        "project": options.project,
        "workspace": specification(workspace(entity, options.project, shown)),
        "report": specification(report(entity, options.project, shown, known=False)),
    }
    out = options.out or Path("dashboard.json")
    try:
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror or error}): set --out FILE") from error
    panels = sum(len(part.panels) for part in shown)
    return [
        f"{len(shown)} sections with {panels} panels, as workspace and as report -> {out}; nothing was sent"
    ]


def _send(options: argparse.Namespace, shown: Sequence[Any]) -> list[str]:
    from amd_lightning.analysis.workspaces import report, workspace

    try:
        import wandb

        entity = str(options.entity or wandb.Api(timeout=20).default_entity)
        first = workspace(entity, options.project, shown).save()
        second = report(entity, options.project, shown, known=True).save()
    except Exception as error:  # of the network, of HTTP, of the account: W&B has many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"W&B takes no dashboard ({reason}): {REMEDY}") from error
    return [f"workspace: {first.url}", f"report: {second.url}"]


if __name__ == "__main__":
    main()
