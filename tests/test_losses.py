"""Losses and their gradients in every combination of options, and all gradients by differences."""

import accuracy
import cases
import numpy as np
import pytest
import reference

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

CLASSES = 9
IGNORED = {"none": None, "negative": -100, "minus one": -1, "a class": 3, "above": 200}

each_dtype = pytest.mark.parametrize("dtype", accuracy.FLOATS)
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
each_weighting = pytest.mark.parametrize("weighted", [False, True])
each_smoothing = pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5, 1.0])
each_reduction_and_gradient = pytest.mark.parametrize(
    ("reduction", "upstream"),
    [
        ("none", None),
        ("none", "scalar"),
        ("none", "each row"),
        ("mean", None),
        ("mean", "scalar"),
        ("sum", None),
        ("sum", "scalar"),
    ],
)
each_length = pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 24, 25, 33, 64, 129, 1000, 2049, 4097])
numerical = pytest.mark.skipif(not accuracy.EXTENDED_IS_WIDER, reason="differences need extended precision")


def batch(dtype, seed, rows=70, classes=CLASSES):
    rng = np.random.default_rng([seed, rows, classes])
    return cases.logits(rng, rows, classes, dtype), rng


def scores_name(function):
    return "logits" if function.startswith("cross") else "log_probs"


def assert_loss(function, grad_output=None, **arguments):
    """The loss alone, and with its gradient; the two agree within a few ulp."""
    alone = getattr(cylsm, function)(**arguments)
    accuracy.assert_accurate(alone, accuracy.expected(function, **arguments))
    with_grad = arguments if grad_output is None else arguments | {"grad_output": grad_output}
    loss, gradient = getattr(cylsm, function + "_with_grad")(**with_grad)
    accuracy.assert_accurate((loss, gradient), accuracy.expected(function + "_with_grad", **with_grad))
    assert (accuracy.ulp_error(loss, alone) <= 4).all()
    return loss, gradient


def upstream_of(upstream, dtype, rng):
    rows = reference.rounded(rng.uniform(-1, 1, 70), dtype)
    return {None: None, "scalar": -0.75, "each row": rows}[upstream]


@each_dtype
@each_reduction_and_gradient
@each_weighting
@pytest.mark.parametrize("ignored", IGNORED)
@pytest.mark.parametrize("function", accuracy.LOSSES)
def test_labels(function, ignored, upstream, weighted, reduction, dtype, seed):
    x, rng = batch(dtype, seed)
    scores = x if function == "cross_entropy" else reference.rounded(reference.log_softmax(x), dtype)
    target = rng.integers(CLASSES, size=70)
    if IGNORED[ignored] is not None:
        target[::4] = IGNORED[ignored]
    counted = target != IGNORED[ignored] if IGNORED[ignored] is not None else np.ones(70, bool)
    weight = reference.rounded(rng.uniform(0.2, 1.5, CLASSES), dtype) if weighted else None
    loss, gradient = assert_loss(
        function,
        upstream_of(upstream, dtype, rng),
        **{scores_name(function): scores},
        target=target,
        weight=weight,
        ignore_index=IGNORED[ignored],
        reduction=reduction,
    )
    assert (gradient[~counted] == 0).all()
    if reduction == "none":
        assert (loss[~counted] == 0).all()


