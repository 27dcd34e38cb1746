"""What every function accepts, and what comes back."""

import accuracy
import cases
import numpy as np
import pytest
import reference

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

HALF, INTEGERS = np.float16, ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
NATIVE = (np.float16, *accuracy.FLOATS)
NOT_LOSSES = accuracy.ROW_OPERATIONS + accuracy.BACKWARD
LOSSES = accuracy.LOSSES + accuracy.LOSSES_WITH_GRAD

each_function = pytest.mark.parametrize("function", accuracy.FUNCTIONS)
each_loss = pytest.mark.parametrize("function", LOSSES)
needs_float64 = pytest.mark.skipif(not accuracy.EXTENDED_IS_WIDER, reason="no type to measure float64 with")


def assert_right(function, **arguments):
    results = getattr(cylsm, function)(**arguments)
    accuracy.assert_accurate(results, accuracy.expected(function, **arguments))
    return results


def scores_of(made):
    return next(name for name in ("x", "log_probs", "probs", "logits") if name in made)


@each_function
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("classes", [1, 3, 10, 17, 33, 130, 1000, 4200])
def test_floats_come_back_as_they_went_in(function, dtype, classes, seed):
    """Half precision but for sums: logsumexp and the losses are float32."""
    rows = 70 if classes < 100 else 5
    rng = np.random.default_rng([seed, classes])
    made = cases.arguments(function, cases.logits(rng, rows, classes, dtype), rng)
    results = assert_right(function, **made)
    results = results if isinstance(results, tuple) else (results,)
    for result in results:
        single = dtype == HALF and result.shape == (rows,)
        assert result.dtype == (np.float32 if single else dtype)
    assert_right(function, **{name: value.copy("F") if np.ndim(value) else value for name, value in made.items()})


def test_gradients_beyond_half_precision():
    """They are computed in float32, and infinite where they do not fit, without a warning."""
    big = np.float32([[1e6, 0, -1e6]])
    zeros, thirds = np.zeros((1, 3), HALF), np.full((1, 3), 1 / 3, HALF)
    results = [
        assert_right("logsumexp_backward", grad_output=big[:, 0], x=zeros),
        assert_right("log_softmax_backward", grad_output=big, log_probs=zeros - HALF(1.1)),
        assert_right("softmax_backward", grad_output=big, probs=thirds),
        assert_right("cross_entropy_with_grad", logits=zeros, target=[1], grad_output=big[0, 0])[1],
        assert_right("nll_loss_with_grad", log_probs=zeros, target=[1], grad_output=big[0, 0])[1],
    ]
    for result in results:
        assert np.isinf(result).any()
    inside = assert_right("softmax_backward", grad_output=np.full((1, 3), 60000, HALF), probs=thirds)
    assert np.isfinite(inside).all()


def test_half_precision_sums_are_single():
    assert cylsm.logsumexp(np.zeros(70_000, HALF)) == pytest.approx(np.log(70_000), rel=1e-7)
    assert cylsm.logsumexp(np.zeros((2, 70_000), HALF), None) == pytest.approx(np.log(140_000), rel=1e-7)
    loss = cylsm.cross_entropy(np.zeros((70_000, 4), HALF), np.zeros(70_000, int), reduction="sum")
    assert loss == pytest.approx(70_000 * np.log(4), rel=1e-6)


@needs_float64
@pytest.mark.parametrize("dtype", [*INTEGERS, "?"])
@pytest.mark.parametrize("function", NOT_LOSSES)
def test_integers_become_float64(function, dtype, rng):
    x = rng.integers(0, 2 if dtype == "?" else 100, size=(70, 9)).astype(dtype)
    made = cases.arguments(function, x.astype(float), rng)
    if function == "log_softmax_backward":
        x = -(x % 5) if x.dtype.kind == "i" else np.zeros_like(x)
    made[scores_of(made)] = x
    if "grad_output" in made:
        made["grad_output"] = (made["grad_output"] > 0).astype(dtype)
    assert assert_right(function, **made).dtype == np.float64


@needs_float64
def test_unsigned_differences_are_not_unsigned():
    log_probs = cylsm.log_softmax(np.array([1, 2], np.uint8))
    np.testing.assert_allclose(log_probs, [-1.3132616875182228, -0.31326168751822286], rtol=1e-15)
    assert cylsm.logsumexp(np.array([2**63, 2**63], np.uint64)) == 2.0**63
    assert cylsm.logsumexp(np.array([-(2**63), 0])) == 0


