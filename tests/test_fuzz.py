"""Any objects for any arguments: the result is right, or a documented exception says what is wrong.

Never a warning, a change to an input or, where an exception is raised, to out.
"""

import accuracy
import layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.exceptions import AxisError

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

DOCUMENTED = (TypeError, ValueError, IndexError, AxisError)
ARRAYS = {
    "logsumexp": ("x", "b"),
    "log_softmax": ("x",),
    "softmax": ("x",),
    "logsumexp_backward": ("grad_output", "x"),
    "log_softmax_backward": ("grad_output", "log_probs"),
    "softmax_backward": ("grad_output", "probs"),
    "nll_loss": ("log_probs", "target", "weight"),
    "nll_loss_with_grad": ("log_probs", "target", "weight", "grad_output"),
    "cross_entropy": ("logits", "target", "weight"),
    "cross_entropy_with_grad": ("logits", "target", "weight", "grad_output"),
}
OPTIONS = {
    "logsumexp": ("keepdims", "return_sign"),
    "nll_loss": ("ignore_index", "reduction"),
    "nll_loss_with_grad": ("ignore_index", "reduction"),
    "cross_entropy": ("ignore_index", "reduction", "label_smoothing"),
    "cross_entropy_with_grad": ("ignore_index", "reduction", "label_smoothing"),
}
FLOATS = (np.float16, *accuracy.FLOATS)
REAL = (*FLOATS, *"?bBhHiIqQ")
OTHER = ("D", "F", "g", "O", "U3", "S2", "M8[s]", "m8[D]", [("a", "f4"), ("b", "i8")], "V5")
MEMORY = (np.asarray, *layouts.LAYOUTS)


class Refuses:
    """Converts to nothing."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("this is no array")

    def __repr__(self):
        return "Refuses()"


class Converts:
    """An array by protocol only."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class Subclass(np.ndarray):
    pass


@np.errstate(all="ignore")
def filled(rng, shape, dtype, extremes=(), least=0, few=0):
    """Numbers of that dtype, a few of them extreme; integers from `least` to below `few` if that is not 0."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "?bBiufcg":
        return np.zeros(shape, dtype)
    if few or dtype.kind not in "fcg":
        return np.asarray(rng.integers(least, few or 5, shape)).astype(dtype)
    values = rng.normal(size=shape) * rng.choice([0.1, 3])
    if extremes and rng.random() < 0.4:
        values = np.where(rng.random(shape) < 0.1, rng.choice(extremes), values)
    return np.asarray(values).astype(dtype)


objects = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(width=64),
    st.text(max_size=3),
    st.binary(max_size=9),
    st.complex_numbers(),
    st.recursive(st.one_of(st.integers(-3, 3), st.floats()), lambda inner: st.lists(inner, max_size=3), max_leaves=8),
    st.tuples(st.integers(-2, 2), st.integers(-2, 2)),
    st.dictionaries(st.integers(0, 2), st.floats(), max_size=2),
    st.sets(st.integers(0, 3), max_size=2),
    st.sampled_from([Refuses(), object, len, Ellipsis, NotImplemented, range(3), slice(2), memoryview(b"abcd")]),
    st.sampled_from(
        [np.float32(1.5), np.int8(-1), np.bool_(True), np.longdouble(1), np.datetime64(0, "s"), np.ma.masked]
    ),
)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 17, 33]), max_size=3).map(tuple)


@st.composite
def arrays(draw, shape, dtypes=REAL, **numbers):
    """An array of that shape, held in memory in any way; now and then an object that is none but becomes one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = filled(rng, shape, draw(st.sampled_from(dtypes)), **numbers)
    if array.dtype in map(np.dtype, REAL):
        array = draw(st.sampled_from(MEMORY))(array)
    form = draw(st.sampled_from(["array"] * 9 + ["broadcast", "list", "subclass", "protocol"]))
    if form == "broadcast" and array.size:
        return np.broadcast_to(array[:1], array.shape) if array.ndim else array
    if form == "list" and array.size:
        return array.tolist()
    return {"subclass": array.view(Subclass), "protocol": Converts(array)}.get(form, array)


def without(shape, axis):
    return shape[:axis] + shape[axis % len(shape) + 1 :] if shape else ()


EXTREMES = dict.fromkeys(accuracy.ROW_OPERATIONS, (np.inf, -np.inf, np.nan, 0))
EXTREMES |= dict.fromkeys(accuracy.LOSSES + accuracy.LOSSES_WITH_GRAD, (-np.inf, np.nan, 0))


