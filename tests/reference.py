"""The oracle: every public function of cylsm once more, slow and obvious, in extended precision.

A function takes what its namesake in cylsm takes (without `out`) and returns np.longdouble, not yet rounded
to the dtype of the result. Three habits keep the digits where one class dominates:

a. one largest element is set apart, so that the logarithm of a sum is log1p of the others;
b. a log-probability is (x - largest) - log1p(others): two terms of the same sign;
c. 1 - p is the sum of the other probabilities.

The functions whose name ends in _terms return the sum of the magnitudes of the terms that their namesake
adds, for those that add terms of both signs: errors are measured against it.
"""

import math

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

INF = np.longdouble("inf")
NAN = np.longdouble("nan")

silent = np.errstate(all="ignore")


# How arrays become rows, and rows arrays


def computed_dtype(dtype):
    """The dtype that cylsm computes in when it is given `dtype`."""
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype.newbyteorder("=")


def extended(x, like=None):
    """x in extended precision, by way of the dtype that cylsm computes in: its own, or that of `like`."""
    x = np.asarray(x)
    dtype = computed_dtype(x.dtype if like is None else np.asarray(like).dtype)
    return x.astype(dtype).astype(np.longdouble)


@silent
def rounded(exact, dtype):
    return np.asarray(exact).astype(dtype)


def split_axes(axis, ndim):
    """The axes that stay, and those that make up a row."""
    if ndim == 0:
        return (), ()
    axes = tuple(range(ndim)) if axis is None else tuple(sorted(normalize_axis_tuple(axis, ndim)))
    return tuple(d for d in range(ndim) if d not in axes), axes


def as_rows(x, axis):
    """x with one row along the last axis, the axes that stay before it."""
    kept, axes = split_axes(axis, x.ndim)
    return x.transpose(kept + axes).reshape([x.shape[d] for d in kept] + [math.prod(x.shape[d] for d in axes)])


def from_rows(rows, shape, axis):
    """The array of that shape whose as_rows is `rows`."""
    kept, axes = split_axes(axis, len(shape))
    return rows.reshape([shape[d] for d in kept + axes]).transpose(np.argsort(kept + axes).astype(int))


# Sums


def set_apart(values):
    """One element of largest magnitude of each row, the sum of the others, and where the largest one is."""
    padded = np.concatenate([values, np.zeros_like(values, shape=(*values.shape[:-1], 1))], axis=-1)
    position = np.abs(padded).argmax(-1, keepdims=True)
    leading = np.take_along_axis(padded, position, -1)
    np.put_along_axis(padded, position, 0, -1)
    return leading, padded.sum(-1, keepdims=True), position


def sum_of_others(values):
    """For each element the sum of all the others of its row; exact where it is 0."""
    leading, others, position = set_apart(values)
    sums = leading + others - values
    if values.shape[-1]:
        np.put_along_axis(sums, position, others, -1)
    return sums


def gaps_to_largest(rows):
    largest = rows.max(-1, keepdims=True, initial=-INF)
    return rows - largest, np.isfinite(largest)


def probabilities_and_complements(rows):
    """p and 1 - p of each row."""
    gaps, finite = gaps_to_largest(rows)
    numerators = np.exp(gaps)
    leading, others, _ = set_apart(numerators)
    total = leading + others
    return np.where(finite, numerators / total, numerators), sum_of_others(numerators) / total


# Row operations


