"""The picture of ``bench``: how fast every library moves an operation's bytes, and how fast memory would."""

import importlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

from cylsm._cli._cell import Cell
from cylsm._cli._errors import InputError

# A line joins arrays that differ in the number of rows alone.
DTYPE = "float32"
CLASSES = 1000
OPERATIONS = {
    "logsumexp": "one read",
    "log_softmax": "one read, one write",
    "cross_entropy_with_grad": "one read, one write",
}

COLOURS = 128

# Told apart without colours too.
STYLES: dict[str, dict[str, Any]] = {
    "cylsm": {"color": "#c1272d", "marker": "o", "linewidth": 2.5, "zorder": 4},
    "SciPy": {"color": "#7f7f7f", "marker": "s"},
    "PyTorch": {"color": "#e08214", "marker": "^"},
    "ONNX Runtime": {"color": "#1b7837", "marker": "D"},
    "JAX": {"color": "#2166ac", "marker": "v"},
    "memory": {"color": "black", "linestyle": "--", "linewidth": 1.5},
}


def figure_class() -> Any:
    """matplotlib's Figure, which needs no window and changes nothing global."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise InputError('--plot needs matplotlib: pip install "cylsm[cli]"') from error


def picture(figure_class: Any, cells: Iterable[Cell], libraries: Sequence[str], machine: str) -> bytes:
    """A PNG with a panel for each of `OPERATIONS`, side by side."""
    drawn = [cell for cell in cells if cell.dtype == DTYPE and cell.shape[1:] == (CLASSES,)]
    figure = figure_class(figsize=(11, 4.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(OPERATIONS), sharex=True, sharey=True)
    for panel, (operation, moves) in zip(panels, OPERATIONS.items(), strict=True):
        _draw(panel, [cell for cell in drawn if cell.operation == operation], [*libraries, "memory"])
        panel.set_title(f"{operation}: {moves}", fontsize=10)
    panels[0].set_ylabel("GB/s")
    panels[1].set_xlabel("bytes that have to be moved")
    figure.suptitle(f"{DTYPE} rows of {CLASSES} classes, {machine}", fontsize=12)
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}  # not all have all operations
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=len(lines), frameon=False)
    drawing, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawing, format="png")
    # A picture of few colours is a third of the size with a palette. Pillow comes with matplotlib.
    importlib.import_module("PIL.Image").open(drawing).convert("RGB").quantize(COLOURS, dither=0).save(png, "PNG")
    return png.getvalue()


def _draw(panel: Any, sweep: Sequence[Cell], names: Iterable[str]) -> None:
    for name in names:
        points = [(cell.bytes, cell.gb_per_s[name]) for cell in sweep if name in cell.seconds]
        if points:
            label = "memory: the bytes alone" if name == "memory" else name
            panel.plot(*zip(*sorted(points), strict=True), label=label, markersize=5, **STYLES[name])
    ticker = importlib.import_module("matplotlib.ticker")
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(ticker.EngFormatter("B"))
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(ticker.NullLocator())
    panel.grid(color="#dddddd", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
