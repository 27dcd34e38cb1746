"""What holds for all shapes, strides, dtypes, axes and options: hypothesis looks for a counterexample.

The oracle is the first authority, SciPy the second; invariants need neither.
"""

import accuracy
import numpy as np
import pytest
import reference
import scipy.special
from hypothesis import assume, given
from hypothesis import strategies as st

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

dtypes = st.sampled_from((np.float16, *accuracy.FLOATS))
doubles = st.sampled_from(accuracy.FLOATS[-1:])
reductions = st.sampled_from(["none", "mean", "sum"])
INF = np.inf


@st.composite
def shapes(draw, least=0, most=4):
    """Up to four axes, one of them long at times."""
    shape = draw(st.lists(st.integers(0 if least == 0 else 1, 5), min_size=least, max_size=most))
    if shape and draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.sampled_from([16, 17, 33, 64, 65, 100, 257]))
    return tuple(shape)


@st.composite
def strided(draw, shape, values, dtype):
    """An array whose axes lie in memory in any order, forwards or backwards, with gaps or without."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, -1, 2, -3])) for _ in shape]
    room = np.zeros([shape[d] * abs(steps[d]) for d in order], dtype)
    view = room.transpose(np.argsort(order).astype(int)) if shape else room
    view = view[(..., *(slice(None, None, step) for step in steps))]
    view[...] = reference.rounded(values, dtype).reshape(shape)
    return view


@st.composite
def numbers(draw, shape, dtype, extremes=(INF, -INF, np.nan, 0.0), scale=None):
    """Numbers of one magnitude, some of them equal, a few of them extreme."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=shape) * (scale or draw(st.sampled_from([1e-3, 1.0, 5.0, 100.0])))
    if draw(st.booleans()):
        values = np.rint(values)
    if extremes and draw(st.booleans()):
        chosen = rng.random(shape) < draw(st.sampled_from([0.02, 0.2, 0.7]))
        values = np.where(chosen, draw(st.sampled_from(extremes)), values)
    return draw(strided(shape, values, dtype))


@st.composite
def axes(draw, ndim):
    """An axis, several, or all."""
    if ndim == 0:
        return draw(st.sampled_from([None, 0, -1]))
    one = st.integers(-ndim, ndim - 1)
    several = st.lists(one, max_size=ndim, unique_by=lambda axis: axis % ndim).map(tuple)
    return draw(st.one_of(one, st.none(), several))


def assert_agrees(function, **arguments):
    results = getattr(cylsm, function)(**arguments)
    accuracy.assert_accurate(results, accuracy.expected(function, **arguments))
    return results


# The oracle


@given(st.data())
def test_row_operations(data):
    dtype, shape = data.draw(dtypes), data.draw(shapes())
    x, axis = data.draw(numbers(shape, dtype)), data.draw(axes(len(shape)))
    before = x.copy()
    keepdims = data.draw(st.booleans())
    assert_agrees("logsumexp", x=x, axis=axis, keepdims=keepdims, return_sign=data.draw(st.booleans()))
    assert_agrees("log_softmax", x=x, axis=axis)
    assert_agrees("softmax", x=x, axis=axis)
    np.testing.assert_array_equal(x, before)


@given(st.data())
def test_weighted_logsumexp(data):
    dtype, shape = data.draw(dtypes), data.draw(shapes(least=1))
    fewer = tuple(data.draw(st.sampled_from([n, 1])) for n in shape)[data.draw(st.integers(0, len(shape))) :]
    shape_of_x, shape_of_b = data.draw(st.permutations([shape, fewer]))
    x = data.draw(numbers(shape_of_x, dtype, extremes=(INF, -INF, np.nan), scale=5.0))
    b = data.draw(numbers(shape_of_b, data.draw(dtypes), extremes=(0.0,), scale=1.0))
    axis = data.draw(axes(len(shape)))
    assert_agrees("logsumexp", x=x, b=b, axis=axis, keepdims=data.draw(st.booleans()), return_sign=True)
    assert_agrees("logsumexp", x=x, b=b, axis=axis)
    assert_agrees("logsumexp", x=x, b=abs(b), axis=axis)


@given(st.data())
def test_backward(data):
    dtype, shape = data.draw(dtypes), data.draw(shapes())
    axis = data.draw(axes(len(shape)))
    x = data.draw(numbers(shape, dtype, extremes=(-INF, 0.0)))
    grads = data.draw(numbers(shape, data.draw(dtypes), extremes=(0.0,), scale=0.3))
    sums = reference.logsumexp(np.zeros(shape), axis, keepdims=data.draw(st.booleans())).shape
    assert_agrees("logsumexp_backward", grad_output=data.draw(numbers(sums, dtype, (0.0,), 0.3)), x=x, axis=axis)
    for function, name in (("log_softmax", "log_probs"), ("softmax", "probs")):
        saved = data.draw(strided(shape, getattr(reference, function)(x, axis), dtype))
        assert_agrees(function + "_backward", **{"grad_output": grads, name: saved, "axis": axis})