@st.composite
def calls(draw):
    """A function, arguments that fit each other but for some, and whether they all do."""
    function = draw(st.sampled_from(accuracy.FUNCTIONS))
    losing = function not in accuracy.ROW_OPERATIONS + accuracy.BACKWARD
    shape = draw(shapes)
    if losing:
        shape = tuple(n or 2 for n in shape) or (3,)
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else -1
    rows, classes = without(shape, axis), shape[axis] if shape else 1
    reduction = draw(st.sampled_from(["none", "mean", "sum"]))
    fitting = {
        "b": arrays(draw(st.sampled_from([shape, shape[1:], ()]))),
        "weight": arrays((classes,), few=3),
        "target": arrays(rows, "bBhHiIqQ", few=classes),
        "grad_output": arrays(shape),
        "keepdims": st.booleans(),
        "return_sign": st.booleans(),
        "ignore_index": st.sampled_from([None, -100, 0, 1, np.int8(-1), 2**64 - 1]),
        "reduction": st.just(reduction),
        "label_smoothing": st.sampled_from([0, 0.0, 0.25, 1.0, True]),
        "axis": st.sampled_from(
            [axis, np.int64(axis)] if losing else [axis, np.int64(axis), (axis,) if shape else None]
        ),
    }
    if losing:
        fitting["grad_output"] = arrays(rows if reduction == "none" and draw(st.booleans()) else ())
        if function.startswith("cross") and draw(st.booleans()):
            fitting |= {"target": arrays(shape, FLOATS, few=2), "ignore_index": st.just(None)}
    elif function == "logsumexp_backward":
        fitting["grad_output"] = arrays(rows)
    anything = st.one_of(objects, *(arrays(other, (*REAL, *OTHER)) for other in (shape, rows, draw(shapes))))
    anything |= st.builds(np.ma.array, arrays(shape))
    optional = {"b", "weight", "keepdims", "return_sign", "ignore_index", "label_smoothing"}
    optional |= {"grad_output"} if losing else set()
    arguments, fit = {}, True
    for name in ("axis", *ARRAYS[function], *OPTIONS.get(function, ())):
        if name in optional and draw(st.booleans()):
            continue
        if draw(st.integers(0, 19)) == 0:
            fit, arguments[name] = False, draw(anything)
        else:
            arguments[name] = draw(fitting.get(name, arrays(shape, extremes=EXTREMES.get(function, ()))))
    return function, arguments, fit


def plain(value):
    return value.array if isinstance(value, Converts) else value


def memory_of(array):
    """All that the array's memory holds, what lies between its elements too."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.tobytes() if array.dtype.kind != "O" else repr(array.tolist())


def contents(arguments):
    return {name: memory_of(plain(value)) for name, value in arguments.items() if isinstance(plain(value), np.ndarray)}


def assert_documented(error, function, arguments):
    """One of the table's types exactly, with a message that names an argument."""
    assert type(error) in DOCUMENTED
    assert any(name in str(error) for name in (*ARRAYS[function], *arguments)), error


@given(st.data())
def test_any_arguments(data):
    function, arguments, fit = data.draw(calls())
    call, before = getattr(cylsm, function), contents(arguments)
    try:
        results = call(**arguments)
    except DOCUMENTED as error:
        if fit:
            raise
        assert_documented(error, function, arguments)
        assert contents(arguments) == before
        return
    assert contents(arguments) == before
    if fit or function in accuracy.ROW_OPERATIONS:
        flags = {name: bool(arguments[name]) for name in ("keepdims", "return_sign") if name in arguments}
        values = {name: plain(value) for name, value in arguments.items() if name not in flags}
        exact = accuracy.expected(function, **values, **flags)
        accuracy.assert_accurate(results, exact)
    if function not in accuracy.LOSSES:
        check_out(data, function, arguments, results)


def check_out(data, function, arguments, results):
    """One that fits receives the same result, and nothing around it changes; one that does not is left alone."""
    call = getattr(cylsm, function)
    number = 1 if function in accuracy.LOSSES_WITH_GRAD else 0
    filled = np.asarray(results[number] if isinstance(results, tuple) else results)
    if data.draw(st.booleans()):
        out = data.draw(st.sampled_from(layouts.WRITABLE))(np.full_like(filled, 7))
        before = memory_of(out)
        again = call(**arguments, out=out)
        assert (again[number] if isinstance(results, tuple) else again) is out
        accuracy.assert_same_bits(again, results)
        out[...] = 7
        assert memory_of(out) == before
        return
    out = data.draw(objects.filter(lambda value: value is not None) | arrays((3, 2, 3), OTHER))
    before = contents({"out": out})
    with pytest.raises(DOCUMENTED) as raised:
        call(**arguments, out=out)
    assert_documented(raised.value, function, ("out",))
    assert contents({"out": out}) == before
