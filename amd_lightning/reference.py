"""Pages of the documentation that are written from the code when `make docs` builds it.

The configuration reference comes from the schema, the glossary of metrics from where they are defined, the
methods from `conf/objective`, the commands from their own `--help`: nothing of it is kept a second time.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra import compose, initialize_config_dir

from amd_lightning import compare, conf_dir, dashboard, evaluate, judge, presets, push, show_data
from amd_lightning.analysis.compare.measures import KNOWN
from amd_lightning.cli import default, limits, validated
from amd_lightning.modules import diagnostics

PLUS = ("experiment", "recipe", "sweep")
"""Groups that are added to the defaults."""

BETTER = {1: "higher", -1: "lower", 0: "–"}


def pages() -> dict[str, Callable[[], str]]:
    """Path below `docs/pages` -> what writes it."""
    return {
        "methods.md": methods,
        "reference/config.md": configuration,
        "reference/metrics.md": metrics,
        "reference/commands.md": commands,
    }


def methods() -> str:
    """The methods by name: what each sets, then what it is, what differs from its source, and the source."""
    found = presets.presets()
    lines = [
        "# The methods by name",
        "",
        "Written from the files in `conf/objective`. Every method is a distance x a beta x a source of "
        "states: J = beta·off + (1 − beta)·on, off the states of the data or the teacher, on the "
        "student's own. `objective=NAME` sets all three, and any knob beside it changes one: `objective=gkd "
        "objective.beta=0`, `objective=distillm rollout=fresh`, `objective=amm critic=learned`.",
        "",
        "| name | distance | beta | states |",
        "|---|---|---|---|",
        *(
            f"| [`{row.name}`](#{row.name}) | " + " | ".join(map(_cell, row[2:5])) + " |"  # as in the head
            for row in found
        ),
    ]
    for row in found:
        lines += ["", f"## {row.name}", "", row.what, "", f"*Differs:* {row.differs}", ""]
        lines += [f"*Source:* {row.source}"]
    return "\n".join(lines) + "\n"


# -- the configuration -----------------------------------------------------------------------------


def configuration() -> str:
    """Every knob: what it means, its limits, and its value where nobody sets it (at scale=demo)."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = validated(compose("config", overrides=["output_dir=."]), [], refuse_ignored=False)
    lines = [
        "# Every knob",
        "",
        "Written from the schema (`amd_lightning/config`). A knob is set with `KEY=VALUE`, a group with "
        "`GROUP=OPTION`; `python -m amd_lightning.run --help` says the same on a terminal, and `--cfg job` "
        "what a command line comes to. *Default* is the value without any override, which is that of "
        "`scale=demo`.",
        "",
        "A value out of its limits, an unknown key, and an option that the run would ignore are refused "
        "before anything starts, all of them at once.",
        "",
        "## Groups",
        "",
        "| choose with | options |",
        "|---|---|",
        *_groups(),
        "",
        "## The run itself",
        "",
        *_section(config, "", 2),
    ]
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[str]:
    for folder in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if options and folder.name != "limits":  # chosen by scale and data
            plus = "+" if folder.name in PLUS else ""
            yield f"| `{plus}{folder.name}=` | {', '.join(f'`{option}`' for option in options)} |"


def _section(section: Any, prefix: str, level: int) -> Iterator[str]:
    """The knobs of a section as a table, then the sections in it."""
    groups = [knob for knob in fields(section) if is_dataclass(getattr(section, knob.name))]
    hidden = () if prefix else ("experiment", "scale", "output_dir")
    rows = [knob for knob in fields(section) if knob not in groups and knob.name not in hidden]
    if rows:
        yield from ("| knob | default | meaning |", "|---|---|---|")
    for knob in rows:
        value = getattr(section, knob.name)
        shown = default(value) if isinstance(value, list) else default(value)[1:-1]
        yield f"| `{prefix}{knob.name}` | `{shown}` | {_cell(knob.metadata['meaning'] + limits(knob))} |"
    for knob in groups:
        yield from ("", f"{'#' * min(level, 4)} {prefix}{knob.name}", "")
        yield from (_cell(knob.metadata["meaning"]), "")
        yield from _section(getattr(section, knob.name), f"{prefix}{knob.name}.", level + 1)


def _cell(text: str) -> str:
    """Text for a table's cell, in one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# -- metrics ---------------------------------------------------------------------------------------


def logged_names() -> dict[str, str]:
    """What is logged while training -> its meaning, as the docstring of `diagnostics` has it."""
    found: dict[str, str] = {}
    name = ""
    head = ""
    for line in (diagnostics.__doc__ or "").splitlines():
        if start := re.match(r"(\w+/\w+)\s+(.*)", line):
            name, words = start.groups()
            found[name] = f"{head} {words}" if head else words
        elif not line.startswith(" "):  # the table is over, or has not begun
            name = head = ""
        elif line.endswith(":"):  # heads all names below it
            head = line.strip()
        elif name:
            found[name] += " " + line.strip()
    for off in [name for name in found if name.endswith("_off")]:
        on = off.removesuffix("off") + "on"  # one text goes on behind both names
        found[off] = found[on] = f"{found[off]} {found[on]}"
    return found


def metrics() -> str:
    """What every number is called and means: while training, of a validation, and in results.json."""
    lines = [
        "# Every metric",
        "",
        "Written from the code: `amd_lightning/modules/diagnostics.py` (while training) and "
        "`amd_lightning/analysis/compare/measures.py` (of a model). p is the teacher's next-token "
        "distribution, q the student's, f the critic. The names are the same for every method.",
        "",
        "## While training: `metrics.csv` and the loggers",
        "",
        "Against `update`, which is K critic steps and one student step.",
        "",
        "| name | meaning |",
        "|---|---|",
        *(f"| `{name}` | {_cell(words)} |" for name, words in logged_names().items()),
        "",
        "## Of a model: `results.json`, and under `valid/` at every validation",
        "",
        "*Off* is measured on the stored responses (of the data, or of the teacher), *on* on those that the "
        "model itself wrote. A key of a further evaluation set is headed by the set's name.",
        "",
        "| key | what | better | range |",
        "|---|---|---|---|",
        *(
            f"| `{one.key}` | {_cell(one.meaning)} | {BETTER[one.better]} | {_cell(one.range) or '–'} |"
            for one in KNOWN.values()
        ),
    ]
    return "\n".join(lines) + "\n"


# -- commands --------------------------------------------------------------------------------------


def commands() -> str:
    """What each entry says of itself."""
    helps = {
        "data": show_data.HELP,
        "evaluate": evaluate.HELP,
        "compare": compare.parser().format_help(),
        "dashboard": dashboard.parser().format_help(),
        "judge": judge.parser().format_help(),
        "push": push.parser().format_help(),
    }
    lines = [
        "# Every command",
        "",
        "`python -m amd_lightning.run` is the entry of a run; its knobs are in [Every knob](config.md), "
        "and `python -m amd_lightning.plan` takes the same command line and says what it would need. The "
        "others, as `--help` has them:",
    ]
    for name, text in helps.items():
        lines += ["", f"## python -m amd_lightning.{name}", "", "```text", text.strip(), "```"]
    return "\n".join(lines) + "\n"