@silent
def logsumexp(x, axis=-1, *, b=None, keepdims=False, return_sign=False):
    x, b = np.broadcast_arrays(extended(x), np.longdouble(1) if b is None else extended(b))
    weights = as_rows(b, axis)
    rows = np.where(weights == 0, -INF, as_rows(x, axis))
    gaps, finite = gaps_to_largest(rows)
    # Where the largest is infinite or nan, every finite element counts as e^0: it decides nothing.
    gaps = np.where(finite, gaps, np.where(np.isfinite(rows), 0, rows))
    leading, others, _ = set_apart(np.where(weights == 0, 0, weights * np.exp(gaps)))
    ratio = others / leading
    log_of_sum = np.log(abs(leading)) + np.where(ratio > -0.5, np.log1p(ratio), np.log(abs(1 + ratio)))
    log_of_sum = np.where(np.isfinite(leading) & (leading != 0), log_of_sum, np.log(abs(leading + others)))
    result = np.where(finite, rows.max(-1, keepdims=True, initial=-INF), 0) + log_of_sum
    sign = np.sign(leading + others)
    if not return_sign:
        result = np.where(sign < 0, NAN, result)
    kept, axes = split_axes(axis, x.ndim)
    shape = [1 if d in axes else n for d, n in enumerate(x.shape)] if keepdims else [x.shape[d] for d in kept]
    return (result.reshape(shape), sign.reshape(shape)) if return_sign else result.reshape(shape)


@silent
def log_softmax(x, axis=-1):
    x = extended(x)
    gaps, finite = gaps_to_largest(as_rows(x, axis))
    _, others, _ = set_apart(np.exp(gaps))
    return from_rows(np.where(finite, gaps - np.log1p(others), gaps), x.shape, axis)


@silent
def softmax(x, axis=-1):
    x = extended(x)
    probabilities, _ = probabilities_and_complements(as_rows(x, axis))
    return from_rows(probabilities, x.shape, axis)


@silent
def logsumexp_backward(grad_output, x, axis=-1):
    rows = as_rows(softmax(x, axis), axis)
    grads = extended(grad_output, like=x).reshape(rows.shape[:-1])
    return from_rows(grads[..., None] * rows, np.shape(x), axis)


@silent
def log_softmax_backward(grad_output, log_probs, axis=-1):
    grads = as_rows(extended(grad_output, like=log_probs), axis)
    probabilities = np.exp(as_rows(extended(log_probs), axis))
    return from_rows(grads - probabilities * grads.sum(-1, keepdims=True), np.shape(log_probs), axis)


@silent
def log_softmax_backward_terms(grad_output, log_probs, axis=-1):
    grads = abs(as_rows(extended(grad_output, like=log_probs), axis))
    probabilities = np.exp(as_rows(extended(log_probs), axis))
    return from_rows(grads + probabilities * grads.sum(-1, keepdims=True), np.shape(log_probs), axis)


@silent
def softmax_backward(grad_output, probs, axis=-1):
    grads = as_rows(extended(grad_output, like=probs), axis)
    rows = as_rows(extended(probs), axis)
    return from_rows(rows * (grads - (rows * grads).sum(-1, keepdims=True)), np.shape(probs), axis)


@silent
def softmax_backward_terms(grad_output, probs, axis=-1):
    grads = abs(as_rows(extended(grad_output, like=probs), axis))
    rows = abs(as_rows(extended(probs), axis))
    return from_rows(rows * (grads + (rows * grads).sum(-1, keepdims=True)), np.shape(probs), axis)


# Losses: classes last


def labels_of(target, ignore_index):
    """The labels, 0 in ignored rows, and which rows count."""
    target = np.asarray(target)
    counted = np.ones(target.shape, bool) if ignore_index is None else np.asarray(target != ignore_index)
    return np.where(counted, target, 0).astype(np.intp), counted


def weights_of(weight, scores):
    if weight is None:
        return np.ones(scores.shape[-1], np.longdouble)
    return extended(weight, like=scores)


def times(mass, surprise):
    """mass * surprise, where no mass adds nothing even on a class that is impossible; nan stays nan."""
    return np.where((mass == 0) & (surprise == INF), 0, mass * surprise)


def at_label(rows, labels):
    return np.take_along_axis(rows, labels[..., None], -1)[..., 0]


def reduced_loss(losses, divisor, reduction):
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / divisor if divisor != 0 else NAN


def scaled(gradient, scores, counted, divisor, reduction, grad_output):
    """The rows' gradients times what arrives from above, 0 in ignored rows."""
    scale = np.longdouble(1) if grad_output is None else extended(grad_output, like=scores)
    if reduction == "mean":
        scale = scale / divisor if divisor != 0 else NAN
    scale = np.broadcast_to(scale, counted.shape)
    return np.where(counted[..., None], gradient * scale[..., None], 0)


