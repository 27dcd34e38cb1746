"""``python -m cylsm accuracy``: errors of cylsm, SciPy and PyTorch against exact results, in ulp."""

import argparse
import json
import math
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cylsm
from cylsm._cli import _exact
from cylsm._cli._exact import Exact, ExactRows, exact
from cylsm._cli._libraries import LIBRARIES, Arrays, Call, describe, installed_versions, without_warnings
from cylsm._cli._logits import LOGITS
from cylsm._cli._output import created

SEED = 0
COMPARED = ("cylsm", "SciPy", "PyTorch")
DTYPES = ("float32", "float64")

# Number of classes: rows of each kind.
ROWS = {2: 300, 3: 300, 10: 200, 100: 60, 1000: 15, 32000: 2}
FEWER_ROWS = {2: 40, 3: 40, 10: 30, 100: 10, 1000: 2}


@dataclass(frozen=True)
class Measure:
    """How the error of a result r is measured, and how large cylsm's may be."""

    name: str
    limits: tuple[float, float]  # of float32 and of float64
    grows: bool = True  # the limit, with max(1, -ln|r|)
    ulp_of: str = "|r|"

    @property
    def operation(self) -> str:
        return self.name.split(":")[0]

    def limit(self, dtype: str) -> float:
        return self.limits[DTYPES.index(dtype)]

    def result(self, returned: Any) -> NDArray[Any]:
        """What of an operation's return value is measured."""
        if isinstance(returned, tuple):
            loss, gradient = returned
            returned = gradient if self.name.endswith(": grad") else loss
        return np.asarray(returned)


MEASURES = (
    Measure("logsumexp", (1.5, 2), grows=False, ulp_of="max(|r|, 1)"),
    Measure("log_softmax", (2, 3)),
    Measure("softmax", (2.5, 3)),
    Measure("logsumexp_backward", (3, 4)),
    Measure("log_softmax_backward", (3, 4), grows=False, ulp_of="the terms' magnitudes, added"),
    Measure("softmax_backward", (3, 4), grows=False, ulp_of="the terms' magnitudes, added"),
    Measure("cross_entropy", (2, 3)),
    Measure("cross_entropy_with_grad: loss", (2, 3)),
    Measure("cross_entropy_with_grad: grad", (2.5, 3)),
)

EXPLANATION = """\
An error is |result - r| in ulp: the distance of neighbouring numbers of the dtype at |r|, the exact result. For
logsumexp it is the distance at max(|r|, 1); for log_softmax_backward and softmax_backward, which add terms of both
signs, at the sum of the terms' magnitudes. A result below the smallest normal number may be 0.
"of limit" is the largest error as a share of the limit that cylsm keeps, which stands at the end of the line; where
it is marked *, it is multiplied by max(1, -ln|r|), since a result e^-gap carries the rounding of the gap.
Gradients and losses beside SciPy's functions are the usual NumPy formulas with them."""

JSON_KEYS = """\
The JSON file holds an object: "versions" of the libraries, "isa", "exact" (what the exact results are computed with),
"rows" (how many of each kind, by number of classes), "kinds", "confident" (the loss of one confident row, exact and by
library) and "results". Each of these has "operation", "dtype", "elements", "limit" (of cylsm, in ulp), "grows" (whether
the limit does, with -ln|r|), "ulp_of" (which magnitude), and "errors": by library "max_ulp", "mean_ulp" and
"max_of_limit", null if infinite, as of a nan."""


