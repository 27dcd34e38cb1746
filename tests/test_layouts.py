"""Arrays that lie in memory in every way NumPy knows: as inputs, as out, and as both at once."""

import os
import subprocess
import sys

import accuracy
import cases
import layouts
import numpy as np
import pytest
import reference

import cylsm

pytestmark = pytest.mark.usefixtures("isa")

WITH_OUT = tuple(name for name in accuracy.FUNCTIONS if name not in accuracy.LOSSES)
SHAPED_LIKE_INPUT = tuple(name for name in WITH_OUT if name != "logsumexp")

each_function = pytest.mark.parametrize("function", accuracy.FUNCTIONS)
each_with_out = pytest.mark.parametrize("function", WITH_OUT)
each_dtype = pytest.mark.parametrize("dtype", accuracy.FLOATS)


def made_for(function, shape, axis, dtype, seed):
    """Arguments for an array of that shape, with rows of every kind along `axis`."""
    rng = np.random.default_rng([seed, *shape])
    classes = shape[axis]
    rows = cases.logits(rng, int(np.prod(shape)) // classes, classes, dtype)
    rest = shape[:axis] + shape[axis % len(shape) + 1 :]
    x = np.ascontiguousarray(np.moveaxis(rows.reshape(*rest, classes), -1, axis))
    return cases.arguments(function, x, rng, axis)


def gradient_of(results):
    """What out receives: the gradient of a loss, the only result of anything else."""
    return results[1] if isinstance(results, tuple) else results


# Inputs


@each_function
@each_dtype
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 7), -1), ((7, 70), 0), ((5, 300), 1), ((3, 21, 19), 1), ((2, 3, 4, 5), 2)]
)
def test_layout_of_the_inputs(function, layout, shape, axis, dtype, seed):
    made = made_for(function, shape, axis, dtype, seed)
    arranged = {name: layout(value) if isinstance(value, np.ndarray) else value for name, value in made.items()}
    before = {name: value.copy() for name, value in made.items() if isinstance(value, np.ndarray)}
    accuracy.assert_accurate(getattr(cylsm, function)(**arranged), accuracy.expected(function, **made))
    for name, value in before.items():
        np.testing.assert_array_equal(arranged[name], value)


@each_dtype
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize(("shape", "axis"), [((70, 7), -1), ((7, 70), 0), ((3, 21, 19), 1)])
def test_layout_of_the_options(layout, kind, shape, axis, dtype, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape).astype(dtype)
    target = cases.labels(rng, logits, axis)
    options = {
        "target": target if kind == "labels" else cases.distributions(rng, shape, dtype, axis),
        "weight": rng.uniform(0.2, 1.5, shape[axis]).astype(dtype),
        "grad_output": rng.uniform(-1, 1, target.shape).astype(dtype),
    }
    made = {"logits": logits, "axis": axis, "reduction": "none", "label_smoothing": 0.25}
    arranged = {name: layout(value) for name, value in options.items()}
    expected = accuracy.expected("cross_entropy_with_grad", **made, **options)
    accuracy.assert_accurate(cylsm.cross_entropy_with_grad(**made, **arranged), expected)


@each_function
@each_dtype
@pytest.mark.parametrize("broadcast", ["rows", "classes", "both"])
@pytest.mark.parametrize("axis", [0, 1])
def test_broadcast_inputs(function, broadcast, axis, dtype, seed):
    made = made_for(function, (9, 9), axis, dtype, seed)
    index = {"rows": np.s_[:1], "classes": np.s_[:, :1], "both": np.s_[:1, :1]}[broadcast]
    arranged = {
        name: np.broadcast_to(value[index] if value.ndim == 2 else value[:1], value.shape)
        if isinstance(value, np.ndarray)
        else value
        for name, value in made.items()
    }
    accuracy.assert_accurate(getattr(cylsm, function)(**arranged), accuracy.expected(function, **arranged))


@pytest.mark.parametrize("function", ["log_softmax_backward", "softmax_backward"])
@pytest.mark.parametrize("classes", [5, 20, 70])
@each_dtype
def test_inputs_that_begin_at_one_place(function, classes, dtype, rng):
    """Two views of one array, whose runs are further apart in the second."""
    room = reference.rounded(reference.softmax(rng.normal(size=(8, classes, 5, 4)), 1), dtype)
    wanted = getattr(cylsm, function)(room[:4].copy(), room[::2].copy(), 1)
    accuracy.assert_same_bits(getattr(cylsm, function)(room[:4], room[::2], 1), wanted)


