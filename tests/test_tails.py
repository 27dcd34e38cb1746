"""Nothing outside an array is read or written: arrays that end, or start, where memory that may not be touched begins.

Reading or writing too far kills the interpreter here, and pytest's faulthandler says in which call.
"""

import ctypes
import mmap
import sys

import accuracy
import layouts
import numpy as np
import pytest
from numpy.lib.array_utils import byte_bounds

import cylsm

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect"),
    pytest.mark.usefixtures("isa"),
]

PROT_NONE = 0
BESIDE = 64  # bytes on either side of out that a kernel could write by mistake
ALIGNMENTS = 16  # elements: of float a whole line, of double two
PLACES = [(at_end, skipped) for skipped in range(ALIGNMENTS) for at_end in (True, False)]
BORDERS = PLACES[:2]
STRIDED = (
    layouts.fortran,
    layouts.spaced,
    layouts.with_gaps,
    layouts.reversed_axes,
    layouts.backwards_and_spaced,
)
LENGTHS = range(301)
# One and several tiles, and what is left of the last one
LONG = (1023, 1025, 2047, 2049, 4095, 4096, 4097, 4111, 4112, 4113, 8193, 8209, 16401, 32785)


class Room:
    """Memory between two pages that may not be touched, for one array at a time."""

    def __init__(self, pages=512):
        page = mmap.PAGESIZE
        self.first, self.last = page, (1 + pages) * page
        self.memory = mmap.mmap(-1, self.last + page)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for guard in (start, start + self.last):
            if libc.mprotect(guard, page, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def array(self, like, size, lead, at_end, skipped):
        """An array like that one, strides too, whose elements take `size` bytes, `lead` of them before the first;
        `skipped` elements lie between it and the end, or start, of the room."""
        gap = skipped * like.itemsize
        self.start = self.last - gap - size if at_end else self.first + gap
        self.stop = self.start + size
        return np.ndarray(like.shape, like.dtype, self.memory, self.start + lead, like.strides)

    def beside(self):
        """What lies before and after the array."""
        before = self.memory[max(self.first, self.start - BESIDE) : self.start]
        return before, self.memory[self.stop : min(self.last, self.stop + BESIDE)]


@pytest.fixture(scope="module")
def rooms():
    """One for each argument, the first for out."""
    return [Room() for _ in range(4)]


def softly(rng, shape, dtype):
    return rng.uniform(0.1, 1, size=shape).astype(dtype)


# What a function is given for logits x, whose rows lie along `axis`: arrays only, in the order of its parameters.
def alone(x, axis, rng):
    return {"x": x}


def weighted(x, axis, rng):
    return {"x": x, "b": softly(rng, x.shape, x.dtype)}


def with_gradient_of_rows(x, axis, rng):
    return {"grad_output": softly(rng, x.shape[:axis] + x.shape[axis + 1 :], x.dtype), "x": x}


def with_gradient(x, axis, rng, name="log_probs"):
    return {"grad_output": softly(rng, x.shape, x.dtype), name: x}


def with_gradient_of_probs(x, axis, rng):
    return with_gradient(x, axis, rng, "probs")


def labelled(x, axis, rng, name="logits"):
    rows = x.shape[:axis] + x.shape[axis + 1 :]
    return {name: x, "target": rng.integers(x.shape[axis], size=rows)}


def log_probs_labelled(x, axis, rng):
    return labelled(x, axis, rng, "log_probs") | {"weight": softly(rng, x.shape[axis], x.dtype)}


def labelled_and_weighted(x, axis, rng):
    return labelled(x, axis, rng) | {"weight": softly(rng, x.shape[axis], x.dtype)}


def with_probabilities(x, axis, rng):
    return {"logits": x, "target": softly(rng, x.shape, x.dtype)}


BY_ROW = {"reduction": "none"}
CALLS = (
    ("logsumexp", alone, {}),
    ("logsumexp", weighted, {}),
    ("log_softmax", alone, {}),
    ("softmax", alone, {}),
    ("logsumexp_backward", with_gradient_of_rows, {}),
    ("log_softmax_backward", with_gradient, {}),
    ("softmax_backward", with_gradient_of_probs, {}),
    ("nll_loss", log_probs_labelled, BY_ROW),
    ("nll_loss_with_grad", log_probs_labelled, BY_ROW),
    ("cross_entropy", labelled, BY_ROW),
    ("cross_entropy_with_grad", labelled, BY_ROW),
    ("cross_entropy_with_grad", labelled_and_weighted, BY_ROW | {"label_smoothing": 0.25}),
    ("cross_entropy", with_probabilities, BY_ROW),
    ("cross_entropy_with_grad", with_probabilities, BY_ROW),
)

each_call = pytest.mark.parametrize(
    ("function", "arguments", "options"), CALLS, ids=lambda value: getattr(value, "__name__", value)
)
each_dtype = pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])


def with_extent(array):
    low, high = byte_bounds(array)
    return array, high - low, array.ctypes.data - low


def bits(results):
    return [result.tobytes() for result in (results if isinstance(results, tuple) else (results,))]


def assert_stays_inside(rooms, function, made, options, places, layout=np.asarray):
    """Only the arrays are touched, and the results are those of ordinary arrays laid out likewise."""
    call = getattr(cylsm, function)
    made = {name: layout(values) for name, values in made.items()}
    results = call(**made, **options)
    wanted = bits(results)
    arrays = {"out": layout(results[1] if isinstance(results, tuple) else results)} | made
    if function in accuracy.LOSSES:
        del arrays["out"]
    extents = [with_extent(array) for array in arrays.values()]
    for at_end, skipped in places:
        given = {}
        for number, (name, values) in enumerate(arrays.items()):
            # Nothing lies between any array and the border, or of each array another number of elements.
            room = rooms[number]
            given[name] = room.array(*extents[number], at_end, skipped * (number + 1) % ALIGNMENTS)
            if name == "out":
                before = room.beside()
            else:
                given[name][...] = values
        assert bits(call(**given, **options)) == wanted
        assert "out" not in given or rooms[0].beside() == before


@each_call
@pytest.mark.parametrize("axis", [1, 0])
@each_dtype
def test_nothing_beside_the_arrays_is_touched(function, arguments, options, axis, dtype, rooms, rng, thorough):
    """Every length, where all arrays begin and where all end; at every alignment if thorough, else at one of them."""
    for classes in (*LENGTHS[options.get("reduction") == "none" :], *LONG):
        rows = (1, 2, 3, 5, 17, 33, 67)[classes % 7] if classes < 100 else (1, 2, 17)[classes % 3]
        made = arguments(softly(rng, (classes, rows) if axis == 0 else (rows, classes), dtype), axis, rng)
        one = (classes % 2 == 0, 1 + classes % (ALIGNMENTS - 1))
        assert_stays_inside(rooms, function, made, options | {"axis": axis}, PLACES if thorough else (*BORDERS, one))


@each_call
@each_dtype
def test_nothing_beside_strided_arrays_is_touched(function, arguments, options, dtype, rooms, rng):
    for layout in STRIDED:
        for shape, axis in (((7, 9), 1), ((66, 22), 1), ((9, 66), 0), ((5, 300), 1), ((300, 5), 0), ((2, 4200), 1)):
            made = arguments(softly(rng, shape, dtype), axis, rng)
            assert_stays_inside(rooms, function, made, options | {"axis": axis}, BORDERS, layout)
