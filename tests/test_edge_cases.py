"""The table of edge cases, each row of it: for row lengths around every block and vector width, in the first,
a middle and the last place of a row, in rows among ordinary ones, with the classes along the last axis or the
first.
"""

import functools

import accuracy
import cases
import numpy as np
import pytest
import reference

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

INF, NAN = np.inf, np.nan
LENGTHS = (1, 2, 3, *range(15, 18), *range(31, 34), *range(63, 66), 71, 72, 80, 81, *range(126, 130), 143, 144, 1000)
LENGTHS += (2047, 2049, 4095, 4097, 5003)
EACH = [*range(6)]  # the rows that hold something special

each_length = pytest.mark.parametrize("length", LENGTHS)
each_length_from_2 = pytest.mark.parametrize("length", LENGTHS[1:])
each_dtype = pytest.mark.parametrize("dtype", accuracy.FLOATS)
each_axis = pytest.mark.parametrize("axis", [-1, 0])


def places(length):
    """First, middle and last, twice: where the special rows hold what is special."""
    return [0, length // 2, length - 1] * 2


@functools.cache
def ordinary(dtype, length, seed):
    """Logits and labels of rows, the first six of which become special."""
    rng = np.random.default_rng([seed, length])
    x = cases.logits(rng, 67 if length <= 33 else 7, length, dtype)
    return x, cases.labels(rng, x)


def around(rows):
    """The first three rows at the top, the other three at the bottom."""
    return np.concatenate([rows[:3], rows[6:], rows[3:6]])


def along(axis, rows):
    rows = around(rows)
    return np.ascontiguousarray(np.moveaxis(rows, -1, axis) if rows.ndim == 2 else rows)


def special_first(rows):
    return np.concatenate([rows[:3], rows[-3:], rows[3:-3]])


def run(function, axis, **arguments):
    """Call cylsm with the classes along `axis`; here they come last, and the special rows first."""

    arranged = {
        name: value if name == "weight" or not isinstance(value, np.ndarray) else along(axis, value)
        for name, value in arguments.items()
    }
    results = getattr(cylsm, function)(axis=axis, **arranged)
    results = results if isinstance(results, tuple) else (results,)
    results = tuple(special_first(np.moveaxis(result, axis, -1)) if np.ndim(result) else result for result in results)
    accuracy.assert_accurate(results, accuracy.expected(function, **arguments))
    return results if len(results) > 1 else results[0]


def assert_all_nan(axis, x):
    """The special rows of all three results, throughout."""
    for function in ("logsumexp", "log_softmax", "softmax"):
        assert np.isnan(run(function, axis, x=x)[EACH]).all(), function


@each_axis
@each_dtype
@each_length
def test_any_nan(length, dtype, axis, seed):
    x = ordinary(dtype, length, seed)[0].copy()
    x[3:6] = INF  # nan counts for more
    x[EACH, places(length)] = NAN
    assert_all_nan(axis, x)


@each_axis
@each_dtype
@each_length_from_2
def test_nan_beside_inf(length, dtype, axis, seed):
    """The row is nan, not only where inf and nan stand."""
    x = ordinary(dtype, length, seed)[0].copy()
    x[EACH, places(length)] = INF
    x[EACH, [length - 1, 0, 0, length // 2, length - 1, length // 2]] = NAN
    assert_all_nan(axis, x)


@each_axis
@each_dtype
@each_length
def test_many_nans(length, dtype, axis, seed):
    x = ordinary(dtype, length, seed)[0].copy()
    x[0] = NAN
    x[1] = np.copysign(NAN, np.where(np.arange(length) % 3, 1, -1))
    x[2] = np.sort(x[2])
    x[2, ::9] = NAN  # the largest numbers come first and last
    x[3] = np.sort(x[3])[::-1]
    x[3, ::9] = NAN
    x[4] = -INF
    x[4, length // 2] = NAN
    x[5] = np.finfo(dtype).max
    x[5, -1] = NAN
    assert_all_nan(axis, x)


@each_axis
@each_dtype
@each_length
def test_all_minus_inf(length, dtype, axis, seed):
    x = ordinary(dtype, length, seed)[0].copy()
    x[EACH] = -INF
    assert (run("logsumexp", axis, x=x)[EACH] == -INF).all()
    assert np.isnan(run("log_softmax", axis, x=x)[EACH]).all()
    assert np.isnan(run("softmax", axis, x=x)[EACH]).all()


@each_axis
@each_dtype
@each_length
def test_plus_inf(length, dtype, axis, seed):
    """x - lse, as SciPy: nan where x is inf, -inf elsewhere."""
    x = ordinary(dtype, length, seed)[0].copy()
    x[EACH, places(length)] = INF
    x[3:6, 0] = INF
    infinite = x[EACH] == INF
    assert (run("logsumexp", axis, x=x)[EACH] == INF).all()
    np.testing.assert_array_equal(run("log_softmax", axis, x=x)[EACH], np.where(infinite, NAN, -INF))
    np.testing.assert_array_equal(run("softmax", axis, x=x)[EACH], np.where(infinite, NAN, 0))


@each_axis
@each_dtype
@each_length_from_2
def test_minus_inf_among_finite(length, dtype, axis, seed):
    x, _ = ordinary(dtype, length, seed)
    x = x.copy()
    x[EACH, places(length)] = -INF
    assert np.isfinite(run("logsumexp", axis, x=x)).all()
    log_probs = run("log_softmax", axis, x=x)
    np.testing.assert_array_equal(log_probs == -INF, x == -INF)
    assert (run("softmax", axis, x=x)[EACH, places(length)] == 0).all()


@each_axis
@each_dtype
@each_length_from_2
def test_gradient_at_minus_inf(length, dtype, axis, seed, rng):
    """Exactly 0, or minus the target mass it carries."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[EACH, places(length)] = -INF
    log_probs = reference.rounded(reference.log_softmax(x), dtype)
    probs = reference.rounded(reference.softmax(x), dtype)
    grads = rng.normal(size=x.shape).astype(dtype)
    grads[0, 0] = 0
    at = (EACH, places(length))
    per_row = rng.uniform(-1, 1, x.shape[0]).astype(dtype)
    assert (run("logsumexp_backward", axis, grad_output=per_row, x=x)[at] == 0).all()
    assert (run("softmax_backward", axis, grad_output=grads, probs=probs)[at] == 0).all()
    np.testing.assert_array_equal(
        run("log_softmax_backward", axis, grad_output=grads, log_probs=log_probs)[at], grads[at]
    )
    target[EACH] = (np.array(places(length)) + 1) % length
    _, gradient = run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
    assert (gradient[at] == 0).all()
    target[EACH] = places(length)
    loss, gradient = run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
    assert (loss[EACH] == INF).all()
    assert np.isfinite(gradient).all()
    assert (gradient[at] == -1).all()
    assert run("cross_entropy", axis, logits=x, target=target) == INF
    shares = np.zeros_like(x)
    shares[range(len(x)), target] = 0.75
    shares[range(len(x)), (target + 1) % length] = 0.25
    _, gradient = run("cross_entropy_with_grad", axis, logits=x, target=shares, reduction="sum")
    assert (gradient[at] == -0.75).all()


@each_axis
@each_dtype
@each_length
def test_nan_in_a_backward_function(length, dtype, axis, seed, rng):
    """It spreads as the formulas say: with a sum to the whole row, with a log-probability no further."""
    x, _ = ordinary(dtype, length, seed)
    at = (EACH, places(length))
    grads = rng.normal(size=x.shape).astype(dtype)
    log_probs = reference.rounded(reference.log_softmax(x), dtype)
    probs = reference.rounded(reference.softmax(x), dtype)
    bad_x, bad_grads, bad_log_probs, bad_probs = x.copy(), grads.copy(), log_probs.copy(), probs.copy()
    for bad in (bad_x, bad_grads, bad_log_probs, bad_probs):
        bad[at] = NAN
    bad_x[3:5] = -INF
    for gradient in (
        run("logsumexp_backward", axis, grad_output=grads[:, 0], x=bad_x),
        run("log_softmax_backward", axis, grad_output=bad_grads, log_probs=log_probs),
        run("softmax_backward", axis, grad_output=bad_grads, probs=probs),
        run("softmax_backward", axis, grad_output=grads, probs=bad_probs),
    ):
        assert np.isnan(gradient[EACH]).all()
    gradient = run("log_softmax_backward", axis, grad_output=grads, log_probs=bad_log_probs)
    np.testing.assert_array_equal(np.isnan(gradient), np.isnan(bad_log_probs))


@each_axis
@each_dtype
@each_length
def test_plus_inf_among_the_logits_of_a_loss(length, dtype, axis, seed):
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[EACH, places(length)] = INF
    target[:3] = places(length)[:3]
    target[3:6] = (np.array(places(length)[:3]) + 1) % length
    loss = run("cross_entropy", axis, logits=x, target=target, reduction="none")
    np.testing.assert_array_equal(loss[EACH], [NAN] * 3 + [INF if length > 1 else NAN] * 3)
    for reduction in ("none", "mean", "sum"):
        arguments = (along(axis, x), around(target), axis)
        with_grad, gradient = cylsm.cross_entropy_with_grad(*arguments, reduction=reduction)
        alone = cylsm.cross_entropy(*arguments, reduction=reduction)
        np.testing.assert_allclose(with_grad, alone, rtol=1e-6)
        if reduction == "none":
            np.testing.assert_allclose(np.moveaxis(gradient, axis, -1)[3:-3].sum(-1), 0, atol=1e-5)


@each_axis
@each_dtype
@each_length
def test_row_without_probabilities_has_no_loss(length, dtype, axis, seed):
    """Rows that hold nan, or nothing but -inf."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[:3] = -INF
    x[[3, 4, 5], places(length)[:3]] = NAN
    loss, gradient = run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
    assert np.isnan(loss[EACH]).all()
    assert np.isnan(gradient[EACH]).all()


@each_axis
@each_dtype
@each_length
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_ignored_rows(length, dtype, axis, reduction, seed):
    """Whatever they hold: loss 0, gradient exactly 0."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[0], x[1], x[2] = NAN, INF, -INF
    x[[3, 4, 5], places(length)[:3]] = INF, NAN, -INF
    target[EACH] = -100
    for function, scores in (("cross_entropy_with_grad", "logits"), ("nll_loss_with_grad", "log_probs")):
        for weight in (None, np.linspace(0.5, 1.5, length, dtype=dtype)):
            loss, gradient = run(function, axis, **{scores: x}, target=target, reduction=reduction, weight=weight)
            assert (gradient[EACH] == 0).all()
            assert np.isfinite(loss).all()
            if reduction == "none":
                assert (loss[EACH] == 0).all()


@each_axis
@each_dtype
@each_length
def test_all_rows_ignored(length, dtype, axis, seed):
    x, target = ordinary(dtype, length, seed)
    target = np.full_like(target, -100)
    for function, scores in (("cross_entropy_with_grad", "logits"), ("nll_loss_with_grad", "log_probs")):
        for reduction, value in (("mean", NAN), ("sum", 0), ("none", np.zeros(len(x)))):
            loss, gradient = run(function, axis, **{scores: x}, target=target, reduction=reduction)
            np.testing.assert_array_equal(loss, value)
            np.testing.assert_array_equal(gradient, 0)
            alone = run(function.removesuffix("_with_grad"), axis, **{scores: x}, target=target, reduction=reduction)
            np.testing.assert_array_equal(alone, value)


@each_axis
@each_dtype
@each_length_from_2
def test_no_mass_on_an_impossible_class(length, dtype, axis, seed):
    """A probability, weight or smoothing of 0 adds 0 where the log-probability is -inf."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[EACH, 0] = -INF
    target[:3], target[3:6] = 0, 1
    weight = np.ones(length, dtype)
    weight[0] = 0
    loss = run("cross_entropy", axis, logits=x, target=target, weight=weight, reduction="none")
    assert (loss[:3] == 0).all()
    assert (loss[3:] >= 0).all()
    assert np.isfinite(loss).all()
    loss, gradient = run(
        "cross_entropy_with_grad",
        axis,
        logits=x,
        target=target,
        weight=weight,
        label_smoothing=0.25,
        reduction="none",
    )
    assert np.isfinite(loss).all()
    assert (gradient[EACH, 0] == 0).all()
    smoothed = run("cross_entropy", axis, logits=x, target=target, label_smoothing=0.25, reduction="none")
    assert (smoothed[EACH] == INF).all()
    plain = run("cross_entropy", axis, logits=x, target=target, label_smoothing=0.0, reduction="none")
    assert np.isfinite(plain[3:]).all()
    shares = np.full(x.shape, 1 / (length - 1), dtype)
    shares[:, 0] = 0
    assert np.isfinite(run("cross_entropy", axis, logits=x, target=shares))
    log_probs = reference.rounded(reference.log_softmax(x), dtype)
    loss = run("nll_loss", axis, log_probs=log_probs, target=target, weight=weight, reduction="none")
    assert (loss[:3] == 0).all()
    log_probs[0, 0] = NAN
    loss = run("nll_loss", axis, log_probs=log_probs, target=target, weight=weight, reduction="none")
    np.testing.assert_array_equal(loss[:3], [NAN, 0, 0])


@each_axis
@each_dtype
@each_length
def test_rows_that_count_for_nothing(length, dtype, axis, seed):
    """Where rows count but their weights sum to 0, the mean and its gradient are nan."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), np.where(np.arange(len(x)) < 3, -100, target)
    arguments = {"target": target, "weight": np.zeros(length, dtype)}
    loss, gradient = run("cross_entropy_with_grad", axis, logits=x, **arguments)
    assert np.isnan(loss)
    assert (gradient[:3] == 0).all()
    assert np.isnan(gradient[3:]).all()
    assert np.isnan(run("cross_entropy", axis, logits=x, **arguments))
    assert np.isnan(run("nll_loss", axis, log_probs=-abs(x), **arguments))
    loss, gradient = cylsm.nll_loss_with_grad(along(axis, -abs(x)), around(target), axis, weight=arguments["weight"])
    gradient = special_first(np.moveaxis(gradient, axis, -1))
    assert np.isnan(loss)
    assert (gradient[:3] == 0).all()
    assert np.isnan(gradient[3:]).all()


@each_axis
@each_dtype
@each_length
def test_huge_equal_logits(length, dtype, axis, seed):
    """Never lse - x[t]: the loss of n equal logits is log n, however large they are."""
    x, target = ordinary(dtype, length, seed)
    for huge in (1e8, -1e8, 1e30, -3e38):
        x = x.copy()
        x[EACH] = huge
        loss, gradient = run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
        np.testing.assert_allclose(loss[EACH], np.log(length), rtol=1e-6)
        np.testing.assert_allclose(gradient[EACH].sum(-1), 0, atol=1e-6)


@each_axis
@each_dtype
@each_length_from_2
def test_differences_beyond_the_range(length, dtype, axis, seed):
    """A log-probability too low for its dtype is -inf, the loss inf, and nothing warns."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), (target * 0)
    huge = np.finfo(dtype).max
    x[EACH] = -huge
    x[EACH, places(length)] = huge
    target[:6] = (np.array(places(length)) + 1) % length
    assert (run("logsumexp", axis, x=x)[EACH] == huge).all()
    assert (run("log_softmax", axis, x=x)[range(6), target[:6]] == -INF).all()
    assert (run("softmax", axis, x=x)[EACH, places(length)] == 1).all()
    loss, gradient = run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
    assert (loss[EACH] == INF).all()
    assert (gradient[EACH, places(length)] == 1).all()


@each_axis
@each_dtype
@each_length_from_2
def test_smaller_than_the_smallest_normal_number(length, dtype, axis, seed):
    """Itself or 0, and nothing else: run compares."""
    x, target = ordinary(dtype, length, seed)
    x, target = x.copy(), target.copy()
    x[EACH] = np.log(np.finfo(dtype).smallest_normal) * np.array([0.99, 1, 1.01, 1.05, 1.1, 20])[:, None]
    x[EACH, places(length)] = 0
    target[EACH] = places(length)
    run("softmax", axis, x=x)
    run("cross_entropy_with_grad", axis, logits=x, target=target, reduction="none")
    run("log_softmax", axis, x=x)
    run("logsumexp_backward", axis, grad_output=np.ones(len(x), dtype), x=x)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 5), (2, 0, 4), (0, 0)])
@pytest.mark.parametrize("axis", [-1, 0])
@each_dtype
def test_empty_rows_and_batches(shape, axis, dtype):
    x = np.empty(shape, dtype)
    result = cylsm.logsumexp(x, axis)
    np.testing.assert_array_equal(result, np.full(np.delete(shape, axis), -INF))
    log, sign = cylsm.logsumexp(x, axis, return_sign=True)
    assert log.shape == sign.shape == result.shape
    assert (sign == 0).all()
    assert cylsm.log_softmax(x, axis).shape == cylsm.softmax(x, axis).shape == shape
    assert cylsm.logsumexp_backward(result, x, axis).shape == shape
    assert cylsm.log_softmax_backward(x, x, axis).shape == cylsm.softmax_backward(x, x, axis).shape == shape


@pytest.mark.parametrize(("shape", "axis"), [((0, 3), -1), ((3, 0), 0), ((0, 3, 4), 1), ((2, 3, 0), 1)])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@each_dtype
def test_losses_of_empty_batches(shape, axis, kind, dtype):
    logits = np.empty(shape, dtype)
    target = np.empty(np.delete(shape, axis), np.int64) if kind == "labels" else np.empty(shape, dtype)
    functions = ["cross_entropy"] + ["nll_loss"] * (kind == "labels")
    for function in functions:
        for reduction, value in (("mean", NAN), ("sum", 0), ("none", np.empty(np.delete(shape, axis)))):
            loss = getattr(cylsm, function)(logits, target, axis, reduction=reduction)
            np.testing.assert_array_equal(loss, value)
            loss, gradient = getattr(cylsm, function + "_with_grad")(logits, target, axis, reduction=reduction)
            np.testing.assert_array_equal(loss, value)
            assert gradient.shape == shape


@pytest.mark.parametrize(
    ("x", "b", "log", "sign"),
    [
        ([NAN, 0], [0, 1], 0, 1),
        ([INF, 0], [0, 1], 0, 1),
        ([NAN, INF], [0, 0], -INF, 0),
        ([0, 0], [1, -1], -INF, 0),
        ([-INF, -INF], [2, -3], -INF, 0),
        ([INF, 0], [1, -5], INF, 1),
        ([INF, 0], [-1, 5], INF, -1),
        ([INF, INF], [-1, -2], INF, -1),
        ([INF, INF], [1, -1], NAN, NAN),
        ([INF, INF], [2, -1], NAN, NAN),
        ([NAN, 0], [1, 1], NAN, NAN),
        ([0, 0], [NAN, 1], NAN, NAN),
        ([INF, NAN], [1, 1], NAN, NAN),
        ([0, 0], [-1, -1], np.log(2), -1),
        ([], [], -INF, 0),
    ],
)
@each_dtype
def test_weighted_logsumexp(x, b, log, sign, dtype):
    """As SciPy, but that b = 0 removes whatever there is, and that the sign of nothing is 0."""
    x, b = np.array(x, dtype), np.array(b, dtype)
    for places in (slice(None), slice(None, None, -1)):
        found = cylsm.logsumexp(x[places], b=b[places], return_sign=True)
        np.testing.assert_allclose(found, (log, sign), rtol=1e-6)
        np.testing.assert_allclose(cylsm.logsumexp(x[places], b=b[places]), NAN if sign == -1 else log, rtol=1e-6)
    padded = np.concatenate([np.full(70, -INF, dtype), x]), np.concatenate([np.ones(70, dtype), b])
    np.testing.assert_allclose(cylsm.logsumexp(padded[0], b=padded[1], return_sign=True), (log, sign), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "b"), [([0], [6e-309]), ([0, -1], [1e-310] * 2), ([700, 700], [1e-310] * 2), ([0], [1e300])]
)
def test_weighted_sums_near_the_ends_of_the_range(x, b, isa):
    expected = x[0] + np.log(b[0]) + np.log(np.exp(np.subtract(x, x[0])).sum())
    assert cylsm.logsumexp(x, b=b) == pytest.approx(expected, rel=1e-14)


def test_numbers_of_the_table():
    np.testing.assert_array_equal(cylsm.log_softmax([INF, 0]), [NAN, -INF])
    np.testing.assert_array_equal(cylsm.softmax([INF, 0]), [NAN, 0])
    assert cylsm.cross_entropy(np.float32([1e8, 1e8]), 0) == pytest.approx(np.log(2), rel=1.5e-7)
    assert cylsm.logsumexp([0, -40]) == pytest.approx(4.248354255291589e-18, rel=1e-15)
    np.testing.assert_allclose(cylsm.log_softmax([0, -40]), [-4.248354255291589e-18, -40], rtol=1e-15)
    assert cylsm.cross_entropy(np.float32([20, 0]), 0) == pytest.approx(2.0611536e-09, rel=1e-6)
