"""The picture of a fault bench: which method detects which class, and how often each is right in total.

    draw(rows, totals, "SmolLM2-135M on opencl", Path("faults.svg"))       the ending says which format: .svg, .png

Needs matplotlib, which is loaded when a picture is drawn. The same result gives the same file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.diagnose.bench.result import METHODS, Method, Row, Totals, is_detected, operator_right, stage_right

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
ALL, SOME, NONE, ABSENT = "#2a9d8f", "#e9c46a", "#e4e7eb", "#f8f9fa"
BAR: dict[Method, str] = {
    "tapml": "#2a9d8f", "random": "#b8c4d6", "backendbench": "#c9d3b5", "flashinfer_bench": "#b5cfd3",
    "test_backend_ops": "#d3c3e0", "debug_compare": "#d6bccb", "prefix": "#e0c9b1", "end_to_end": "#e3d5bf",
}  # fmt: skip

_ROW = 0.27  # inches

# Columns of the matrix; TapML's holds more.
_WIDTHS: dict[Method, float] = {"tapml": 1.55, **dict.fromkeys(list(METHODS)[1:-1], 1.1), "end_to_end": 0.75}


def draw(rows: Sequence[Row], totals: Mapping[Method, Totals], title: str, path: Path) -> Path:
    """Draws to `path` and returns it. Rows without faults are shown as such."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "tapml", "text.color": INK}):
        height = max(5.0, _ROW * len(rows) + 1.7)
        figure = Figure(figsize=(18.0, height), facecolor=PAPER)
        figure.text(0.02, 1 - 0.28 / height, title, fontsize=13, fontweight="bold", va="center")
        words = "faults detected, of those injected; small: the right operator named, and the right stage (TapML only)"
        figure.text(0.02, 1 - 0.56 / height, words, fontsize=9, color=FAINT, va="center")
        grid = figure.add_gridspec(
            1, 2, width_ratios=(2.9, 1), left=0.145, right=0.975, top=1 - 1.2 / height, bottom=0.35 / height, wspace=0.12
        )
        _matrix(figure.add_subplot(grid[0, 0]), rows)
        _bars(figure.add_subplot(grid[0, 1]), totals)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, facecolor=PAPER, dpi=150)
    return path


def _matrix(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.patches import Rectangle

    for y, row in enumerate(rows):
        left = 0.0
        for method, width in _WIDTHS.items():
            n, of = row.count(method, is_detected)
            colour = ABSENT if not of else ALL if n == of else SOME if n else NONE
            axes.add_patch(Rectangle((left + 0.02, y + 0.06), width - 0.04, 0.88, facecolor=colour, linewidth=0))
            ink = "white" if colour == ALL else INK if of else FAINT
            text = f"{n}/{of}" if of else "–"
            axes.text(left + 0.09, y + 0.53, text, va="center", color=ink, fontweight="bold" if of else "normal")
            if of:
                axes.text(left + 0.38, y + 0.54, _small(row, method), va="center", color=ink, fontsize=7.5)
            left += width
    ends = [sum(list(_WIDTHS.values())[:k]) for k in range(len(_WIDTHS))]
    axes.set_xlim(0, sum(_WIDTHS.values()))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [row.label for row in rows])
    axes.set_xticks([])
    for start, method in zip(ends, _WIDTHS, strict=True):
        axes.text(start + 0.03, -0.25, METHODS[method], fontweight="bold", va="bottom")
    axes.tick_params(length=0, colors=INK)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row.faults else FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _small(row: Row, method: Method) -> str:
    if method == "end_to_end":
        return ""
    n, of = row.count(method, operator_right)
    text = f"operator {n}/{of}" if of else "in no operator"
    if method == "tapml":
        right, stages = row.count(method, stage_right)
        text += f" · stage {right}/{stages}"
    return text


def _bars(axes: Axes, totals: Mapping[Method, Totals]) -> None:
    """Shares of all faults, a group a question, one bar a method."""
    questions = ("detected", "right operator", "right stage")
    width = 0.76 / len(totals)
    for k, (method, total) in enumerate(totals.items()):
        for q, pair in enumerate((total.detected, total.operators, total.stages)):
            y = q + (k - (len(totals) - 1) / 2) * width
            if pair is None or not pair[1]:
                axes.text(0.012, y, f"{METHODS[method]}: –", va="center", fontsize=7.5, color=FAINT)
                continue
            share = pair[0] / pair[1]
            axes.barh(y, share, width * 0.88, color=BAR[method], linewidth=0)
            inside = share > 0.5
            text = f"{METHODS[method]} {pair[0]}/{pair[1]}"
            axes.text(share - 0.012 if inside else share + 0.012, y, text, va="center", ha="right" if inside else "left",
                      fontsize=7.5, color="white" if inside and method == "tapml" else INK)  # fmt: skip
    axes.set_xlim(0, 1.0)
    axes.set_ylim(len(questions) - 0.5, -0.6)
    axes.set_yticks([])
    for q, question in enumerate(questions):
        axes.text(0, q - 0.47, question, fontweight="bold", va="center")
    axes.set_xticks([0, 0.5, 1.0], ["0", "50 %", "100 %"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=FAINT)
    axes.grid(axis="x", color=NONE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
