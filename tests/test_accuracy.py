"""Rows where digits get lost, every function, against the limits that accuracy.py states.

They are computed along the last axis, and along the first where there are enough of them. A plain run takes few rows of
each kind, and few lengths; `--hypothesis-profile=thorough` takes rows of a million too.
"""

import functools
import math

import accuracy
import cases
import numpy as np
import pytest
import reference

import cylsm
from cylsm._cli._logits import LOGITS

pytestmark = pytest.mark.usefixtures("isa")

each_dtype = pytest.mark.parametrize("dtype", accuracy.FLOATS)


def led_by_one(rng, rivals, leader):
    """The rivals, and among them, first, in the middle or last, the leader."""
    rows, classes = rivals.shape
    rivals[np.arange(rows), rng.choice([0, classes // 2, classes - 1], rows)] = leader
    return rivals


def around_64(rng, rows, classes):
    """There the kernels change what they count from, and the difference to the largest becomes inexact."""
    largest = rng.choice([63.99, 64, 64.01, 127, 200, 700], rows) * rng.choice([-1, 1], rows)
    behind = rng.uniform(0, 10, (rows, classes)) + rng.uniform(0, 100, (rows, 1))
    return led_by_one(rng, largest[:, np.newaxis] - behind, largest)


def both_sides_of_0(rng, rows, classes):
    """A leader close to 64 in a row that ends far below -64."""
    return led_by_one(rng, rng.uniform(-200, 60, (rows, classes)), rng.choice([60, 63.99, 64.01, 70], rows))


def equal_rivals(rng, rows, classes):
    """Their sum is about what the leader has; it and the gap are inexact in binary."""
    leader = rng.choice([9.7, -9.7, 33.3, 64.1, -200.3], rows)
    gap = math.log(max(classes - 1, 1)) + rng.choice([-1e-3, 0, 1e-3, 0.7, 9, 20], rows)
    return led_by_one(rng, np.broadcast_to((leader - gap)[:, np.newaxis], (rows, classes)).copy(), leader)


def inexact_gaps(rng, rows, classes):
    return led_by_one(rng, np.full((rows, classes), 9.7 - 20) - rng.choice([0, 0.1, 30], (rows, classes)), 9.7)


def one_rival(rng, rows, classes):
    """It has nearly all of what the leader leaves: each of its additions shows."""
    x = rng.normal(size=(rows, classes)) - rng.uniform(5, 15, (rows, 1))
    x[np.arange(rows), rng.integers(classes, size=rows)] = -rng.uniform(0.4, 0.9, rows)
    return led_by_one(rng, x, np.zeros(rows)) + rng.uniform(-3, 3, (rows, 1))


def huge(rng, rows, classes):
    return rng.choice([-1e30, 1e30], (rows, 1)) + rng.normal(size=(rows, classes))


def far_apart(rng, rows, classes):
    return rng.choice([-1e30, 0, 1e30], (rows, classes))


def ascending(rng, rows, classes):
    return np.sort(rng.normal(size=(rows, classes)) * 10.0 ** rng.uniform(-1, 1.5, (rows, 1)), -1)


def descending(rng, rows, classes):
    return -ascending(rng, rows, classes)


def half_impossible(rng, rows, classes):
    x = rng.normal(size=(rows, classes)) * 3
    x[:, rng.permutation(classes)[: classes // 2]] = -np.inf
    return x


OWN = (
    around_64,
    both_sides_of_0,
    equal_rivals,
    inexact_gaps,
    one_rival,
    huge,
    far_apart,
    ascending,
    descending,
    half_impossible,
)
KINDS = LOGITS | {kind.__name__.replace("_", " "): kind for kind in OWN}

# Number of classes: rows. That many rows along the first axis are a kernel's lanes; fewer are gathered.
LANES = 16
ROWS = {1: 3, 2: 36, 3: 36, 5: 18, 10: 18, 17: 18, 100: 17, 1000: 2, 20_000: 1}
MORE_ROWS = dict.fromkeys(range(1, 70), 60) | {100: 60, 1000: 20, 4113: 17, 30_000: 6, 1_000_003: 1}


@functools.lru_cache(maxsize=128)
def case(function, dtype, kind, rows, classes, seed):
    """Arguments for rows of that kind, the same with rows along the first axis, and what the function returns."""
    rng = np.random.default_rng([seed, classes])
    x = reference.rounded(KINDS[kind](rng, rows, classes), dtype)
    made = cases.arguments(function, x, rng)
    if "target" in made:
        # In half of the rows the class that leads.
        made["target"] = np.where(np.arange(rows) % 2, made["target"], x.argmax(-1))
    turned = {name: value.T.copy() if np.ndim(value) == 2 else value for name, value in made.items()}
    return made, turned | {"axis": 0}, accuracy.expected(function, **made)


@pytest.mark.parametrize("kind", KINDS)
@each_dtype
@pytest.mark.parametrize("function", [name for name in accuracy.FUNCTIONS if not name.startswith("nll")])
def test_rows_where_digits_get_lost(function, dtype, kind, seed, thorough):
    for classes, rows in (MORE_ROWS if thorough else ROWS).items():
        made, turned, expected = case(function, dtype, kind, rows, classes, seed)
        accuracy.assert_accurate(getattr(cylsm, function)(**made), expected)
        if rows >= LANES:
            results = getattr(cylsm, function)(**turned)
            results = results if isinstance(results, tuple) else (results,)
            accuracy.assert_accurate(tuple(result.T for result in results), expected)


@pytest.mark.parametrize("classes", [3, 8, 17, 40, 79, 100, 257, 1000])
def test_a_rival_may_come_late(classes):
    """Where half an ulp of the sum is lost, that shows in one such row of two thousand, in float32. The rows are the
    same in each run: one of a million may be off by 2.1 ulp all the same."""
    x = one_rival(np.random.default_rng(classes), 1_000_000 // max(classes, 100), classes).astype(np.float32)
    gaps = x.astype(np.float64) - x.max(-1, keepdims=True)
    ties = gaps == 0
    others = np.where(ties, 0, np.exp(gaps)).sum(-1, keepdims=True)
    exact = gaps - np.log1p(ties.sum(-1, keepdims=True) - 1 + others)
    expected = accuracy.allow("log_softmax", exact, np.float32, factor=accuracy.growth(abs(exact)))
    accuracy.assert_accurate(cylsm.log_softmax(x), (expected,))
    turned = cylsm.log_softmax(np.ascontiguousarray(x.T), axis=0)
    accuracy.assert_accurate(turned.T, (expected,))


@each_dtype
def test_gradients_of_the_largest_numbers(dtype, rng):
    """None leaves the range on the way to a result within it; the error is the probability's, times the factor."""
    most = np.finfo(dtype).max
    for classes in (1, 2, 7, 12, 31, 100, 20_000):
        x = reference.rounded(rng.normal(size=(18, classes)) + rng.uniform(-100, 100, (18, 1)), dtype)
        x[np.arange(18), rng.integers(classes, size=18)] += dtype(9.3)
        grad_output = rng.uniform(0.5, 1, 18).astype(dtype) * rng.choice([-most, most], 18)
        exact = reference.logsumexp_backward(grad_output, x)
        probabilities = exact / grad_output[:, np.newaxis]
        expected = accuracy.allow("logsumexp_backward", exact, dtype, factor=accuracy.growth(abs(probabilities)))
        accuracy.assert_accurate(cylsm.logsumexp_backward(grad_output, x), (expected,))
        turned = cylsm.logsumexp_backward(grad_output, np.ascontiguousarray(x.T), axis=0)
        accuracy.assert_accurate(turned.T, (expected,))


@each_dtype
@pytest.mark.parametrize("leader", [0.5, 3e5])
def test_gradients_of_the_largest_numbers_far_from_the_leader(leader, dtype):
    """In another tile, where the probability is subnormal and what the factor makes of it is not."""
    gaps = np.array([1e-3, 0.3, 20, 60, 80] + ([708, 735, 744] if dtype == np.float64 else [88, 100, 103]))
    x = np.full((len(gaps), 40_000), -3e6, dtype)
    x[:, 0], x[:, 37_000] = leader, (leader - gaps).astype(dtype)
    grad_output = np.full(len(gaps), 0.9 * np.finfo(dtype).max, dtype)
    exact = reference.logsumexp_backward(grad_output, x)
    expected = accuracy.allow("logsumexp_backward", exact, dtype, factor=accuracy.growth(exact / grad_output[0]))
    accuracy.assert_accurate(cylsm.logsumexp_backward(grad_output, x), (expected,))


@each_dtype
def test_gradient_of_a_sure_row_is_the_factor_itself(dtype, rng):
    """Where one class has all the probability nothing is lost on the way, of the largest number neither."""
    rows = 64
    for classes in (1, 2, 8, 9, 16, 17, 127, 128, 1000, 20_000):
        sure = rng.integers(classes, size=rows)
        x = np.full((rows, classes), -np.inf, dtype)
        x[np.arange(rows), sure] = rng.uniform(-300, 300, rows)
        grad_output = rng.normal(size=rows).astype(dtype)
        grad_output[:2] = np.finfo(dtype).max, -np.finfo(dtype).max
        expected = np.zeros_like(x)
        expected[np.arange(rows), sure] = grad_output
        np.testing.assert_array_equal(cylsm.logsumexp_backward(grad_output, x), expected)
        turned = cylsm.logsumexp_backward(grad_output, np.ascontiguousarray(x.T), axis=0)
        np.testing.assert_array_equal(turned.T, expected)


@each_dtype
def test_additions_over_a_million_rows(dtype, rng):
    """Against the exact sum of what the rows lose each; a single-precision sum would be wrong in its third digit."""
    rows = 1_000_000
    logits = reference.rounded(rng.normal(size=(rows, 3)) * rng.choice([0.1, 3, 30], (rows, 1)), dtype)
    target = rng.integers(3, size=rows)
    exact = math.fsum(cylsm.cross_entropy(logits, target, reduction="none"))
    for reduction, divisor in (("sum", 1), ("mean", rows)):
        loss = cylsm.cross_entropy(logits, target, reduction=reduction)
        loss_with_grad, _ = cylsm.cross_entropy_with_grad(logits, target, reduction=reduction)
        assert max(accuracy.ulp_error(result, exact / divisor) for result in (loss, loss_with_grad)) <= 2


@each_dtype
def test_weighted_labels(dtype, rng):
    for classes, rows in ((2, 300), (10, 300), (40, 100), (300, 60)):
        logits = reference.rounded(rng.normal(size=(rows, classes)) * rng.choice([0.1, 3, 30], (rows, 1)), dtype)
        weight = reference.rounded(rng.uniform(0.2, 1.5, classes), dtype)
        made = {"logits": logits, "target": rng.integers(classes, size=rows), "weight": weight, "reduction": "none"}
        accuracy.assert_accurate(cylsm.cross_entropy(**made), accuracy.expected("cross_entropy", **made))


@each_dtype
def test_class_probabilities_that_do_not_sum_to_1(dtype, rng):
    for classes in (*range(2, 41), 300):
        logits = reference.rounded(rng.normal(size=(10, classes)) * 3, dtype)
        for target in (np.ones_like(logits), rng.integers(0, 2, logits.shape).astype(dtype)):
            made = {"logits": logits, "target": target, "reduction": "none"}
            for function in ("cross_entropy", "cross_entropy_with_grad"):
                accuracy.assert_accurate(getattr(cylsm, function)(**made), accuracy.expected(function, **made))
