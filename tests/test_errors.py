"""The table of errors: the type, a message that names the argument and what arrived, nothing written."""

import re

import numpy as np
import pytest
from numpy.exceptions import AxisError

import cylsm

FLOATING = {
    "logsumexp": ("x",),
    "log_softmax": ("x",),
    "softmax": ("x",),
    "logsumexp_backward": ("grad_output", "x"),
    "log_softmax_backward": ("grad_output", "log_probs"),
    "softmax_backward": ("grad_output", "probs"),
    "nll_loss": ("log_probs", "weight"),
    "nll_loss_with_grad": ("log_probs", "weight", "grad_output"),
    "cross_entropy": ("logits", "weight"),
    "cross_entropy_with_grad": ("logits", "weight", "grad_output"),
}
LOSSES = ("nll_loss", "nll_loss_with_grad", "cross_entropy", "cross_entropy_with_grad")
WITH_GRAD = ("nll_loss_with_grad", "cross_entropy_with_grad")
CROSS_ENTROPIES = ("cross_entropy", "cross_entropy_with_grad")
WITH_OUT = tuple(name for name in FLOATING if name not in ("nll_loss", "cross_entropy"))
ROWS, CLASSES = 5, 9

each_function = pytest.mark.parametrize("function", FLOATING)
each_loss = pytest.mark.parametrize("function", LOSSES)
each_with_grad = pytest.mark.parametrize("function", WITH_GRAD)
each_cross_entropy = pytest.mark.parametrize("function", CROSS_ENTROPIES)
each_with_out = pytest.mark.parametrize("function", WITH_OUT)
each_argument = pytest.mark.parametrize(("function", "name"), [(f, a) for f, names in FLOATING.items() for a in names])


