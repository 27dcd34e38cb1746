"""The exact results that errors are measured against, for rows along the last axis.

A. Numbers are np.longdouble where that is wider than float64, and decimal.Decimal, a hundred times slower, where
   it is not (Windows, macOS on arm64): NumPy's functions work on arrays of both.
B. The largest element of a row is set apart, so that log(sum) is log1p(sum of the others), and 1 - p of the
   target is the sum of the other probabilities: nothing cancels where one class dominates.
"""

import decimal
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cylsm._cli._libraries import Arrays

LONGDOUBLE_BITS = np.finfo(np.longdouble).nmant + 1
LONGDOUBLE_IS_WIDER = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
DECIMAL_DIGITS = 40

Exact = NDArray[Any]


def description() -> str:
    if LONGDOUBLE_IS_WIDER:
        return f"longdouble, {LONGDOUBLE_BITS} bits"
    return f"decimal arithmetic, {DECIMAL_DIGITS} digits (longdouble is float64 here)"


def enough_digits() -> AbstractContextManager[Any]:
    """The context in which everything here has to run."""
    return decimal.localcontext(prec=DECIMAL_DIGITS)


def exact(array: NDArray[Any]) -> Exact:
    """The same numbers in the type to compute with."""
    if LONGDOUBLE_IS_WIDER:
        return array.astype(np.longdouble)
    return np.asarray(np.vectorize(Decimal, otypes=[object])(array.astype(np.float64)))


def _log1p(x: Exact) -> Exact:
    if LONGDOUBLE_IS_WIDER:
        return np.asarray(np.log1p(x))

    def log1p(number: Decimal) -> Decimal:
        # Where 1 + number loses digits, two terms of the series are enough.
        return number - number * number / 2 if number < Decimal("1e-16") else (1 + number).ln()

    return np.asarray(np.vectorize(log1p, otypes=[object])(x))


class ExactRows:
    """Exact results for one set of arrays, and the sums of magnitudes that some errors are relative to."""

    def __init__(self, arrays: Arrays) -> None:
        logits = exact(arrays.logits)
        leader = arrays.logits.argmax(-1, keepdims=True)
        largest = np.take_along_axis(logits, leader, -1)
        numerators = np.exp(logits - largest)
        rivals = numerators.copy()
        np.put_along_axis(rivals, leader, rivals.dtype.type(0), -1)
        others = rivals.sum(-1, keepdims=True)
        total = 1 + others
        log_of_sum = _log1p(others)
        self._arrays = arrays
        self.logsumexp = (largest + log_of_sum)[..., 0]
        self.log_softmax = (logits - largest) - log_of_sum
        self.softmax = numerators / total

        at_target = arrays.target[..., np.newaxis]
        not_target = np.where(at_target == leader, others, total - np.take_along_axis(numerators, at_target, -1))
        self.cross_entropy = -np.take_along_axis(self.log_softmax, at_target, -1)[..., 0]
        self.cross_entropy_gradient = self.softmax.copy()
        np.put_along_axis(self.cross_entropy_gradient, at_target, -not_target / total, -1)

    def logsumexp_backward(self) -> Exact:
        return np.asarray(exact(self._arrays.row_grad_output)[..., np.newaxis] * self.softmax)

    def log_softmax_backward(self) -> tuple[Exact, Exact]:
        """The gradient, and the sum of the magnitudes of the terms that it is."""
        g, p = exact(self._arrays.grad_output), np.exp(exact(self._arrays.log_probs))
        return g - p * g.sum(-1, keepdims=True), abs(g) + p * abs(g).sum(-1, keepdims=True)

    def softmax_backward(self) -> tuple[Exact, Exact]:
        """The gradient, and the sum of the magnitudes of the terms that it is."""
        g, p = exact(self._arrays.grad_output), exact(self._arrays.probs)
        terms = p * g
        return p * (g - terms.sum(-1, keepdims=True)), p * (abs(g) + abs(terms).sum(-1, keepdims=True))
