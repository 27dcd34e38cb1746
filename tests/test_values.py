"""Contiguous rows along the last axis, every function: the limits that accuracy.py states."""

import accuracy
import cases
import numpy as np
import pytest

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

LENGTHS = (1, 2, 3, 5, 7, 10, 15, 16, 17, 24, 25, 31, 32, 33, 63, 64, 65, 80, 81, 100, 126, 127, 128, 129, 1000)
TILES = (2048, 4097, 8192, 8208, 16385, 16401, 32785)
BATCHES = (1, 2, 7, 63, 64, 65, 130)


@pytest.mark.parametrize("classes", LENGTHS + TILES)
@pytest.mark.parametrize("dtype", accuracy.FLOATS)
@pytest.mark.parametrize("function", accuracy.FUNCTIONS)
def test_rows(function, dtype, classes, seed):
    most = 130 if classes < 1000 else 63 if classes == 1000 else 7
    arguments, expected = cases.case(function, dtype, most, classes, seed)
    batches = [slice(n) for n in BATCHES if n <= most] + [slice(row, row + 1) for row in range(1, 6)]
    for rows in batches:
        result = getattr(cylsm, function)(**cases.rows_of(arguments, rows))
        accuracy.assert_accurate(result, tuple(exact[rows] for exact in expected))


@pytest.mark.parametrize("dtype", accuracy.FLOATS)
@pytest.mark.parametrize("function", accuracy.FUNCTIONS)
def test_row_of_a_million(function, dtype, seed):
    arguments, expected = cases.case(function, dtype, 1, 1_000_003, seed)
    accuracy.assert_accurate(getattr(cylsm, function)(**arguments), expected)


@pytest.mark.parametrize("classes", [*LENGTHS, 2049, 4097])
@pytest.mark.parametrize("dtype", accuracy.FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_weighted_rows(axis, dtype, classes, seed):
    """logsumexp with weights of one sign and of both, for each element, each class, each row and all at once."""
    rng = np.random.default_rng([seed, classes])
    x = cases.logits(rng, 67 if classes < 100 else 7, classes, dtype)
    positive = rng.uniform(0.2, 3, x.shape).astype(dtype)
    some = np.where(rng.random(x.shape) < 0.4, dtype(0), positive)
    signed = some * rng.choice(np.array([-1, 1], dtype), x.shape)
    x = np.ascontiguousarray(np.moveaxis(x, 1, axis))
    for b in (positive, some, signed, positive[:1], some[:1], signed[:, :1], np.ones((1, 1), dtype)):
        made = {"x": x, "b": np.moveaxis(b, 1, axis), "axis": axis, "return_sign": True}
        accuracy.assert_accurate(cylsm.logsumexp(**made), accuracy.expected("logsumexp", **made))


@pytest.mark.parametrize("rivals", [1, 40, 60_000])
@pytest.mark.parametrize("place", [0, 0.5, 1])
@pytest.mark.parametrize("gap", [20, 30, 60])
@pytest.mark.parametrize("top", [9.7, -0.0])
@pytest.mark.parametrize("dtype", accuracy.FLOATS)
def test_confident_row_keeps_its_digits(dtype, top, gap, place, rivals):
    """The gap may be inexact, and what is left of 1 - p is far below the spacing of numbers at 1."""
    target = round(place * rivals)
    x = np.full(rivals + 1, top - gap, dtype)
    x[target] = top
    for function in ("log_softmax", "softmax"):
        expected = accuracy.expected(function, x=x)
        accuracy.assert_accurate(getattr(cylsm, function)(x), expected)
    loss, gradient = cylsm.cross_entropy_with_grad(x, target)
    accuracy.assert_accurate((loss, gradient), accuracy.expected("cross_entropy_with_grad", logits=x, target=target))
    accuracy.assert_accurate(
        cylsm.cross_entropy(x, target), accuracy.expected("cross_entropy", logits=x, target=target)
    )
    assert loss > 0
    assert gradient[target] < 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", accuracy.FLOATS)
@pytest.mark.parametrize("limit", [200, -200, 1e5, -1e5])
@pytest.mark.parametrize("function", ["logsumexp", "softmax", "log_softmax", "logsumexp_backward"])
def test_tiles_that_count_from_different_references(function, limit, dtype, axis, rng):
    """The largest of one tile is ordinary, that of another is not."""
    x = rng.normal(limit - 10, 1, (20, 40_000))
    x[:, 100] = limit + 1
    x[:, 39_000] = limit - 1
    arguments = {"x": np.ascontiguousarray(np.moveaxis(x.astype(dtype), 1, axis)), "axis": axis}
    if function == "logsumexp_backward":
        arguments["grad_output"] = rng.normal(size=20).astype(dtype)
    expected = accuracy.expected(function, **arguments)
    accuracy.assert_accurate(getattr(cylsm, function)(**arguments), expected)


@pytest.mark.parametrize("classes", [50, 1000, 40_000])
@pytest.mark.parametrize("dtype", accuracy.FLOATS)
def test_infinite_sums(dtype, classes, rng):
    x = rng.normal(size=(3, classes)).astype(dtype)
    x[:, 7] = np.inf
    assert (cylsm.logsumexp(x, b=np.ones_like(x)) == np.inf).all()
    value, sign = cylsm.logsumexp(x, b=-np.ones_like(x), return_sign=True)
    assert (value == np.inf).all()
    assert (sign == -1).all()
    probs = np.full_like(x, 1 / classes)
    for gradient in (cylsm.log_softmax_backward(x, np.log(probs)), cylsm.softmax_backward(x, probs)):
        assert (np.delete(gradient, 7, axis=1) == -np.inf).all()
