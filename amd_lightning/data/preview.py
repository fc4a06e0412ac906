"""What the models see of a data set: the first rows with their special tokens, the lengths, and a picture."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerFast

from amd_lightning.data.examples import LengthReport, TokenisedExample

SIDES = ("prompt", "response")
COLOURS = ("#0072b2", "#e69f00")
BINS = 40

Lengths = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""By split: tokens of all prompts and of all responses, before any cut."""


def rows_as_seen(rows: Sequence[TokenisedExample], tokenizer: PreTrainedTokenizerFast, count: int) -> str:
    """The first rows, token ids turned back into text with every special token in it."""
    parts = []
    for row in rows[:count]:
        prompt, response = (str(tokenizer.decode(ids)) for ids in (row.prompt_ids, row.response_ids))
        parts += [
            f"--- row {row.id}: prompt, {len(row.prompt_ids)} tokens",
            prompt,
            f"--- response, {len(row.response_ids)} tokens",
            response,
        ]
        others = [text for text in row.example.references if text != row.example.response]
        parts += [f"--- also right: {' | '.join(others)}"] if others else []
        parts.append("")
    return "\n".join(parts)


def lengths_in_words(reports: Mapping[str, LengthReport]) -> str:
    """Every split: its rows, the percentiles of lengths, and what the limits drop and truncate."""
    lines = []
    for name, report in reports.items():
        cuts = (
            ("prompt", report.prompt_lengths, report.limits.prompt_tokens)
            + (report.dropped_prompts, report.truncated_prompts),
            ("response", report.response_lengths, report.limits.response_tokens)
            + (report.dropped_responses, report.truncated_responses),
        )
        lines.append(f"{name}: {report.rows:,} rows")
        for side, lengths, limit, dropped, truncated in cuts:
            lines.append(
                f"  {side + ' tokens:':<17} {lengths}; limit {limit}: {dropped:,} dropped, "
                f"{truncated:,} truncated"
            )
    return "\n".join(lines)


def lengths_figure(lengths: Lengths, limits: tuple[int, int], title: str) -> Figure:
    """Histograms of the lengths, a row for each split, with a line at the limit."""
    figure = Figure(figsize=(9.0, 0.8 + 1.7 * len(lengths)), layout="constrained")
    axes = figure.subplots(len(lengths), 2, squeeze=False)
    for row, (name, both) in enumerate(lengths.items()):
        for axis, side, tokens, limit, colour in zip(axes[row], SIDES, both, limits, COLOURS, strict=True):
            widest = max(*tokens, limit)
            axis.hist(tokens, bins=min(BINS, widest), range=(0, widest), color=colour)
            axis.axvline(limit, color="black", linestyle="--", linewidth=1)
            over = sum(length > limit for length in tokens)
            axis.set_title(f"{name}: {over / len(tokens):.1%} over the limit of {limit}", fontsize=9)
            axis.set_ylabel("rows", fontsize=9)
            axis.tick_params(labelsize=8)
            if row == len(lengths) - 1:
                axis.set_xlabel(f"{side} tokens, special ones included", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)
    return figure
