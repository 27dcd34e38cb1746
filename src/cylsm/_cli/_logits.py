"""The rows that errors are measured on: ordinary ones, and those where digits get lost."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def _random(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return 10.0 ** rng.uniform(-3, 2, (rows, 1)) * rng.standard_normal((rows, classes))


def _offset(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return rng.choice([-1e4, 1e4], (rows, 1)) + rng.standard_normal((rows, classes))


def _confident(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    gap = 10.0 ** rng.uniform(-7, np.log10(700), (rows, 1))
    behind = rng.exponential(1.0, (rows, classes))
    behind -= behind.min(axis=1, keepdims=True)
    return _led_by_one(rng, -gap - behind)


def _many_rivals(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    gap = np.log(classes) + rng.uniform(-5, 30, (rows, 1))
    return _led_by_one(rng, -gap - 0.01 * rng.random((rows, classes)))


def _led_by_one(rng: np.random.Generator, rivals: Rows) -> Rows:
    """Set the first, the middle or the last class to 0, then move the row so that differences are inexact."""
    rows, classes = rivals.shape
    rivals[np.arange(rows), rng.choice([0, classes // 2, classes - 1], rows)] = 0
    return rivals + rng.uniform(-20, 20, (rows, 1))


def _ties(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    return rng.integers(-3, 4, (rows, classes)).astype(np.float64)


def _normalised(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    x = 4 * rng.standard_normal((rows, classes))
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


LOGITS: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "normal, of scale 1e-3 to 100": _random,
    "normal, moved by +-1e4": _offset,
    "one class ahead by 1e-7 to 700": _confident,
    "one class ahead of all others, which are nearly equal": _many_rivals,
    "small integers, many of them equal": _ties,
    "log-probabilities": _normalised,
}