def valid(function):
    """Arguments that fit; out is filled with something no function returns."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(ROWS, CLASSES))
    arguments = {name: scores.copy() for name in FLOATING[function]}
    if function == "logsumexp_backward":
        arguments["grad_output"] = rng.normal(size=ROWS)
    if function in LOSSES:
        arguments |= {"target": np.array([3, 0, 8, 1, 5]), "weight": rng.uniform(1, 2, CLASSES)}
    if function in WITH_GRAD:
        arguments["grad_output"] = np.array(1.0)
    if function in WITH_OUT:
        arguments["out"] = np.full(ROWS if function == "logsumexp" else (ROWS, CLASSES), 12345.0)
    return arguments


def scores_of(function):
    return next(name for name in FLOATING[function] if name not in ("grad_output", "weight"))


def assert_refused(function, error, *words, **changed):
    """`function` raises exactly that error with those words (one of "this|that") in its message, and no array
    that it was given changes."""
    arguments = valid(function) | changed
    before = {name: value.tobytes() for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error) as raised:
        getattr(cylsm, function)(**arguments)
    assert raised.type is error
    for word in words:
        assert any(alternative in str(raised.value) for alternative in word.split("|")), (word, raised.value)
    assert before == {name: value.tobytes() for name, value in arguments.items() if isinstance(value, np.ndarray)}


@each_function
def test_valid_arguments_are_accepted(function):
    """Or the tests below would prove nothing."""
    getattr(cylsm, function)(**valid(function))


# Labels


@each_loss
@pytest.mark.parametrize("label", [9, -1, -99, 100, 2**40, -(2**40)])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_label_out_of_range(function, place, label):
    target = np.array([3, 0, 8, 1, 5])
    target[place] = label
    assert_refused(function, IndexError, f"target[{place}] = {label} is out of range for 9 classes", target=target)


@each_loss
def test_first_label_out_of_range_is_named(function):
    assert_refused(function, IndexError, "target[1] = 10 ", target=np.array([0, 10, 11, 12, 13]))


@each_loss
def test_label_out_of_range_in_several_dimensions(function):
    scores, target = np.zeros((2, 9, 3)), np.zeros((2, 3), np.int32)
    target[1, 2] = 9
    changed = {scores_of(function): scores, "target": target, "axis": 1}
    if function in WITH_GRAD:
        changed["out"] = np.full_like(scores, 7)
    assert_refused(function, IndexError, "target[1, 2] = 9 is out of range for 9 classes", **changed)


@each_loss
@pytest.mark.parametrize("label", [9, np.int8(9), np.array(9)])
def test_label_out_of_range_of_one_row(function, label):
    changed = {scores_of(function): np.zeros(9), "target": label}
    if function in WITH_GRAD:
        changed["out"] = np.full(9, 7.0)
    assert_refused(function, IndexError, "target = 9 is out of range for 9 classes", **changed)


@each_loss
def test_label_out_of_range_in_the_last_of_many_rows(function):
    rows = 300_000
    scores, target = np.zeros((rows, 9), np.float32), np.zeros(rows, np.uint8)
    target[-1] = 200
    changed = {scores_of(function): scores, "target": target}
    if function in WITH_GRAD:
        changed["out"] = np.full_like(scores, 7)
    assert_refused(function, IndexError, "target[299999] = 200 is out of range for 9 classes", **changed)


@each_loss
@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        (2**64 - 100, np.uint64),
        (2**32 - 100, np.uint32),
        (2**16 - 100, np.uint16),
        (156, np.uint8),
        (2**63, np.uint64),
    ],
)
def test_unsigned_labels_never_wrap(function, label, dtype):
    """The label whose bits are those of -100, the default ignore_index."""
    target = np.array([0, 0, label, 0, 0], dtype)
    assert_refused(function, IndexError, f"target[2] = {label} is out of range for 9 classes", target=target)


@each_loss
def test_default_ignore_index_is_not_ignored_where_nothing_is(function):
    target = np.array([0, 0, 0, -100, 0])
    assert_refused(function, IndexError, "target[3] = -100 ", target=target, ignore_index=None)
    assert_refused(function, IndexError, "target[3] = -100 ", target=target, ignore_index=3)


@each_loss
@pytest.mark.parametrize(
    "target", [np.ones(5, bool), [True] * 5, np.zeros(5, complex), ["a"] * 5, np.array([None] * 5)]
)
def test_what_is_no_label(function, target):
    assert_refused(function, TypeError, "target", str(np.asarray(target).dtype), target=target)


@pytest.mark.parametrize("function", ["nll_loss", "nll_loss_with_grad"])
@pytest.mark.parametrize("target", [np.zeros(5), np.zeros((5, 9)), np.zeros(5, np.float16)])
def test_floating_target_of_nll_loss(function, target):
    assert_refused(function, TypeError, "target", str(target.dtype), "integer", target=target)


@each_cross_entropy
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_labels(function, dtype):
    """The message says what to do."""
    target = np.zeros(5, dtype)
    assert_refused(function, ValueError, "target", "(5,)", "(5, 9)", "integer", target=target)


@each_cross_entropy
def test_integer_probabilities(function):
    """The message says what to do."""
    target = np.zeros((5, 9), int)
    assert_refused(function, ValueError, "target", "(5, 9)", "(5,)", "float", target=target)


# Axes


@each_function
@pytest.mark.parametrize("axis", [2, -3, 100])
def test_axis_out_of_range(function, axis):
    assert_refused(function, AxisError, "axis", str(axis), axis=axis)


@each_function
@pytest.mark.parametrize("axis", [1.0, "0", [0], (0.0,)])
def test_axis_that_is_no_integer(function, axis):
    assert_refused(function, TypeError, "axis", f"{axis!r}|{type(axis).__name__}|float|0.0", axis=axis)


@each_loss
@pytest.mark.parametrize("axis", [None, (1,), (0, 1)])
def test_losses_take_one_axis(function, axis):
    assert_refused(function, TypeError, "axis", f"{axis!r}|{type(axis).__name__}", axis=axis)


@pytest.mark.parametrize("function", [name for name in FLOATING if name not in LOSSES])
@pytest.mark.parametrize("axis", [(0, 0), (1, -1), (0, 1, 0)])
def test_repeated_axis(function, axis):
    assert_refused(function, ValueError, "axis", str(axis), axis=axis)


@pytest.mark.parametrize("function", [name for name in FLOATING if name not in LOSSES])
def test_axis_of_one_number(function):
    """One row of one element has an axis 0 and -1, and no other."""
    arguments = dict.fromkeys(FLOATING[function], 1.5)
    for axis in (0, -1, None):
        getattr(cylsm, function)(**arguments, axis=axis)
    with pytest.raises(AxisError):
        getattr(cylsm, function)(**arguments, axis=1)


@each_loss
def test_one_logit_has_no_axis(function):
    with pytest.raises(AxisError):
        getattr(cylsm, function)(np.float64(1), 0)


# Shapes


@each_loss
@pytest.mark.parametrize("shape", [(), (4,), (6,), (1,), (5, 1), (1, 5), (9,), (9, 5)])
def test_target_that_does_not_fit(function, shape):
    assert_refused(function, ValueError, "target", str(shape), "(5,)", target=np.zeros(shape, int))


@each_cross_entropy
@pytest.mark.parametrize("shape", [(9, 5), (5, 1), (1, 9), (9,), (5, 9, 1)])
def test_probabilities_that_do_not_fit(function, shape):
    assert_refused(function, ValueError, "target", str(shape), target=np.zeros(shape))


@each_loss
@pytest.mark.parametrize("shape", [(), (8,), (10,), (1,), (9, 1), (5, 9)])
def test_weight_that_does_not_fit(function, shape):
    assert_refused(function, ValueError, "weight", str(shape), "9", weight=np.ones(shape))


@each_loss
@pytest.mark.parametrize("shape", [(5, 0), (0, 0)])
def test_no_classes(function, shape):
    changed = {scores_of(function): np.zeros(shape), "target": np.zeros(shape[0], int), "weight": None}
    if function in WITH_GRAD:
        changed["out"] = np.zeros(shape)
    assert_refused(function, ValueError, scores_of(function), "classes", **changed)


@each_with_grad
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(5,), (1,), (5, 9)])
def test_grad_output_of_a_reduced_loss(function, reduction, shape):
    grad_output = np.ones(shape)
    assert_refused(function, ValueError, "grad_output", str(shape), grad_output=grad_output, reduction=reduction)


@each_with_grad
@pytest.mark.parametrize("shape", [(4,), (1,), (5, 1), (5, 9)])
def test_grad_output_of_each_row(function, shape):
    grad_output = np.ones(shape)
    assert_refused(function, ValueError, "grad_output", str(shape), "(5,)", grad_output=grad_output, reduction="none")


@pytest.mark.parametrize("function", ["log_softmax_backward", "softmax_backward"])
@pytest.mark.parametrize("shape", [(), (1,), (9,), (1, 9), (5, 1), (9, 5)])
def test_gradients_do_not_broadcast(function, shape):
    assert_refused(function, ValueError, "grad_output", str(shape), "(5, 9)", grad_output=np.ones(shape))


@pytest.mark.parametrize("shape", [(), (1,), (9,), (1, 1), (1, 5), (5, 9)])
def test_gradient_of_logsumexp_that_does_not_fit(shape):
    assert_refused("logsumexp_backward", ValueError, "grad_output", str(shape), "(5,)", grad_output=np.ones(shape))


@pytest.mark.parametrize("shape", [(8,), (2, 9), (9, 5), (3, 5, 2)])
def test_b_that_does_not_broadcast(shape):
    assert_refused("logsumexp", ValueError, "b", str(shape), "(5, 9)", b=np.ones(shape))


# Dtypes


@each_argument
@pytest.mark.parametrize("dtype", [complex, np.complex64, np.longdouble, object, "U3", "S3", "M8[s]", "m8[s]"])
def test_dtype_that_is_not_accepted(function, name, dtype):
    if dtype is np.longdouble and np.dtype(np.longdouble) == np.float64:
        pytest.skip("longdouble is float64 here")
    value = np.zeros(valid(function)[name].shape, dtype)
    assert_refused(function, TypeError, name, str(value.dtype), **{name: value})


@pytest.mark.parametrize("dtype", [complex, np.complex64, np.longdouble, object, "U3"])
def test_dtype_of_b_that_is_not_accepted(dtype):
    if dtype is np.longdouble and np.dtype(np.longdouble) == np.float64:
        pytest.skip("longdouble is float64 here")
    assert_refused("logsumexp", TypeError, "b", str(np.dtype(dtype)), b=np.ones((5, 9), dtype))


@each_argument
def test_masked_arrays(function, name):
    """A mask is never dropped in silence, not even one that masks nothing."""
    for mask in (False, True):
        value = np.ma.array(valid(function)[name], mask=mask)
        assert_refused(function, TypeError, name, "masked", **{name: value})


@pytest.mark.parametrize(
    ("function", "name"),
    [("logsumexp", "b"), *((f, "target") for f in LOSSES), *((f, "out") for f in WITH_OUT)],
)
def test_other_masked_arrays(function, name):
    value = valid(function).get(name, np.ones((5, 9)))
    assert_refused(function, TypeError, name, "masked", **{name: np.ma.array(value)})


@each_cross_entropy
def test_masked_probabilities(function):
    assert_refused(function, TypeError, "target", "masked", target=np.ma.array(np.full((5, 9), 1 / 9)))


# out


@each_with_out
@pytest.mark.parametrize("out", [[0.0] * 5, 1.0, (), "out"])
def test_out_that_is_no_array(function, out):
    assert_refused(function, TypeError, "out", type(out).__name__, out=out)


@each_with_out
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, complex, np.dtype(np.float64).newbyteorder("S")])
def test_out_of_another_dtype(function, dtype):
    out = np.zeros(valid(function)["out"].shape, dtype)
    assert_refused(function, TypeError, "out", str(out.dtype), "float64", out=out)


@each_with_out
@pytest.mark.parametrize("shape", [(), (4,), (1, 5), (5, 1), (9, 5), (5, 9, 1), (1, 5, 9)])
def test_out_of_another_shape(function, shape):
    expected = valid(function)["out"].shape
    assert_refused(function, ValueError, "out", str(shape), str(expected), out=np.zeros(shape))


@each_with_out
def test_out_that_is_read_only(function):
    out = np.zeros(valid(function)["out"].shape)
    out.flags.writeable = False
    assert_refused(function, ValueError, "out", "read-only", out=out)


# Options


@each_loss
@pytest.mark.parametrize("reduction", ["average", "", "MEAN", "batchmean"])
def test_unknown_reduction(function, reduction):
    assert_refused(function, ValueError, "reduction", repr(reduction), "none", "mean", "sum", reduction=reduction)


@each_cross_entropy
@pytest.mark.parametrize("label_smoothing", [-0.1, 1.5, np.nan, np.inf, -np.inf, 2, 10**400])
def test_label_smoothing_outside_its_range(function, label_smoothing):
    assert_refused(function, ValueError, "label_smoothing", str(label_smoothing), label_smoothing=label_smoothing)


@each_cross_entropy
@pytest.mark.parametrize("label_smoothing", ["", "0.1", None, [0.1], 1j, np.array("x")])
def test_label_smoothing_that_is_no_number(function, label_smoothing):
    assert_refused(function, TypeError, "label_smoothing", repr(label_smoothing), label_smoothing=label_smoothing)


@each_cross_entropy
@pytest.mark.parametrize("label_smoothing", [np.ma.array(0.1), np.ma.array(0.1, mask=True)])
def test_masked_label_smoothing(function, label_smoothing):
    assert_refused(function, TypeError, "label_smoothing", "masked", label_smoothing=label_smoothing)


@each_loss
@pytest.mark.parametrize("ignore_index", [1.0, "1", [1], np.float64(-100)])
def test_ignore_index_that_is_no_integer(function, ignore_index):
    arrived = f"{ignore_index!r}|{type(ignore_index).__name__}"
    assert_refused(function, TypeError, "ignore_index", arrived, ignore_index=ignore_index)


@each_cross_entropy
@pytest.mark.parametrize("ignore_index", [0, 3, 100])
def test_ignore_index_with_probabilities(function, ignore_index):
    target = np.full((5, 9), 1 / 9)
    assert_refused(function, ValueError, "ignore_index", str(ignore_index), target=target, ignore_index=ignore_index)


@pytest.mark.parametrize("n", [0, -1, -(2**40)])
def test_too_few_threads(n):
    before = cylsm.get_num_threads()
    with pytest.raises(ValueError, match=rf"n .*{n}"):
        cylsm.set_num_threads(n)
    assert cylsm.get_num_threads() == before


@pytest.mark.parametrize("n", [1.0, "2", [1]])
def test_number_of_threads_that_is_no_integer(n):
    before = cylsm.get_num_threads()
    with pytest.raises(TypeError, match=rf"n .*({re.escape(repr(n))}|{type(n).__name__})"):
        cylsm.set_num_threads(n)
    assert cylsm.get_num_threads() == before


def test_unknown_mode_of_show_config():
    with pytest.raises(ValueError, match=r"mode.*'yaml'"):
        cylsm.show_config(mode="yaml")