@each_dtype
@each_reduction_and_gradient
@each_weighting
@each_smoothing
@pytest.mark.parametrize("ignored", ["none", "negative", "a class"])
def test_smoothed_labels(ignored, label_smoothing, upstream, weighted, reduction, dtype, seed):
    x, rng = batch(dtype, seed)
    target = rng.integers(CLASSES, size=70)
    target[::4] = 3 if IGNORED[ignored] is None else IGNORED[ignored]
    _, gradient = assert_loss(
        "cross_entropy",
        upstream_of(upstream, dtype, rng),
        logits=x,
        target=target,
        weight=reference.rounded(rng.uniform(0.2, 1.5, CLASSES), dtype) if weighted else None,
        ignore_index=IGNORED[ignored],
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    assert ignored == "none" or (gradient[::4] == 0).all()


@each_dtype
@each_reduction_and_gradient
@each_weighting
@each_smoothing
@pytest.mark.parametrize("ignore_index", [None, -100])
def test_probabilities(ignore_index, label_smoothing, upstream, weighted, reduction, dtype, seed):
    x, rng = batch(dtype, seed)
    assert_loss(
        "cross_entropy",
        upstream_of(upstream, dtype, rng),
        logits=x,
        target=cases.distributions(rng, x.shape, dtype),
        weight=reference.rounded(rng.uniform(0.2, 1.5, CLASSES), dtype) if weighted else None,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


@each_dtype
@each_length
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_row_lengths(kind, axis, classes, dtype, seed):
    """All options at once, and each of them alone."""
    x, rng = batch(dtype, seed, 67 if classes < 40 else 7, classes)
    labels, shares = cases.labels(rng, x), cases.distributions(rng, x.shape, dtype)
    labels[::5] = -100
    weight = reference.rounded(rng.uniform(0.2, 1.5, classes), dtype)
    target = labels if kind == "labels" else np.ascontiguousarray(np.moveaxis(shares, -1, axis))
    made = {"logits": np.ascontiguousarray(np.moveaxis(x, -1, axis)), "target": target, "axis": axis}
    rows = reference.rounded(rng.uniform(-1, 1, len(x)), dtype)
    assert_loss("cross_entropy", rows, **made, weight=weight, label_smoothing=0.25, reduction="none")
    assert_loss("cross_entropy", **made, weight=weight, label_smoothing=0.25)
    assert_loss("cross_entropy", **made, weight=weight)
    assert_loss("cross_entropy", **made, label_smoothing=0.1)
    assert_loss("cross_entropy", **made, reduction="sum")


@each_dtype
@each_reduction
@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 5000])
@pytest.mark.parametrize("function", accuracy.LOSSES)
def test_numbers_of_rows(function, rows, reduction, dtype, seed):
    x, rng = batch(dtype, seed, rows, 5)
    scores = x if function == "cross_entropy" else reference.rounded(reference.log_softmax(x), dtype)
    target = rng.integers(5, size=rows)
    target[1::3] = -100
    assert_loss(function, **{scores_name(function): scores}, target=target, reduction=reduction)


@each_dtype
@each_reduction
@each_smoothing
def test_one_row_without_a_batch(label_smoothing, reduction, dtype, rng):
    logits = rng.normal(size=CLASSES).astype(dtype)
    made = {"logits": logits, "reduction": reduction, "label_smoothing": label_smoothing}
    assert_loss("cross_entropy", -0.75, **made, target=4)
    assert_loss("cross_entropy", **made, target=cases.distributions(rng, (CLASSES,), dtype))
    assert_loss("nll_loss", -0.75, log_probs=-abs(logits), target=4, reduction=reduction)
    loss, gradient = assert_loss("cross_entropy", **made, target=-100)
    assert (gradient == 0).all()
    assert np.isnan(loss) if reduction == "mean" else loss == 0


@each_dtype
@pytest.mark.parametrize("function", accuracy.LOSSES)
def test_what_comes_from_above_to_ignored_rows(function, dtype, rng):
    """However bad it is, their gradient is exactly 0."""
    scores = -abs(rng.normal(size=(6, 4)).astype(dtype))
    target = np.array([0, -100, 1, -100, -100, 2])
    grad_output = np.array([1, np.nan, 0.5, np.inf, -np.inf, -1], dtype)
    arguments = {
        scores_name(function): scores,
        "target": target,
        "reduction": "none",
        "grad_output": grad_output,
    }
    _, gradient = getattr(cylsm, function + "_with_grad")(**arguments)
    assert (gradient[target == -100] == 0).all()
    accuracy.assert_accurate(gradient, accuracy.expected(function + "_with_grad", **arguments)[1:])


@each_dtype
def test_a_scalar_counts_for_every_row(dtype, rng):
    logits, target = rng.normal(size=(50, 7)).astype(dtype), rng.integers(7, size=50)
    one = cylsm.cross_entropy_with_grad(logits, target, reduction="none", grad_output=0.5)
    each = cylsm.cross_entropy_with_grad(logits, target, reduction="none", grad_output=np.full(50, 0.5))
    accuracy.assert_same_bits(one, each)


@each_dtype
def test_probabilities_need_not_sum_to_one(dtype, rng):
    logits, target = rng.normal(size=(20, 7)).astype(dtype), rng.uniform(0, 2, size=(20, 7)).astype(dtype)
    assert_loss("cross_entropy", logits=logits, target=target, reduction="none")
    assert_loss("cross_entropy", logits=logits, target=np.zeros_like(target), reduction="none")


