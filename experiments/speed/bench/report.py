"""The table and the picture of `results.json`."""

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench: tables -->", "<!-- bench: end -->"
MARKS = {True: "yes", False: "**no**", None: ""}


def table(results: dict[str, Any]) -> str:
    """Markdown, a table a group."""
    parts = ["Written by `experiments/speed/bench.py`.\n"]
    for group, found in results.items():
        options = found["options"]
        head = "{rounds} rounds of {updates} updates, {threads} thread(s)".format(**options)
        parts.append(f"\n**{group}** ({head})\n\n")
        if group.startswith("growth"):
            parts.append("| value | time | spread | memory |\n|--:|--:|--:|--:|\n")
            parts += [
                f"| {line['value']:,} | {line['ratio']:.2f} | {_range(line)} | {line['memory_ratio']:.2f} |\n"
                for line in found["comparisons"].values()
            ]
            continue
        parts.append("| comparison | ratio | spread | target | reached |\n|---|--:|--:|--:|---|\n")
        for name, line in found["comparisons"].items():
            spread = _range(line)
            if "seconds" in line:
                spread = f"{line['products']:.3f} of {line['seconds']:.3f} s"
            target = "" if line["target"] is None else f"{line['target']:g}"
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
            parts.append(f"| {name} | {ratio} | {spread} | {target} | {MARKS[line.get('reached')]} |\n")
    return "".join(parts)


def _range(line: dict[str, Any]) -> str:
    return " to ".join(f"{value:.2f}" for value in line.get("spread", []))


def inserted(text: str, tables: str) -> str:
    """A page with its tables, between the two marks, replaced by these.

    ValueError: the marks aren't there.
    """
    head, begun, rest = text.partition(BEGIN)
    _, ended, foot = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page has no {BEGIN} ... {END}; put them around its tables")
    return f"{head}{BEGIN}\n{tables}\n{END}{foot}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of all ratios with a spread, and their targets; growth beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {
        name: line
        for group, found in results.items()
        if not group.startswith("growth")
        for name, line in found["comparisons"].items()
        if "spread" in line
    }
    growth = {group: found for group, found in results.items() if group.startswith("growth")}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.3 * len(bars) + 1.5), layout="constrained")
    for place, (_, line) in enumerate(reversed(list(bars.items()))):
        missed = line["target"] is not None and not line["reached"]
        left.barh(place, line["ratio"], color="tab:orange" if missed else "tab:blue", height=0.6)
        left.plot(line["spread"], [place, place], color="black", linewidth=1)
        if line["target"] is not None:
            left.plot([line["target"]] * 2, [place - 0.4, place + 0.4], color="tab:red", linewidth=2)
    left.set_yticks(range(len(bars)), reversed(list(bars)), fontsize=8)
    left.axvline(1.0, color="grey", linewidth=0.5)
    left.set_xlabel("ours / other (black: spread over rounds, red: target, at most)")
    for group, found in growth.items():
        lines = list(found["comparisons"].values())
        sizes = [line["value"] / lines[0]["value"] for line in lines]
        (drawn,) = right.plot(sizes, [line["ratio"] for line in lines], marker="o", label=group + ": time")
        memory = [line["memory_ratio"] for line in lines]
        right.plot(sizes, memory, marker="x", linestyle=":", color=drawn.get_color(), label="memory")
    right.set(
        xscale="log", yscale="log", xlabel="size / smallest", ylabel="time and memory / those of the smallest"
    )
    if growth:
        right.legend(fontsize=7)
    figure.savefig(path, dpi=80)
