"""A dashboard's plain values as the workspace and the report of the `wandb-workspaces` package."""

import json
from collections.abc import Sequence
from typing import Any

from amd_lightning.analysis.dashboard import BAR, BETA, LINE, MEDIA, SCATTER, Panel, Part

WIDTH, HEIGHT, ROW = 8, 6, 24
"""Of a panel, and of a row of them, in the report's grid."""

TITLE = "Distillation: {project}"
INTRODUCTION = (
    "Every run of the project, grouped by objective: a line is the mean over runs of one objective (its "
    "seeds, where nothing else differs), the band their range. Means with intervals and tests, and the "
    "refusal to average what must not be averaged: `python -m amd_lightning.compare wandb:ENTITY/PROJECT`."
)


def workspace(entity: str, project: str, shown: Sequence[Part]) -> Any:
    """The project's workspace: `shown` as sections, `update` as the x-axis, runs grouped by objective."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name="amd_lightning",
        auto_generate_panels=False,
        sections=[
            ws.Section(name=part.title, panels=[_panel(panel) for panel in part.panels], is_open=True)
            for part in shown
        ],
        settings=ws.WorkspaceSettings(x_axis="update", max_runs=30),
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("JobType")]),
    )


def report(entity: str, project: str, shown: Sequence[Part], *, known: bool) -> Any:
    """The same as a report to read.

    Args:
        known: whether W&B may be asked for the project, whose number stands in every run set that is sent.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.P(INTRODUCTION), wr.TableOfContents()]
    for part in shown:
        filters = f"Config('objective.distance') in {list(part.only)}" if part.only else ""
        runs = wr.Runset(
            entity=entity if known else "",
            project=project if known else "",
            name=f"{', '.join(part.only) or 'all'} runs",
            groupby=["JobType"],
            filters=filters,
        )
        placed = [_panel(panel, place) for place, panel in enumerate(part.panels)]
        blocks += [wr.H1(part.title), wr.P(part.text), wr.PanelGrid(runsets=[runs], panels=placed)]
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE.format(project=project),
        description="Built by python -m amd_lightning.dashboard",
        width="fluid",
        blocks=blocks,
    )


def specification(one: Any) -> dict[str, Any]:
    """What a workspace or a report sends, as JSON has it."""
    model = one._to_model()  # the package has no public name for it
    sent: dict[str, Any] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"name": model.display_name, "spec": sent}


def _panel(panel: Panel, place: int = 0) -> Any:
    import wandb_workspaces.reports.v2 as wr

    column = place * WIDTH
    layout = wr.Layout(x=column % ROW, y=column // ROW * HEIGHT, w=WIDTH, h=HEIGHT)
    zero = {"range_y": (0.0, None)} if panel.from_zero else {}
    if panel.kind == LINE:
        return wr.LinePlot(
            title=panel.title,
            x=panel.x,
            y=list(panel.keys),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=layout,
            **zero,
        )
    if panel.kind == SCATTER:
        (key,) = panel.keys
        x = wr.Config(BETA.removeprefix("config.")) if panel.x == BETA else wr.SummaryMetric(panel.x)
        return wr.ScatterPlot(title=panel.title, x=x, y=wr.SummaryMetric(key), layout=layout, **zero)
    if panel.kind == BAR:
        return wr.BarPlot(
            title=panel.title, metrics=list(panel.keys), groupby_rangefunc="minmax", layout=layout
        )
    if panel.kind == MEDIA:
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys), layout=layout)
    (key,) = panel.keys
    return wr.WeavePanelSummaryTable(table_name=key, layout=layout)