@each_dtype
def test_labels_are_probabilities_that_are_sure(dtype, rng):
    logits, target = rng.normal(size=(30, 7)).astype(dtype), rng.integers(7, size=30)
    sure = np.eye(7, dtype=dtype)[target]
    for reduction in ("none", "mean", "sum"):
        by_label = assert_loss("cross_entropy", logits=logits, target=target, reduction=reduction)
        by_share = assert_loss("cross_entropy", logits=logits, target=sure, reduction=reduction)
        for one, other in zip(by_label, by_share, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5 if dtype == np.float32 else 1e-13)


# Differences


def by_differences(value, x, step=1e-4):
    """The gradient of a function of float64 arrays to about 1e-9: central differences, extrapolated."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        changes = []
        for h in (step, 2 * step):
            ends = []
            for at in (x[place] + h, x[place] - h):
                moved = x.copy()
                moved[place] = at
                ends.append(value(moved))
            changes.append((ends[0] - ends[1]) / (2 * h))
        gradient[place] = (4 * changes[0] - changes[1]) / 3
    return gradient


def assert_is_gradient(gradient, value, x):
    np.testing.assert_allclose(gradient, by_differences(value, x), rtol=1e-7, atol=1e-9)


@numerical
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_backward_by_differences(axis, rng):
    x, upstream = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 5))
    sums = upstream.sum(axis)
    assert_is_gradient(cylsm.logsumexp_backward(sums, x, axis), lambda y: (cylsm.logsumexp(y, axis) * sums).sum(), x)
    log_probs, probs = cylsm.log_softmax(x, axis), cylsm.softmax(x, axis)
    assert_is_gradient(
        cylsm.log_softmax_backward(upstream, log_probs, axis),
        lambda y: (cylsm.log_softmax(y, axis) * upstream).sum(),
        x,
    )
    assert_is_gradient(
        cylsm.softmax_backward(upstream, probs, axis), lambda y: (cylsm.softmax(y, axis) * upstream).sum(), x
    )


@numerical
@pytest.mark.parametrize("axis", [None, (0, 2)])
def test_backward_of_several_axes_by_differences(axis, rng):
    x, upstream = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    assert_is_gradient(
        cylsm.log_softmax_backward(upstream, cylsm.log_softmax(x, axis), axis),
        lambda y: (cylsm.log_softmax(y, axis) * upstream).sum(),
        x,
    )
    assert_is_gradient(
        cylsm.softmax_backward(upstream, cylsm.softmax(x, axis), axis),
        lambda y: (cylsm.softmax(y, axis) * upstream).sum(),
        x,
    )
    sums = upstream.sum(axis)
    assert_is_gradient(cylsm.logsumexp_backward(sums, x, axis), lambda y: (cylsm.logsumexp(y, axis) * sums).sum(), x)


@numerical
@each_reduction
@each_weighting
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_cross_entropy_by_differences(kind, label_smoothing, weighted, reduction, rng):
    x = rng.normal(size=(3, 5, 2))
    target = rng.integers(5, size=(3, 2)) if kind == "labels" else cases.distributions(rng, x.shape, np.float64, 1)
    if kind == "labels":
        target[0, 1] = -100
    weight = rng.uniform(0.5, 1.5, size=5) if weighted else None
    upstream = rng.normal(size=(3, 2)) if reduction == "none" else np.float64(1.5)
    options = {"weight": weight, "label_smoothing": label_smoothing, "reduction": reduction}
    _, gradient = cylsm.cross_entropy_with_grad(x, target, 1, grad_output=upstream, **options)
    assert_is_gradient(gradient, lambda y: (cylsm.cross_entropy(y, target, 1, **options) * upstream).sum(), x)


@numerical
@each_reduction
@each_weighting
def test_nll_loss_by_differences(weighted, reduction, rng):
    x, target = -abs(rng.normal(size=(3, 5, 2))), rng.integers(5, size=(3, 2))
    target[0, 1] = -100
    upstream = rng.normal(size=(3, 2)) if reduction == "none" else np.float64(1.5)
    options = {"weight": rng.uniform(0.5, 1.5, size=5) if weighted else None, "reduction": reduction}
    _, gradient = cylsm.nll_loss_with_grad(x, target, 1, grad_output=upstream, **options)
    assert_is_gradient(gradient, lambda y: (cylsm.nll_loss(y, target, 1, **options) * upstream).sum(), x)