@needs_float64
@pytest.mark.parametrize("dtype", ["i4", "u1", "?"])
@pytest.mark.parametrize("function", LOSSES)
def test_losses_of_integers(function, dtype, rng):
    scores = rng.integers(0, 2, size=(20, 5)).astype(dtype)
    name = "logits" if function.startswith("cross") else "log_probs"
    assert_right(function, **{name: scores}, target=rng.integers(5, size=20))


@needs_float64
def test_lists_and_python_numbers():
    nested = [[1.0, -2.5, 3.0], [0.0, 0.25, -1.0]]
    for function in accuracy.ROW_OPERATIONS:
        assert_right(function, x=nested)
        assert_right(function, x=[[1, 2], [3, 4]], axis=(0, 1))
        assert_right(function, x=(True, False))
        assert_right(function, x=3)
    assert_right("logsumexp_backward", grad_output=[1, 2], x=nested)
    assert_right("log_softmax_backward", grad_output=nested, log_probs=nested)
    assert_right("softmax_backward", grad_output=nested, probs=nested)
    for function in LOSSES:
        name = "logits" if function.startswith("cross") else "log_probs"
        assert_right(function, **{name: nested}, target=[2, 0], weight=[1, 2, 0.5])
        assert_right(function, **{name: nested}, target=(2, -100))
        assert_right(function, **{name: nested[0]}, target=1)
    assert_right("cross_entropy", logits=nested, target=[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


# Labels


@each_loss
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((70, 9), -1), ((9, 70), 0), ((3, 9, 5), 1), ((6, 100), 1)])
def test_labels_of_every_integer_type(function, dtype, swapped, shape, axis, rng):
    dtype = np.dtype(dtype).newbyteorder("S" if swapped else "=")
    scores = rng.normal(size=shape).astype(np.float32)
    target = cases.labels(rng, scores, axis, dtype)
    name = "logits" if function.startswith("cross") else "log_probs"
    ignored = -1 if dtype.kind == "i" else np.iinfo(dtype).max
    for reduction in ("none", "mean"):
        made = {name: scores, "target": target, "axis": axis, "reduction": reduction}
        assert_right(function, **made)
        some = target.copy()
        some[:2] = ignored
        assert_right(function, **made | {"target": some, "ignore_index": int(ignored)})
        assert_right(function, **made | {"target": some, "ignore_index": some.dtype.type(ignored)})


@each_loss
def test_empty_list_of_labels(function):
    """NumPy makes float64 of it; it holds no label all the same."""
    for logits in (np.zeros((0, 3)), np.zeros((0, 3), np.float32)):
        loss = getattr(cylsm, function)(logits, [])
        assert np.isnan(loss[0] if isinstance(loss, tuple) else loss)


@each_loss
@pytest.mark.parametrize("label", [2, np.int64(2), np.uint8(2), np.array(2), np.array(2, ">i2")])
def test_scalar_label(function, label, rng):
    scores = rng.normal(size=7).astype(np.float32)
    name = "logits" if function.startswith("cross") else "log_probs"
    for reduction in ("none", "mean", "sum"):
        results = assert_right(function, **{name: scores}, target=label, reduction=reduction)
        loss = results[0] if isinstance(results, tuple) else results
        assert type(loss) is np.float32


# Several dtypes at once


@pytest.mark.parametrize("function", accuracy.BACKWARD)
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("other", [*NATIVE, np.int32, ">f4", ">f8", "?"])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradient_of_another_dtype(function, dtype, other, axis, seed):
    """What was computed decides, the gradient from above is converted."""
    rng = np.random.default_rng(seed)
    x = np.ascontiguousarray(np.moveaxis(cases.logits(rng, 40, 30, dtype), 1, axis))
    made = cases.arguments(function, x, rng, axis)
    made["grad_output"] = np.clip(np.rint(made["grad_output"] * 2), -1, 1).astype(other)
    assert assert_right(function, **made).dtype == dtype


@pytest.mark.parametrize("function", accuracy.LOSSES_WITH_GRAD)
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("other", [*NATIVE, np.int32, ">f8", "?"])
def test_weight_and_gradient_of_another_dtype(function, dtype, other, seed):
    rng = np.random.default_rng(seed)
    made = cases.arguments(function, cases.logits(rng, 40, 9, dtype), rng)
    weight = np.array([1, 2, 1, 0, 3, 1, 2, 4, 1]).astype(other)
    grad_output = (np.arange(40) % 3 - 1).astype(other)
    assert_right(function, **made, weight=weight, grad_output=grad_output)
    assert_right(function.removesuffix("_with_grad"), **made, weight=weight)
    assert_right(function, **made | {"reduction": "mean"}, weight=weight, grad_output=grad_output[0])


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("other", [*NATIVE, ">f4", ">f8"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(70, 9), (9, 70), (6, 300)])
def test_probabilities_of_another_dtype(dtype, other, axis, shape, seed):
    rng = np.random.default_rng(seed)
    logits = reference.rounded(rng.normal(size=shape), dtype)
    target = cases.distributions(rng, shape, HALF, axis).astype(other)
    for options in ({}, {"label_smoothing": 0.125, "reduction": "none"}):
        made = {"logits": logits, "target": target, "axis": axis, **options}
        assert_right("cross_entropy", **made)
        assert_right("cross_entropy_with_grad", **made)


