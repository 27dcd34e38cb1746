"""What cylsm promises of its results, and the comparison with the oracle that every test of values makes.

Limits are in units in the last place (ulp) of the result's dtype:

- logsumexp: of max(|r|, 1), where r is the exact result; with weights `b` of both signs times what cancels,
  sum |b e^x| / |sum b e^x|;
- log_softmax, softmax, the losses, their gradients and logsumexp_backward: of r, times max(1, -ln|r|), since
  a row in which one class is sure to within e^-gap carries the rounding of the gap;
- what adds terms of both signs (log_softmax_backward, softmax_backward, the gradient of cross-entropy where a
  target has several classes): of the sum of the terms' magnitudes, for the last times max(1, -ln) of it;
- "mean" and "sum": two more for the addition.

A result smaller than the smallest normal number may be 0, and so may a probability in a gradient, whatever
multiplies it (less than 1000 in these tests). float16 results are float32's, rounded once more.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import reference
from reference import silent

EXTENDED_IS_WIDER = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
# Without a wider type there is nothing to measure float64 with (macOS on arm64, Windows).
FLOATS = (np.float32, np.float64) if EXTENDED_IS_WIDER else (np.float32,)

ROW_OPERATIONS = ("logsumexp", "log_softmax", "softmax")
BACKWARD = ("logsumexp_backward", "log_softmax_backward", "softmax_backward")
LOSSES = ("nll_loss", "cross_entropy")
LOSSES_WITH_GRAD = ("nll_loss_with_grad", "cross_entropy_with_grad")
FUNCTIONS = ROW_OPERATIONS + BACKWARD + LOSSES + LOSSES_WITH_GRAD

# ulp in float32 and in float64
LIMITS = {
    "logsumexp": (1.5, 2),
    "log_softmax": (2, 3),
    "softmax": (2.5, 3),
    "logsumexp_backward": (3, 4),
    "log_softmax_backward": (3, 4),
    "softmax_backward": (3, 4),
    "loss": (2, 3),
    "loss gradient": (2.5, 3),
    "soft loss gradient": (3, 4),
    "addition of rows": (2, 2),
    "sign": (0.5, 0.5),
}


@silent
def ulp(magnitude, dtype):
    """The distance between neighbouring numbers of that magnitude in dtype."""
    info = np.finfo(dtype)
    magnitude = np.asarray(magnitude, np.longdouble)
    exponent = np.where(magnitude == 0, info.minexp, np.frexp(magnitude)[1] - 1)
    return np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp) - info.nmant)


@silent
def errors(result, exact, unit):
    """|result - exact| / unit; 0 for the right nan or infinity and an underflow to 0, inf for wrong ones."""
    result, exact = np.asarray(result), np.asarray(exact, np.longdouble)
    rounded = exact.astype(result.dtype)
    same = (result == rounded) | (np.isnan(result) & np.isnan(rounded))
    underflow = (result == 0) & (abs(exact) < np.finfo(result.dtype).smallest_normal)
    error = abs(result.astype(np.longdouble) - exact) / unit
    error = np.where(np.isfinite(result) & np.isfinite(rounded), error, np.where(same, 0, np.inf))
    return np.where(underflow, 0, error).astype(np.float64)


def ulp_error(result, exact):
    return errors(result, exact, ulp(exact, result.dtype))


@dataclass(frozen=True)
class Expected:
    """An exact result, and how far from it cylsm's, in `dtype`, may be."""

    value: np.ndarray
    dtype: np.dtype
    tolerance: np.ndarray

    def __getitem__(self, rows):
        return Expected(self.value[rows], self.dtype, self.tolerance[rows])


@silent
def allow(rule, value, dtype, magnitude=None, factor=1.0):
    """The limit of that rule, in ulp of `magnitude` (of the value itself if None), times `factor`."""
    value, single, double = np.asarray(value), *LIMITS[rule]
    magnitude = value if magnitude is None else magnitude
    if dtype == np.float16:
        tolerance = ulp(value, dtype) / 2 + single * factor * ulp(magnitude, np.float32)
    else:
        tolerance = (double if dtype == np.float64 else single) * factor * ulp(magnitude, dtype)
    if "backward" in rule or "gradient" in rule:
        tolerance = tolerance + 1000 * np.finfo(reference.computed_dtype(np.dtype(dtype))).smallest_normal
    return Expected(value, np.dtype(dtype), tolerance.astype(np.float64))


@silent
def growth(magnitude):
    """max(1, -ln magnitude): how the relative error of e^-gap grows with the gap."""
    return np.maximum(1, -np.log(np.where(magnitude == 0, 1, magnitude)))