def holds_labels(target, scores):
    """Whether target is one label a row (an empty list is one, whatever dtype NumPy gives it)."""
    return np.ndim(target) == scores.ndim - 1


@silent
def nll_loss_with_grad(
    log_probs, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean", grad_output=None
):
    scores = np.moveaxis(np.asarray(log_probs), axis, -1)
    labels, counted = labels_of(target, ignore_index)
    row_weights = np.where(counted, weights_of(weight, scores)[labels], 0)
    divisor = row_weights.sum()
    losses = np.where(counted, times(row_weights, -at_label(extended(scores), labels)), 0)
    gradient = np.zeros(scores.shape, np.longdouble)
    np.put_along_axis(gradient, labels[..., None], -row_weights[..., None], -1)
    gradient = scaled(gradient, scores, counted, divisor, reduction, grad_output)
    return reduced_loss(losses, divisor, reduction), np.moveaxis(gradient, -1, axis)


def nll_loss(log_probs, target, axis=-1, **options):
    return nll_loss_with_grad(log_probs, target, axis, **options)[0]


@silent
def cross_entropy_parts(logits, target, axis, weight, ignore_index, label_smoothing):
    """Logits with classes last, the mass that the target puts on each class, each row's loss, which rows
    count, and what "mean" divides by."""
    scores = np.moveaxis(np.asarray(logits), axis, -1)
    classes = scores.shape[-1]
    weights = weights_of(weight, scores)
    surprise = -log_softmax(scores)
    smoothing = np.longdouble(label_smoothing)
    if holds_labels(target, scores):
        labels, counted = labels_of(target, ignore_index)
        row_weights = np.where(counted, weights[labels], 0)
        divisor = row_weights.sum()
        mass = np.broadcast_to(smoothing / classes * weights, scores.shape).copy()
        losses = times((1 - smoothing) * row_weights, at_label(surprise, labels))
        if label_smoothing:
            losses = losses + times(mass, surprise).sum(-1)
        smoothed = at_label(mass, labels) + (1 - smoothing) * row_weights
        np.put_along_axis(mass, labels[..., None], smoothed[..., None], -1)
        losses = np.where(counted, losses, 0)
    else:
        target = np.moveaxis(extended(target, like=scores), axis, -1)
        mass = weights * ((1 - smoothing) * target + smoothing / classes)
        losses = times(mass, surprise).sum(-1)
        counted = np.ones(losses.shape, bool)
        divisor = np.longdouble(losses.size)
    return scores, mass, losses, counted, divisor


@silent
def cross_entropy_with_grad(
    logits,
    target,
    axis=-1,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    grad_output=None,
):
    scores, mass, losses, counted, divisor = cross_entropy_parts(
        logits, target, axis, weight, ignore_index, label_smoothing
    )
    probabilities, complements = probabilities_and_complements(extended(scores))
    # p_j * sum(mass) - mass_j, without what cancels in it
    gradient = probabilities * sum_of_others(mass) - mass * complements
    gradient = scaled(gradient, scores, counted, divisor, reduction, grad_output)
    return reduced_loss(losses, divisor, reduction), np.moveaxis(gradient, -1, axis)


@silent
def cross_entropy_with_grad_terms(
    logits,
    target,
    axis=-1,
    *,
    weight=None,
    ignore_index=-100,
    reduction="mean",
    label_smoothing=0.0,
    grad_output=None,
):
    scores, mass, _, counted, divisor = cross_entropy_parts(logits, target, axis, weight, ignore_index, label_smoothing)
    probabilities, _ = probabilities_and_complements(extended(scores))
    terms = probabilities * abs(mass).sum(-1, keepdims=True) + abs(mass)
    return np.moveaxis(abs(scaled(terms, scores, counted, divisor, reduction, grad_output)), -1, axis)


@silent
def cross_entropy(logits, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    _, _, losses, _, divisor = cross_entropy_parts(logits, target, axis, weight, ignore_index, label_smoothing)
    return reduced_loss(losses, divisor, reduction)