@given(st.data())
def test_losses(data):
    function = data.draw(st.sampled_from(accuracy.LOSSES))
    dtype, shape = data.draw(dtypes), data.draw(shapes(least=1))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    assume(shape[axis] > 0)
    scores = data.draw(numbers(shape, dtype, extremes=(-INF, np.nan, 0.0)))
    if function == "nll_loss":
        scores = data.draw(strided(shape, reference.log_softmax(scores, axis), dtype))
    rows = np.moveaxis(scores, axis, -1).shape[:-1]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    options = {"axis": axis, "reduction": data.draw(reductions)}
    if data.draw(st.booleans()):
        options["weight"] = reference.rounded(rng.uniform(0.2, 1.5, shape[axis]), data.draw(dtypes))
    options["ignore_index"] = data.draw(st.sampled_from([None, -100, -1, 0, shape[axis], 10**6]))
    target = rng.integers(shape[axis], size=rows)
    if options["ignore_index"] is not None:
        target = np.where(rng.random(rows) < data.draw(st.sampled_from([0, 0.3, 1])), options["ignore_index"], target)
    target = data.draw(strided(rows, target, data.draw(st.sampled_from([np.int64, np.int32, np.dtype(">i4")]))))
    if function == "cross_entropy":
        options["label_smoothing"] = data.draw(st.sampled_from([0.0, 0.0, 0.25, 1.0]))
        if data.draw(st.booleans()):
            shares = data.draw(numbers(shape, data.draw(dtypes), extremes=(0.0,), scale=1.0))
            target = abs(shares)
            options["ignore_index"] = None
    given_arguments = {
        "logits" if function == "cross_entropy" else "log_probs": scores,
        "target": target,
        **options,
    }
    assert_agrees(function, **given_arguments)
    above = rows if options["reduction"] == "none" and data.draw(st.booleans()) else ()
    grad_output = data.draw(numbers(above, dtype, extremes=(0.0,), scale=0.3))
    assert_agrees(function + "_with_grad", **given_arguments, grad_output=grad_output)


# SciPy


@given(st.data())
def test_scipy_agrees(data):
    dtype, shape = data.draw(doubles), data.draw(shapes(least=1))
    assume(0 not in shape)
    x, axis = data.draw(numbers(shape, dtype, extremes=(INF, -INF, np.nan))), data.draw(axes(len(shape)))
    keepdims = data.draw(st.booleans())
    ours = [cylsm.logsumexp(x, axis, keepdims=keepdims), cylsm.log_softmax(x, axis), cylsm.softmax(x, axis)]
    rounding = 50 * np.finfo(dtype).eps
    with np.errstate(all="ignore"):
        theirs = [scipy.special.logsumexp(x, axis, keepdims=keepdims), scipy.special.log_softmax(x, axis)]
        if not (x == INF).any():  # SciPy's softmax is nan in the whole row then
            theirs.append(scipy.special.softmax(x, axis))
        for mine, other in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(mine, other, rtol=rounding, atol=rounding)


@given(st.data())
def test_scipy_agrees_with_weights(data):
    dtype, shape = data.draw(doubles), data.draw(shapes(least=1))
    assume(0 not in shape)
    x, axis = data.draw(numbers(shape, dtype, extremes=(-INF, 0.0), scale=3.0)), data.draw(axes(len(shape)))
    b = data.draw(numbers(shape, dtype, extremes=(0.0, 1.0), scale=1.0))
    ours, our_sign = cylsm.logsumexp(x, axis, b=b, return_sign=True)
    plain = cylsm.logsumexp(x, axis, b=b)
    with np.errstate(all="ignore"):
        log, sign = scipy.special.logsumexp(x, axis, b=b, return_sign=True)
        cancelled = scipy.special.logsumexp(x, axis, b=abs(b)) - log > 5
        for mine, other in ((ours, log), (our_sign, sign), (plain, scipy.special.logsumexp(x, axis, b=b))):
            mine, other = np.where(cancelled, 0, mine), np.where(cancelled, 0, other)
            np.testing.assert_allclose(mine, other, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-12)


# Invariants


@st.composite
def batches(draw, dtype, least_classes=1):
    """Finite rows along the last axis."""
    shape = (
        draw(st.integers(1, 5)),
        draw(st.sampled_from([*range(least_classes, 20), 33, 64, 65, 129, 1000, 4100])),
    )
    return draw(numbers(shape, dtype, extremes=(0.0,)))


