"""``python -m cylsm bench``: cylsm beside its peers, and beside nothing but moving the bytes, on this machine."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

import cylsm
from cylsm._cli import _roofline
from cylsm._cli._cell import Cell
from cylsm._cli._libraries import (
    LIBRARIES,
    Arrays,
    Call,
    cylsm_call,
    describe,
    installed_versions,
    without_warnings,
)
from cylsm._cli._memory import movers
from cylsm._cli._output import created
from cylsm._cli._rounds import Repeat, best_times

SEED = 0
DTYPES = ("float32", "float64")

# What an operation has to move at least: arrays as large as the logits, the last of them written if there are more.
ARRAYS_MOVED = {
    "logsumexp": ("logits",),
    "log_softmax": ("logits", "out"),
    "softmax": ("logits", "out"),
    "log_softmax_backward": ("grad_output", "log_probs", "out"),
    "cross_entropy": ("logits",),
    "cross_entropy_with_grad": ("logits", "out"),
}


@dataclass(frozen=True)
class Grid:
    """Which arrays are measured, as shape and class axis, and how long."""

    arrays: tuple[tuple[tuple[int, ...], int], ...]
    seconds: float  # of each cell, and at least
    rounds: int


# Both have rows of `_roofline.CLASSES` from the first-level cache to memory, which the picture is drawn from.
FULL = Grid(
    (
        ((8, 10), -1),
        ((65536, 10), -1),
        ((4096, 128), -1),
        ((1, 1000), -1),
        ((16, 1000), -1),
        ((128, 1000), -1),
        ((1024, 1000), -1),
        ((4096, 1000), -1),
        ((32768, 1000), -1),
        ((512, 32000), -1),
        ((1, 4_000_000), -1),
        ((8, 21, 128, 128), 1),
    ),
    seconds=0.5,
    rounds=5,
)
QUICK = Grid((((1, 1000), -1), ((64, 1000), -1), ((4096, 1000), -1)), seconds=0.1, rounds=3)

# Arrays that no cache holds: there the share of the limit says how well the memory is used.
LARGE_BYTES = 100_000_000

EXPLANATION = """\
Columns: microseconds of a call, the best of many rounds in which all take turns. Who can fills an existing array; "new
array" is cylsm returning one; "memory" is NumPy moving the same bytes once and nothing else, on as many threads (small
arrays: a NumPy call). GB/s are those bytes in cylsm's time; "x peer" is the best peer's time and "of limit" that of
memory, as a multiple of cylsm's: above 1 cylsm is faster. Beside SciPy's functions, gradients and losses are the usual
NumPy formulas with them."""

JSON_KEYS = """\
The JSON file holds an object: "versions" of the libraries, "isa", "threads", "cells" and "summary". A cell has
"operation", "dtype", "shape", "axis" (of the classes), "bytes" (that have to be moved), "seconds" of a call by library,
of "new array" and of "memory", "gb_per_s" likewise, "best_peer", "x_peer" (both null without a peer) and "of_limit".
"summary" has for "x_peer", of all cells with a peer, and for "of_limit", of those that move 100 MB, null or "cells"
(how many), "geometric_mean", "smallest" and "smallest_at"."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register ``bench``."""
    parser = commands.add_parser(
        "bench",
        help="speed of cylsm, its peers and memory on this machine",
        description="Time cylsm beside SciPy, PyTorch, ONNX Runtime and JAX, whichever are installed, and beside "
        "moving the bytes that an operation has to move. Takes some minutes and 3 GB.",
        epilog=JSON_KEYS,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller arrays: half a minute, 1 GB")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="also draw bytes against GB/s to this file; needs matplotlib"
    )
    parser.add_argument(
        "--threads", type=_thread_count, metavar="N", help="threads to use (JAX takes no limit; default: all)"
    )
    parser.set_defaults(run=run)