@each_function
@each_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 25, 64, 129, 1000, 4111])
@pytest.mark.parametrize("inner", [1, 2, 16, 17, 65, 513])
def test_classes_along_the_first_axis(function, classes, inner, dtype, seed):
    if classes * inner > 35_000:
        inner = 7
    made = made_for(function, (classes, inner), 0, dtype, seed)
    accuracy.assert_accurate(getattr(cylsm, function)(**made), accuracy.expected(function, **made))


@each_function
@each_dtype
@pytest.mark.parametrize(
    "shape",
    [
        (2, 10, 3, 5),
        (3, 5, 1, 1),
        (1, 21, 16, 17),
        (4, 2, 7),
        (2, 300, 3),
        (1, 1, 4, 4),
        (70, 20, 3, 7),
        (9, 21, 2, 33),
    ],
)
def test_classes_along_a_middle_axis(function, shape, dtype, seed):
    """The layout of PyTorch, (N, C, d1, ..., dk)."""
    made = made_for(function, shape, 1, dtype, seed)
    accuracy.assert_accurate(getattr(cylsm, function)(**made), accuracy.expected(function, **made))
    if "target" in made:
        for reduction in ("mean", "sum"):
            reduced = made | {"reduction": reduction}
            accuracy.assert_accurate(getattr(cylsm, function)(**reduced), accuracy.expected(function, **reduced))


@pytest.mark.parametrize("function", accuracy.ROW_OPERATIONS + accuracy.BACKWARD)
@pytest.mark.parametrize(
    "axis", [None, (), (0,), (0, 1), (1, 0), (0, 2), (2, 0), (1, 3), (0, 1, 2, 3), (-1, -2), (3, 0)]
)
@pytest.mark.parametrize("layout", [np.copy, layouts.transposed, layouts.spaced, layouts.swapped])
@each_dtype
def test_several_axes(function, axis, layout, dtype, rng):
    x = rng.normal(size=(3, 4, 5, 6)).astype(dtype) * 4
    made = cases.arguments(function, x, rng, axis)
    arranged = {name: layout(value) if isinstance(value, np.ndarray) else value for name, value in made.items()}
    accuracy.assert_accurate(getattr(cylsm, function)(**arranged), accuracy.expected(function, **made))


@pytest.mark.parametrize("axis", [None, 0, -1, 1, (0, 1), (0, 2), (2, 1)])
@each_dtype
def test_kept_axes(axis, dtype, rng):
    x = rng.normal(size=(3, 4, 5)).astype(dtype)
    kept = cylsm.logsumexp(x, axis, keepdims=True)
    accuracy.assert_accurate(kept, accuracy.expected("logsumexp", x=x, axis=axis, keepdims=True))
    out = np.empty_like(kept)
    assert cylsm.logsumexp(x, axis, keepdims=True, out=out) is out
    accuracy.assert_same_bits(out, kept)
    for grad_output in (kept, kept.reshape(cylsm.logsumexp(x, axis).shape)):
        made = {"grad_output": grad_output, "x": x, "axis": axis}
        accuracy.assert_accurate(cylsm.logsumexp_backward(**made), accuracy.expected("logsumexp_backward", **made))


@pytest.mark.parametrize("axis", [0, -1, None])
def test_one_number_is_one_row_of_one_element(axis):
    for x in (2.5, np.float64(2.5), np.array(2.5)):
        assert cylsm.logsumexp(x, axis) == 2.5
        assert cylsm.logsumexp(x, axis, keepdims=True) == 2.5
        assert cylsm.log_softmax(x, axis) == 0
        assert cylsm.softmax(x, axis) == 1
        assert cylsm.logsumexp_backward(3.0, x, axis) == 3
        assert cylsm.log_softmax_backward(3.0, x * 0, axis) == 0
        assert cylsm.softmax_backward(3.0, 1.0, axis) == 0
    assert cylsm.logsumexp(-np.inf, axis) == -np.inf
    assert np.isnan(cylsm.log_softmax(-np.inf, axis))


# out


@each_with_out
@each_dtype
@pytest.mark.parametrize("layout", layouts.WRITABLE)
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 7), -1), ((70, 7), 0), ((5, 300), 1), ((3, 21, 19), 1), ((9, 4200), 1)]
)
def test_layout_of_out(function, layout, shape, axis, dtype, seed):
    """Where a result is stored changes none of its bits, and nothing beside it."""
    made = made_for(function, shape, axis, dtype, seed)
    wanted = getattr(cylsm, function)(**made)
    out = layout(np.full_like(gradient_of(wanted), 7))
    owner = out if out.base is None else out.base
    before = owner.tobytes()
    results = getattr(cylsm, function)(**made, out=out)
    assert gradient_of(results) is out
    accuracy.assert_same_bits(results, wanted)
    out[...] = 7
    assert owner.tobytes() == before


