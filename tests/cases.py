"""Rows to compute with, and the arguments of each function made from them."""

import functools

import accuracy
import numpy as np
import reference


def logits(rng, rows, classes, dtype):
    """Rows of six kinds in turn: ordinary, confident, with ties, ascending, descending, far from 0."""
    x = rng.normal(size=(rows, classes)) * 4
    if classes:
        confident = np.arange(1, rows, 6)
        places = np.array([0, classes // 2, classes - 1])[np.arange(confident.size) % 3]
        x[confident, places] = x[confident].max(-1) + rng.uniform(3, 60, confident.size)
    x[2::6] = np.rint(x[2::6])
    x[3::6].sort(-1)
    x[4::6] = -np.sort(-x[4::6], -1)
    x[5::6] += rng.normal(size=(x[5::6].shape[0], 1)) * 1000
    return reference.rounded(x, dtype)


def labels(rng, scores, axis=-1, dtype=np.int64):
    shape = np.moveaxis(scores, axis, -1).shape
    return rng.integers(shape[-1], size=shape[:-1]).astype(dtype)


def distributions(rng, shape, dtype, axis=-1):
    """Class probabilities, one of them 0."""
    shares = rng.exponential(size=shape)
    if shape[axis] > 1:
        np.moveaxis(shares, axis, -1)[..., 0] = 0
    return reference.rounded(shares / shares.sum(axis, keepdims=True), dtype)


def arguments(function, x, rng, axis=-1):
    """Keyword arguments of that function for logits x; losses are not reduced, so that each row is seen."""
    if function in accuracy.ROW_OPERATIONS:
        return {"x": x, "axis": axis}
    if function == "logsumexp_backward":
        grad_output = reference.rounded(rng.uniform(-1, 1, reference.logsumexp(x, axis).shape), x.dtype)
        return {"grad_output": grad_output, "x": x, "axis": axis}
    log_probs = reference.rounded(reference.log_softmax(x, axis), x.dtype)
    if function.startswith(("nll", "cross")):
        name, scores = ("logits", x) if function.startswith("cross") else ("log_probs", log_probs)
        return {name: scores, "target": labels(rng, x, axis), "axis": axis, "reduction": "none"}
    grad_output = reference.rounded(rng.normal(size=x.shape), x.dtype)
    if function == "log_softmax_backward":
        return {"grad_output": grad_output, "log_probs": log_probs, "axis": axis}
    return {
        "grad_output": grad_output,
        "probs": reference.rounded(reference.softmax(x, axis), x.dtype),
        "axis": axis,
    }


@functools.lru_cache(maxsize=4)
def case(function, dtype, rows, classes, seed):
    """Arguments for rows of logits, and what the function returns for them."""
    rng = np.random.default_rng([seed, rows, classes])
    made = arguments(function, logits(rng, rows, classes, dtype), rng)
    return made, accuracy.expected(function, **made)


def rows_of(made, rows):
    """The same arguments for some of the rows."""
    return {name: value[rows] if isinstance(value, np.ndarray) else value for name, value in made.items()}