def _thread_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Print a line for each operation on each array, and what they come to."""
    with ExitStack() as stack:
        figure_class = _roofline.figure_class() if args.plot else None
        write_plot = stack.enter_context(created(args.plot)) if args.plot else None
        write_json = stack.enter_context(created(args.json)) if args.json else None
        stack.enter_context(without_warnings())
        cylsm.set_num_threads(args.threads)
        stack.callback(cylsm.set_num_threads, None)
        threads = cylsm.get_num_threads()
        config: Any = cylsm.show_config(mode="dicts")
        versions = installed_versions(LIBRARIES)
        machine = f"instruction set {config['isa']}, threads {threads}"
        print(describe(versions, LIBRARIES))
        print(machine)
        print()
        print(EXPLANATION)
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        cells: list[Cell] = []
        for cell in _measured(QUICK if args.quick else FULL, versions, pool, threads):
            if not cells or cells[-1].array != cell.array:
                _print_header(cell, versions)
            _print_line(cell, versions)
            cells.append(cell)
        summary = _summary(cells)
        _print_summary(summary)
        if write_json:
            report = {
                "versions": versions,
                "isa": config["isa"],
                "threads": threads,
                "cells": [_as_json(cell) for cell in cells],
                "summary": summary,
            }
            write_json(json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")
        if write_plot:
            write_plot(_roofline.picture(figure_class, cells, [*versions], machine))


def _measured(grid: Grid, libraries: Iterable[str], pool: ThreadPoolExecutor, threads: int) -> Iterator[Cell]:
    for dtype in DTYPES:
        for shape, axis in grid.arrays:
            rng = np.random.default_rng(SEED)
            logits = 4 * rng.standard_normal(shape, np.dtype(dtype).type)
            rest = tuple(np.delete(shape, axis))
            target = rng.integers(0, shape[axis], rest)
            arrays = Arrays(logits, target, axis, "mean", rng)
            for operation, moved in ARRAYS_MOVED.items():
                calls = {library: _repeat(library, LIBRARIES[library], operation, arrays) for library in libraries}
                calls["new array"] = _repeat("cylsm", partial(cylsm_call, new=True), operation, arrays)
                present = {library: repeat for library, repeat in calls.items() if repeat is not None}
                memory = movers([getattr(arrays, name) for name in moved], pool, threads)
                best = best_times({**present, **memory}, grid.seconds, grid.rounds)
                seconds = {library: best[library] for library in present}
                seconds["memory"] = min(best[way] for way in memory)
                yield Cell(operation, dtype, shape, axis, len(moved) * logits.nbytes, seconds)


def _repeat(library: str, build: Callable[[str, Arrays], Call | None], operation: str, arrays: Arrays) -> Repeat | None:
    """What runs the operation many times, or None where the library has none or fails."""
    try:
        call = build(operation, arrays)
        if call is None:
            return None
        call()
    except Exception as error:  # a peer that lacks a dtype, say, must not end the run
        if library == "cylsm":
            raise
        reason = (str(error).splitlines() or [repr(error)])[0]
        print(f"bench: {library} left out of {operation}, {arrays.logits.dtype}: {reason}", file=sys.stderr)
        return None

    def repeat(times: int) -> None:
        for _ in range(times):
            call()

    return repeat


def _print_header(cell: Cell, libraries: Iterable[str]) -> None:
    names = "".join(f"{name:>{_width(name)}}" for name in _columns(libraries))
    print(f"\n{cell.array:28}{names}{'GB/s':>8}{'x peer':>8}{'of limit':>10}")


def _print_line(cell: Cell, libraries: Iterable[str]) -> None:
    columns = ""
    for name in _columns(libraries):
        text = f"{1e6 * cell.seconds[name]:.1f}" if name in cell.seconds else "-"
        columns += f"{text:>{_width(name)}}"
    x_peer = f"{cell.x_peer:.2f}" if cell.x_peer else "-"
    rate = cell.gb_per_s["cylsm"]
    print(f"{cell.operation:28}{columns}{rate:8.1f}{x_peer:>8}{cell.of_limit:10.2f}", flush=True)


def _columns(libraries: Iterable[str]) -> list[str]:
    return [*libraries, "new array", "memory"]


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _summary(cells: Sequence[Cell]) -> dict[str, Any]:
    of_peers = [(cell.x_peer, cell) for cell in cells if cell.x_peer is not None]
    of_limit = [(cell.of_limit, cell) for cell in cells if cell.bytes >= LARGE_BYTES]
    return {"x_peer": _ratios(of_peers), "of_limit": _ratios(of_limit)}


def _ratios(ratios: Sequence[tuple[float, Cell]]) -> dict[str, Any] | None:
    if not ratios:
        return None
    smallest, cell = min(ratios, key=lambda ratio: ratio[0])
    return {
        "cells": len(ratios),
        "geometric_mean": math.exp(math.fsum(math.log(ratio) for ratio, _ in ratios) / len(ratios)),
        "smallest": smallest,
        "smallest_at": f"{cell.operation}, {cell.array}",
    }


def _print_summary(summary: dict[str, Any]) -> None:
    print()
    titles = {"x_peer": "x best peer", "of_limit": f"of limit, where {LARGE_BYTES // 10**6} MB or more move"}
    for name, title in titles.items():
        ratios = summary[name]
        if ratios is not None:
            print(
                f"{title}: geometric mean {ratios['geometric_mean']:.2f} of {ratios['cells']} cells, "
                f"smallest {ratios['smallest']:.2f} ({ratios['smallest_at']})"
            )


def _as_json(cell: Cell) -> dict[str, Any]:
    derived = {name: getattr(cell, name) for name in ("gb_per_s", "best_peer", "x_peer", "of_limit")}
    return {**asdict(cell), **derived}
