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
    figure = figure_class(figsize=(11, 4.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(OPERATIONS), sharey=True)
    for panel, (operation, moves) in zip(panels, OPERATIONS.items(), strict=True):
        _draw(panel, [cell for cell in drawn if cell.operation == operation], [*libraries, "memory"])
        panel.set_title(f"{operation} ({moves})", fontsize=10)
    panels[0].set_ylabel("GB/s")
    figure.supxlabel("bytes that have to be moved", fontsize=10)
    figure.suptitle(f"{DTYPE}, rows of {CLASSES} classes; {machine}", fontsize=11)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw(panel: Any, sweep: Sequence[Cell], names: Iterable[str]) -> None:
    for name in names:
        points = [(cell.bytes, cell.gb_per_s[name]) for cell in sweep if name in cell.seconds]
        if points:
            label = "memory: moving the bytes alone" if name == "memory" else name
            panel.plot(*zip(*sorted(points), strict=True), label=label, markersize=5, **STYLES[name])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(which="major", color="#dddddd", linewidth=0.8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