@given(st.data())
def test_shifts_cancel(data):
    """log_softmax(x + c) is log_softmax(x) where x + c is exact: what one promises holds for the other."""
    dtype = data.draw(st.sampled_from(accuracy.FLOATS))
    x = np.rint(data.draw(batches(dtype)))
    shift = dtype(data.draw(st.integers(-(10**5), 10**5)))
    for function in ("log_softmax", "softmax"):
        accuracy.assert_accurate(getattr(cylsm, function)(x + shift), accuracy.expected(function, x=x))
    target = data.draw(st.integers(0, x.shape[1] - 1))
    labels = np.full(len(x), target)
    accuracy.assert_accurate(
        cylsm.cross_entropy_with_grad(x + shift, labels),
        accuracy.expected("cross_entropy_with_grad", logits=x, target=labels),
    )


@given(st.data())
def test_sums(data):
    """Probabilities add up to 1, the rows of a gradient to 0, to the rounding of their terms."""
    dtype = data.draw(st.sampled_from(accuracy.FLOATS))
    x = data.draw(batches(dtype))
    rounding = 100 * np.finfo(dtype).eps
    probabilities = cylsm.softmax(x)
    np.testing.assert_allclose(probabilities.sum(-1, dtype=np.float64), 1, rtol=rounding)
    np.testing.assert_allclose(reference.softmax(cylsm.log_softmax(x)).sum(-1), 1, rtol=rounding)
    grads = data.draw(numbers(x.shape, dtype, (0.0,), 1.0))
    size = abs(grads).sum(-1, dtype=np.float64).max() + 1
    target = np.zeros(len(x), int)
    for gradient in (
        cylsm.softmax_backward(grads, probabilities),
        cylsm.log_softmax_backward(grads, cylsm.log_softmax(x)),
        cylsm.cross_entropy_with_grad(x, target, reduction="none")[1],
        cylsm.cross_entropy_with_grad(x, target, label_smoothing=0.25)[1],
        cylsm.cross_entropy_with_grad(x, probabilities)[1],
    ):
        np.testing.assert_allclose(gradient.sum(-1, dtype=np.float64), 0, atol=rounding * size)


@given(st.data())
def test_classes_may_be_permuted(data):
    """Results follow, to the rounding of another order of addition."""
    dtype = data.draw(st.sampled_from(accuracy.FLOATS))
    x = data.draw(batches(dtype))
    order = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).permutation(x.shape[1])
    for function in accuracy.ROW_OPERATIONS:
        expected = accuracy.expected(function, x=x)[0]
        if function != "logsumexp":
            expected = expected[:, order]
        accuracy.assert_accurate(getattr(cylsm, function)(x[:, order]), (expected,))
    label = data.draw(st.integers(0, x.shape[1] - 1))
    at = np.flatnonzero(order == label)[0]
    made = {"target": np.full(len(x), at), "reduction": "none"}
    expected = accuracy.expected("cross_entropy_with_grad", logits=x, **made | {"target": np.full(len(x), label)})
    permuted = cylsm.cross_entropy_with_grad(x[:, order], **made)
    accuracy.assert_accurate(permuted, (expected[0], expected[1][:, order]))


@given(st.data())
def test_parts_of_a_sum(data):
    """The logsumexp of a concatenation is the logsumexp of the parts'."""
    dtype = data.draw(st.sampled_from(accuracy.FLOATS))
    x = data.draw(batches(dtype, least_classes=2))
    cut = data.draw(st.integers(0, x.shape[1]))
    parts = np.stack([cylsm.logsumexp(x[:, :cut]), cylsm.logsumexp(x[:, cut:])], -1)
    whole = cylsm.logsumexp(x)
    rounding = 4 * np.finfo(dtype).eps * np.maximum(abs(parts[np.isfinite(parts)]).max(), 1)
    np.testing.assert_allclose(cylsm.logsumexp(parts), whole, atol=rounding, rtol=0)


@given(st.data())
def test_one_row_is_as_in_its_batch(data):
    """A loss is reduced from what it is for each row."""
    dtype = data.draw(st.sampled_from(accuracy.FLOATS))
    x = data.draw(batches(dtype))
    labels = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(x.shape[1], size=len(x))
    rows = cylsm.cross_entropy(x, labels, reduction="none")
    total = cylsm.cross_entropy(x, labels, reduction="sum")
    assert accuracy.ulp_error(total, rows.astype(np.longdouble).sum()) <= 3
    accuracy.assert_same_bits(
        rows, np.array([cylsm.cross_entropy(x[i], labels[i], reduction="none") for i in range(len(x))])
    )