@silent
def expected_logsumexp(**arguments):
    x, b = arguments["x"], arguments.get("b")
    operands = [a if np.isscalar(a) else np.asarray(a) for a in (x, b) if a is not None]
    dtype = reference.computed_dtype(np.result_type(*operands))
    log = reference.logsumexp(**arguments | {"return_sign": True})[0]
    value = reference.logsumexp(**arguments | {"return_sign": False})
    factor = 1.0
    if b is not None:
        with_magnitudes = arguments | {"b": abs(np.asarray(b)), "return_sign": False}
        factor = np.exp(reference.logsumexp(**with_magnitudes) - log)
    if not arguments.get("return_sign"):
        return (allow("logsumexp", value, dtype, np.maximum(abs(value), 1), factor),)
    sign = reference.logsumexp(**arguments)[1]
    return allow("logsumexp", log, dtype, np.maximum(abs(log), 1), factor), allow("sign", sign, dtype)


@silent
def expected_loss(value, function, arguments, dtype):
    """The loss of a row, or of all of them: every row may have the error of a row."""
    reduction = arguments.get("reduction", "mean")
    rows = value if reduction == "none" else getattr(reference, function)(**arguments | {"reduction": "none"})
    each = allow("loss", rows, dtype, factor=growth(abs(rows)))
    if reduction == "none":
        return each
    share = value / rows.sum() if reduction == "mean" and value else 1
    added = allow("addition of rows", value, dtype)
    return Expected(added.value, added.dtype, added.tolerance + np.float64(abs(share) * each.tolerance.sum()))


class Call:
    """A function and its arguments, equal where their values are."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments
        values = (repr(value) if np.isscalar(value) else digest(value) for value in arguments.values())
        self.key = (function, *arguments, *values)

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


def digest(value):
    array = np.asarray(value)
    return type(value), array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()


def expected(function, **arguments):
    """What cylsm's `function` returns for these arguments, one Expected for each of its results.

    The oracle is slow: its latest answers are kept, for the other instruction sets and layouts.
    """
    return answer(Call(function, arguments))


@functools.lru_cache(maxsize=64)
@silent
def answer(call):
    function, arguments = call.function, call.arguments
    if function == "logsumexp":
        return expected_logsumexp(**arguments)
    shaped_like = next(arguments[name] for name in ("x", "logits", "log_probs", "probs") if name in arguments)
    dtype = np.asarray(shaped_like).dtype.newbyteorder("=")
    computed = reference.computed_dtype(dtype)
    dtype = dtype if dtype == np.float16 else computed
    value = getattr(reference, function)(**arguments)
    if function in ("log_softmax_backward", "softmax_backward"):
        return (allow(function, value, dtype, getattr(reference, function + "_terms")(**arguments)),)
    if function in LOSSES:
        return (expected_loss(value, function, arguments, computed),)
    if function in LOSSES_WITH_GRAD:
        value, gradient = value
        rule, terms = "loss gradient", abs(gradient)
        if np.ndim(arguments["target"]) == gradient.ndim or arguments.get("label_smoothing"):
            rule, terms = "soft loss gradient", reference.cross_entropy_with_grad_terms(**arguments)
        arguments = {name: given for name, given in arguments.items() if name != "grad_output"}
        loss = expected_loss(value, function.removesuffix("_with_grad"), arguments, computed)
        return loss, allow(rule, gradient, dtype, terms, growth(terms))
    return (allow(function, value, dtype, factor=growth(abs(value))),)


def assert_accurate(results, expected_results):
    """Shape, dtype and every value of what a function returned, one array or a tuple."""
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(expected_results)
    for result, exact in zip(results, expected_results, strict=True):
        assert result.shape == exact.value.shape
        assert result.dtype == exact.dtype
        error = errors(result, exact.value, exact.tolerance)
        wrong = ~(error <= 1)
        if wrong.any():
            at = np.unravel_index(np.where(wrong, error, 0).argmax(), wrong.shape)
            found, true = result[at], exact.value[at]
            allowed = exact.tolerance[at] / ulp(true, exact.dtype)
            raise AssertionError(
                f"{wrong.sum()} of {wrong.size} are wrong; {tuple(map(int, at))}: {found!r}, exactly {true}: "
                f"{ulp_error(found, true):.4g} ulp, allowed are {allowed:.4g}"
            )


def assert_same_bits(actual, desired):
    """Bit for bit, the sign of 0 and all nans alike included."""
    actual = actual if isinstance(actual, tuple) else (actual,)
    desired = desired if isinstance(desired, tuple) else (desired,)
    for one, other in zip(actual, desired, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(np.signbit(one) & ~np.isnan(one), np.signbit(other) & ~np.isnan(other))