@pytest.mark.parametrize("function", accuracy.ROW_OPERATIONS + accuracy.BACKWARD)
def test_out_of_one_number(function, rng):
    out = np.empty(())
    made = cases.arguments(function, np.array(1.5), rng)
    assert getattr(cylsm, function)(**made, out=out) is out
    accuracy.assert_accurate(out, accuracy.expected(function, **made))


@pytest.mark.parametrize("function", SHAPED_LIKE_INPUT)
@each_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((70, 7), -1),
        ((70, 7), 0),
        ((3, 70), 0),
        ((6, 150), 0),
        ((11, 70), 0),
        ((130, 33), 1),
        ((3, 21, 19), 1),
        ((3, 9000), 1),
    ],
)
def test_out_is_an_input(function, shape, axis, dtype, seed):
    made = made_for(function, shape, axis, dtype, seed)
    wanted = getattr(cylsm, function)(**made)
    for name, value in made.items():
        if np.shape(value) == shape:
            given = made | {name: value.copy()}
            results = getattr(cylsm, function)(**given, out=given[name])
            assert gradient_of(results) is given[name]
            accuracy.assert_same_bits(results, wanted)


@pytest.mark.parametrize("function", SHAPED_LIKE_INPUT)
@each_dtype
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 7), -1), ((70, 7), 0), ((5, 300), 1), ((2, 9000), 1), ((3, 21, 19), 1)]
)
def test_out_overlaps_an_input(function, shape, axis, dtype, seed):
    """The result is as from a copy, wherever the two lie in one another."""
    made = made_for(function, shape, axis, dtype, seed)
    wanted = gradient_of(getattr(cylsm, function)(**made))
    size = int(np.prod(shape))
    shifts = [shift for shift in (1, -1, 3, -16, shape[-1], -shape[-1], size // 2, -(size // 2)) if abs(shift) < size]
    for name, value in made.items():
        if np.shape(value) != shape:
            continue
        for shift in shifts:
            room = np.empty(size + abs(shift), dtype)
            given = room[max(0, -shift) :][:size].reshape(shape)
            out = room[max(0, shift) :][:size].reshape(shape)
            given[...] = value
            getattr(cylsm, function)(**made | {name: given}, out=out)
            np.testing.assert_array_equal(out, wanted)
        given = value.copy()
        out = given.reshape(-1)[::-1].reshape(shape)
        getattr(cylsm, function)(**made | {name: given}, out=out)
        np.testing.assert_array_equal(out, wanted)
        room = np.empty((*shape, 2), dtype)
        given, out = room[..., 0], room[..., 1]  # one in the gaps of the other
        given[...] = value
        getattr(cylsm, function)(**made | {name: given}, out=out)
        accuracy.assert_accurate(out, accuracy.expected(function, **made)[-1:])
        np.testing.assert_array_equal(given, value)


@pytest.mark.parametrize("function", SHAPED_LIKE_INPUT)
@each_dtype
@pytest.mark.parametrize("classes", [8, 40])
def test_out_is_an_input_transposed(function, classes, dtype, seed):
    made = made_for(function, (classes, classes), -1, dtype, seed)
    wanted = gradient_of(getattr(cylsm, function)(**made))
    for name, value in made.items():
        if np.shape(value) == wanted.shape:
            given = value.copy()
            getattr(cylsm, function)(**made | {name: given}, out=given.T)
            np.testing.assert_array_equal(given.T, wanted)


@each_dtype
@pytest.mark.parametrize("axis", [0, 1])
def test_out_of_logsumexp_lies_in_its_input(axis, dtype, rng):
    x = rng.normal(size=(40, 40)).astype(dtype)
    wanted = cylsm.logsumexp(x, axis)
    for index in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[::-1, 20]):
        given = x.copy()
        cylsm.logsumexp(given, axis, out=given[index])
        accuracy.assert_same_bits(given[index], wanted)
    b = rng.uniform(0.5, 2, size=(40, 40)).astype(dtype)
    wanted = cylsm.logsumexp(x, axis, b=b)
    cylsm.logsumexp(x, axis, b=b, out=b[3])
    accuracy.assert_same_bits(b[3], wanted)


@pytest.mark.parametrize("function", accuracy.LOSSES_WITH_GRAD)
@each_dtype
def test_out_overlaps_what_is_not_shaped_like_it(function, dtype, rng):
    """Labels, weights and the gradient from above that lie in the memory of out."""
    scores = rng.normal(size=(50, 10)).astype(dtype)
    name = "logits" if function.startswith("cross") else "log_probs"
    integer = np.dtype(f"i{scores.itemsize}")
    for place in (0, 17, 440):
        made = {name: scores, "target": rng.integers(10, size=50), "reduction": "none"}
        made |= {
            "weight": rng.uniform(0.5, 2, 10).astype(dtype),
            "grad_output": rng.normal(size=50).astype(dtype),
        }
        wanted = getattr(cylsm, function)(**made)
        for inside in ("target", "weight", "grad_output"):
            out = np.zeros((50, 10), dtype)
            room = out.reshape(-1).view(integer if inside == "target" else dtype)
            given = room[place:][: len(made[inside])]
            given[...] = made[inside]
            results = getattr(cylsm, function)(**made | {inside: given}, out=out)
            for result, exact in zip(results, wanted, strict=True):
                np.testing.assert_array_equal(result, exact)


@each_dtype
@pytest.mark.parametrize(("shape", "axis"), [((70, 7), -1), ((7, 70), 0), ((5, 300), 1), ((2, 9000), 1)])
def test_out_overlaps_the_probabilities(shape, axis, dtype, rng):
    logits = rng.normal(size=shape).astype(dtype)
    target = cases.distributions(rng, shape, dtype, axis)
    wanted = cylsm.cross_entropy_with_grad(logits, target, axis)
    for shift in (0, 1, 5, -1, -shape[1]):
        room = np.empty(target.size + abs(shift), dtype)
        given = room[max(0, -shift) :][: target.size].reshape(shape)
        out = room[max(0, shift) :][: target.size].reshape(shape)
        given[...] = target
        accuracy.assert_same_bits(cylsm.cross_entropy_with_grad(logits, given, axis, out=out), wanted)


@pytest.mark.parametrize("function", ["log_softmax_backward", "softmax_backward", "cross_entropy_with_grad"])
@each_dtype
def test_out_and_both_inputs_are_one_array(function, dtype, rng):
    x = reference.rounded(reference.softmax(rng.normal(size=(40, 9))), dtype)
    first, second = {
        "cross_entropy_with_grad": ("logits", "target"),
        "softmax_backward": ("grad_output", "probs"),
    }.get(function, ("grad_output", "log_probs"))
    wanted = getattr(cylsm, function)(**{first: x, second: x.copy()})
    results = getattr(cylsm, function)(**{first: x, second: x}, out=x)
    assert gradient_of(results) is x
    accuracy.assert_same_bits(results, wanted)


# Memory

TEMPORARIES = """
import numpy as np
import cylsm

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

rows, classes = 40_000, 100
wide = np.linspace(-1, 1, rows * classes).reshape(rows, classes)
x, out = wide.astype(np.float32), np.ones((rows, classes), np.float32)
labels = np.ones(rows * 10, np.int8)
calls = {
    "contiguous": (cylsm.log_softmax, (x,), {"out": out}),
    "byte-swapped": (cylsm.log_softmax, (x.astype(">f4"),), {"out": out}),
    "strided": (cylsm.softmax, (x[::-1, ::-1],), {"out": out[::-1]}),
    "first axis": (cylsm.log_softmax, (x, 0), {"out": out}),
    "integers": (cylsm.log_softmax, (x.astype(np.int32),), {"out": wide.copy()}),
    "float16": (cylsm.log_softmax, (x.astype(np.float16),), {"out": x.astype(np.float16)}),
    "wider gradient": (cylsm.log_softmax_backward, (wide, x), {"out": out}),
    "wider probabilities": (cylsm.cross_entropy_with_grad, (x, wide), {"out": out}),
    "loss of many rows": (cylsm.cross_entropy, (x.reshape(-1, 10), labels), {"label_smoothing": 0.1}),
    "in place": (cylsm.cross_entropy_with_grad, (x.reshape(-1, 10), labels), {"out": x.reshape(-1, 10)}),
}
for name, (function, arguments, options) in calls.items():
    small = {option: value[:64] if option == "out" else value for option, value in options.items()}
    function(*(a[:64] if isinstance(a, np.ndarray) else a for a in arguments), **small)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = status("VmRSS")
    function(*arguments, **options)
    print(name, status("VmHWM") - before, sep=": ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_temporaries_stay_small(isa):
    """Whatever is converted is converted block by block: a copy would take 3,900 KB at the very least."""
    environment = os.environ | {"CYLSM_ISA": isa, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed is given back
    run = subprocess.run(
        [sys.executable, "-c", TEMPORARIES], env=environment, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    growth = {name: int(kilobytes) for name, kilobytes in (line.split(": ") for line in run.stdout.splitlines())}
    assert len(growth) == 10
    assert max(growth.values()) < 2000, growth