@dataclass
class Errors:
    """What is kept of the errors of one library in one result."""

    largest: float = 0.0
    largest_of_limit: float = 0.0
    total: float = 0.0
    elements: int = 0

    def add(self, errors: NDArray[np.float64], limits: NDArray[np.float64] | float) -> None:
        self.largest = max(self.largest, float(errors.max()))
        self.largest_of_limit = max(self.largest_of_limit, float((errors / limits).max()))
        self.total += float(errors.sum())
        self.elements += errors.size

    @property
    def mean(self) -> float:
        return self.total / self.elements


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register ``accuracy``."""
    parser = commands.add_parser(
        "accuracy",
        help="errors of cylsm, SciPy and PyTorch in ulp",
        description="Measure the errors of cylsm, and of SciPy and PyTorch where they are installed, against exact "
        "results, over rows of many kinds: the largest and the mean, in units in the last place.",
        epilog=JSON_KEYS,
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, of at most 1000 classes")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table of errors, and the one call that says it all."""
    with ExitStack() as stack:
        write = stack.enter_context(created(args.json)) if args.json else None
        stack.enter_context(without_warnings())
        stack.enter_context(_exact.enough_digits())
        # The arrays are small, and on a busy machine threads would mostly wait for each other.
        cylsm.set_num_threads(1)
        stack.callback(cylsm.set_num_threads, None)
        config: Any = cylsm.show_config(mode="dicts")
        versions = installed_versions(COMPARED)
        rows = FEWER_ROWS if args.quick or not _exact.LONGDOUBLE_IS_WIDER else ROWS
        print(describe(versions, COMPARED))
        print(f"instruction set {config['isa']}; exact results: {_exact.description()}")
        counts = ", ".join(f"{count} of {classes}" for classes, count in rows.items())
        print(f"logits of each kind, rows of classes: {counts}")
        print(textwrap.fill(f"kinds: {'; '.join(LOGITS)}", 110))
        print()
        print(EXPLANATION)
        results = []
        for dtype in DTYPES:
            errors = _errors(dtype, rows, list(versions))
            print()
            _print_table(dtype, errors, list(versions))
            results += [_as_json(measure, dtype, errors[measure]) for measure in MEASURES]
        confident = _confident_row(list(versions))
        print()
        _print_confident_row(confident)
        if write:
            report = {
                "versions": versions,
                "isa": config["isa"],
                "exact": _exact.description(),
                "rows": rows,
                "kinds": list(LOGITS),
                "confident": confident,
                "results": results,
            }
            write(json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")


def _errors(dtype: str, rows: dict[int, int], libraries: Sequence[str]) -> dict[Measure, dict[str, Errors]]:
    errors = {measure: {library: Errors() for library in libraries} for measure in MEASURES}
    rng = np.random.default_rng(SEED)
    for logits_of in LOGITS.values():
        for classes, count in rows.items():
            logits = logits_of(rng, count, classes).astype(dtype)
            # In half of the rows the label is the class that leads.
            target = np.where(rng.random(count) < 0.5, logits.argmax(-1), rng.integers(0, classes, count))
            arrays = Arrays(logits, target, axis=-1, reduction="none", rng=rng)
            _add_errors(errors, arrays, libraries)
    return errors


def _add_errors(errors: dict[Measure, dict[str, Errors]], arrays: Arrays, libraries: Sequence[str]) -> None:
    calls = {library: _calls(library, arrays) for library in libraries}
    expected = _expected(ExactRows(arrays))
    dtype = arrays.logits.dtype
    for measure in MEASURES:
        value, magnitude = expected[measure.name]
        ulp = _ulp(magnitude, dtype)
        growth = np.maximum(1, -np.log(abs(value).astype(np.float64))) if measure.grows else 1.0
        limit = measure.limit(dtype.name) * growth
        for library in libraries:
            call = calls[library][measure.operation]
            if call is not None:
                distance = _distance(measure.result(call()), value)
                errors[measure][library].add(distance / ulp, limit)


def _calls(library: str, arrays: Arrays) -> dict[str, Call | None]:
    operations = {measure.operation for measure in MEASURES}
    return {operation: LIBRARIES[library](operation, arrays) for operation in operations}


def _expected(rows: ExactRows) -> dict[str, tuple[Exact, Exact]]:
    """The exact result of each measure, and the magnitude whose ulp counts."""
    own_magnitude = {
        "log_softmax": rows.log_softmax,
        "softmax": rows.softmax,
        "logsumexp_backward": rows.logsumexp_backward(),
        "cross_entropy": rows.cross_entropy,
        "cross_entropy_with_grad: loss": rows.cross_entropy,
        "cross_entropy_with_grad: grad": rows.cross_entropy_gradient,
    }
    return {
        "logsumexp": (rows.logsumexp, np.maximum(abs(rows.logsumexp), 1)),
        "log_softmax_backward": rows.log_softmax_backward(),
        "softmax_backward": rows.softmax_backward(),
        **{name: (value, value) for name, value in own_magnitude.items()},
    }


def _ulp(magnitude: Exact, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    info = np.finfo(dtype)
    exponent = np.frexp(abs(magnitude).astype(np.float64))[1] - 1
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, info.minexp) - info.nmant))


def _distance(result: NDArray[Any], value: Exact) -> NDArray[np.float64]:
    distance = abs(exact(result) - value).astype(np.float64)
    distance[~np.isfinite(result)] = np.inf
    smallest_normal = float(np.finfo(result.dtype).smallest_normal)
    distance[(result == 0) & (abs(value).astype(np.float64) < smallest_normal)] = 0
    return np.asarray(distance)


def _print_table(dtype: str, errors: dict[Measure, dict[str, Errors]], libraries: Sequence[str]) -> None:
    names = "".join(f"{library:>8}" for library in libraries)
    titles = [f"{title:>{8 * len(libraries)}}" for title in ("largest error, ulp", "mean error, ulp", "of limit")]
    print(f"{'':30}{'  '.join(titles)}")
    print(f"{dtype:30}{names}  {names}  {names}  limit")
    for measure, of_library in errors.items():
        columns = [
            "".join(f"{_short(getattr(of_library[library], column)):>8}" for library in libraries)
            for column in ("largest", "mean", "largest_of_limit")
        ]
        mark = "*" if measure.grows else ""
        print(f"{measure.name:30}{'  '.join(columns)}  {measure.limit(dtype):g}{mark}")


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 1000 else f"{number:.1e}"


def _confident_row(libraries: Sequence[str]) -> dict[str, float]:
    """The loss of one confident row, exactly and by each library."""
    logits, target = np.array([[20, 0]], np.float32), np.array([0])
    arrays = Arrays(logits, target, axis=-1, reduction="none", rng=np.random.default_rng(SEED))
    losses = {"exact": float(ExactRows(arrays).cross_entropy[0])}
    for library in libraries:
        call = LIBRARIES[library]("cross_entropy", arrays)
        if call is not None:
            losses[library] = abs(float(call()[0]))  # a loss of -0 is 0
    return losses


def _print_confident_row(losses: dict[str, float]) -> None:
    print("One call that says it all, the loss of a confident row: float32 logits [20, 0], label 0")
    print("  ".join(f"{name} {loss:.3g}" for name, loss in losses.items()))


def _as_json(measure: Measure, dtype: str, errors: dict[str, Errors]) -> dict[str, Any]:
    return {
        "operation": measure.name,
        "dtype": dtype,
        "elements": errors["cylsm"].elements,
        "limit": measure.limit(dtype),
        "grows": measure.grows,
        "ulp_of": measure.ulp_of,
        "errors": {
            library: {
                "max_ulp": _finite(of_library.largest),
                "mean_ulp": _finite(of_library.mean),
                "max_of_limit": _finite(of_library.largest_of_limit),
            }
            for library, of_library in errors.items()
        },
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