def test_conversion_beyond_the_range_is_silent():
    """As everywhere: infinity, and no warning."""
    gradient = cylsm.logsumexp_backward(np.array([1e300]), np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(gradient, np.full((1, 3), np.inf, np.float32))
    assert cylsm.cross_entropy(np.zeros((1, 3), np.float32), [1], weight=[1e300] * 3, reduction="sum") == np.inf


@pytest.mark.parametrize(
    ("x", "b", "dtype"),
    [
        (np.float32([1, 2]), 2.0, np.float32),
        (np.float32([1, 2]), 3, np.float32),
        (np.float32([1, 2]), np.float64(2), np.float64),
        (np.float32([1, 2]), np.float32(2), np.float32),
        (np.float32([1, 2]), [1.0, 2.0], np.float64),
        (np.float32([1, 2]), np.array([1, 2]), np.float64),
        (np.float32([1, 2]), np.int8([1, 2]), np.float32),
        (np.float32([1, 2]), [True, False], np.float32),
        (np.float64([1, 2]), np.float32([1, 2]), np.float64),
        (np.float16([1, 2]), 2.0, np.float32),
        (np.float16([1, 2]), np.float16([1, 2]), np.float32),
        (np.float16([1, 2]), np.float64([1, 2]), np.float64),
        (np.int8([1, 2]), np.int8([1, 2]), np.float64),
        (np.int8([1, 2]), np.float32([1, 2]), np.float32),
        (np.array([1, 2]), np.float32([1, 2]), np.float64),
        (1.5, np.float32([1, 2]), np.float32),
        ([1.5, 2], 2, np.float64),
        (1, 2, np.float64),
        (np.dtype(">f4").type(1), np.array([1, 2], ">f4"), np.float32),
    ],
)
def test_b_promotes(x, b, dtype):
    """As result_type, Python numbers weak; then half precision is single and integers are double."""
    if dtype == np.float32 or accuracy.EXTENDED_IS_WIDER:
        assert assert_right("logsumexp", x=x, b=b).dtype == dtype
        log, sign = assert_right("logsumexp", x=x, b=b, return_sign=True)
        assert log.dtype == sign.dtype == dtype


# What is one number


@pytest.mark.parametrize("dtype", NATIVE)
def test_results_of_no_dimension_are_numpy_scalars(dtype):
    """But for out, which comes back itself."""
    x = np.array([1, 2, 3], dtype)
    single = np.float32 if dtype == HALF else dtype
    log, sign = cylsm.logsumexp(x, return_sign=True)
    losses = [
        cylsm.cross_entropy(x, 1),
        cylsm.cross_entropy(x, 1, reduction="none"),
        cylsm.nll_loss(x, 1, reduction="none"),
    ]
    losses += [cylsm.cross_entropy_with_grad(x, 1)[0], cylsm.nll_loss_with_grad(x, 1, reduction="none")[0]]
    losses += [cylsm.cross_entropy(x[None], [1], reduction="sum"), cylsm.nll_loss(x[None], [1])]
    for result in (cylsm.logsumexp(x), cylsm.logsumexp(x[None], None), log, sign, *losses):
        assert type(result) is single
    number = x[0]
    for result in (cylsm.log_softmax(number), cylsm.softmax(number), cylsm.softmax_backward(number, number)):
        assert type(result) is dtype
    out = np.empty((), single)
    assert cylsm.logsumexp(x, out=out) is out
    with_sign, sign = cylsm.logsumexp(x, return_sign=True, out=out)
    assert with_sign is out
    assert sign == 1


def test_arrays_in_foreign_byte_order_come_back_native(rng):
    for dtype in NATIVE:
        x = rng.normal(size=(4, 5)).astype(np.dtype(dtype).newbyteorder("S"))
        for function in accuracy.FUNCTIONS:
            made = cases.arguments(function, x.astype(dtype), rng)
            swapped = {name: value.astype(x.dtype) if np.ndim(value) == 2 else value for name, value in made.items()}
            results = getattr(cylsm, function)(**swapped)
            for result in results if isinstance(results, tuple) else (results,):
                assert result.dtype.isnative
            accuracy.assert_same_bits(results, getattr(cylsm, function)(**made))
