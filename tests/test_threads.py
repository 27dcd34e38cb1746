"""The same bits for any number of threads, place and batch; how many threads there are."""

import functools
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import accuracy
import cases
import numpy as np
import pytest
import reference
from programs import run

import cylsm
from cylsm import _cpu, _driver, _threads

CONFIG = cylsm.show_config(mode="dicts")
THREADS = range(2, 9)
# Few classes, blocks of rows, rows of several tiles, single long rows, classes not next to each other
SHAPES = (
    ((60_000, 2), 1),
    ((9000, 10), 1),
    ((1500, 128), 1),
    ((40, 5003), 1),
    ((3, 100_003), 1),
    ((13, 75_001), 1),
    ((40, 20_011), 1),
    ((1, 300_000), 1),
    ((10, 9000), 0),
    ((128, 1500), 0),
    ((5003, 40), 0),
    ((1895, 12), 0),
    ((40_000, 12), 0),
    ((3, 100, 500), 1),
    ((3, 300, 20, 10), 1),
    ((4, 30, 25, 70), 1),
    ((200_000, 1), 0),
)

# Classes of rows that are moved about in a batch, around what sets few classes, blocks and tiles apart
PLACED = (*range(1, 6), 8, 10, 16, 17, 25, 31, *range(24, 65, 8), 71, 80, 95, 96, 126, 129, 143, 1000, 4096, 4099, 9001)

SHAPED_LIKE_INPUT = ("log_softmax", "softmax", *accuracy.BACKWARD)

each_function = pytest.mark.parametrize("function", accuracy.FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
on_each_isa = pytest.mark.usefixtures("isa")
openmp = pytest.mark.skipif(not CONFIG["openmp"], reason="built without OpenMP")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def eight_processors():
    """Calls may use up to 8 threads, however many processors there are."""
    _threads._pretend_processors(8)
    yield
    _threads._pretend_processors(0)
    cylsm.set_num_threads(None)


@functools.lru_cache(maxsize=2)
@reference.silent
def large(function, shape, axis, dtype, seed):
    """Arguments without the oracle's help: what they are does not matter here."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 3).astype(dtype)
    rows = shape[:axis] + shape[axis + 1 :]
    made = {"axis": axis}
    if function in accuracy.ROW_OPERATIONS:
        return made | {"x": x}
    if function in accuracy.LOSSES + accuracy.LOSSES_WITH_GRAD:
        target = rng.integers(shape[axis], size=rows)
        target.flat[::7] = -100
        return made | {"logits" if function.startswith("cross") else "log_probs": -abs(x), "target": target}
    if function == "logsumexp_backward":
        return made | {"grad_output": rng.normal(size=rows).astype(dtype), "x": x}
    second = "probs" if function == "softmax_backward" else "log_probs"
    return made | {"grad_output": rng.normal(size=shape).astype(dtype), second: -abs(x)}


def among_special_rows(made):
    """Some of the rows hold what is computed apart: nan, infinities, a factor near the largest number."""
    for name, value in made.items():
        if name in ("x", "logits", "log_probs", "probs"):
            rows = np.moveaxis(value, made["axis"], -1)
            rows[4], rows[5, 0], rows[7, -1] = -np.inf, np.inf, np.nan
        elif name == "grad_output" and value.ndim == 1:
            value[2] = np.finfo(value.dtype).max
    return made


def forms(made, function, seed):
    """Those arguments, unreduced, and others that take another way: weights for each element, probabilities."""
    made = made | ({"reduction": "none"} if "target" in made else {})
    yield made
    like = next(value for value in made.values() if isinstance(value, np.ndarray))
    positive = np.random.default_rng(seed).uniform(0.1, 2, like.shape).astype(like.dtype)
    if function == "logsumexp":
        yield made | {"b": positive}
    elif function.startswith("cross_entropy"):
        yield made | {"target": positive}


@on_each_isa
@openmp
@pytest.mark.usefixtures("eight_processors")
@each_function
@pytest.mark.parametrize(
    ("dtype", "shape", "axis"),
    [(dtype, *place) for dtype in (np.float32, np.float64) for place in SHAPES]
    + [(np.float16, *place) for place in SHAPES[1::3]],
)
def test_number_of_threads_changes_no_bit(function, shape, axis, dtype, seed, thorough):
    """From 1 to 8; in a plain run three of them, and over all the shapes each."""
    made = large(function, shape, axis, dtype, seed)
    summed = [made] if function in accuracy.LOSSES else []
    for arguments in [*summed, *forms(made, function, seed)]:
        cylsm.set_num_threads(1)
        alone = getattr(cylsm, function)(**arguments)
        for threads in THREADS if thorough else (2, 8, 3 + (shape[axis] + seed) % 5):
            cylsm.set_num_threads(threads)
            assert cylsm.get_num_threads() == threads
            accuracy.assert_same_bits(getattr(cylsm, function)(**arguments), alone)


@on_each_isa
@openmp
@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2100, 10), 1),
        ((600, 56), 1),
        ((700, 300), 1),
        ((6, 3000), 0),
        ((300, 170), 0),
        ((1896, 12), 0),
        ((9, 4, 31, 40), 1),
        ((3, 100, 500), 1),
    ],
)
def test_number_of_threads_changes_no_sum(shape, axis, seed):
    """Of losses that cancel, so that what is added first would show."""
    rng = np.random.default_rng(seed)
    classes = shape[axis]
    rows = shape[:axis] + shape[axis + 1 :]
    pairs = rng.normal(size=classes // 2)
    logits = np.broadcast_to(np.expand_dims(np.repeat(pairs, 2), [i for i in range(len(shape)) if i != axis]), shape)
    weight = np.ravel(np.stack([10 ** rng.uniform(-12, 15, classes // 2), np.zeros(classes // 2)], axis=1))
    weight[1::2] = -weight[::2]
    target = np.repeat(rng.integers(classes // 2, size=math.prod(rows) // 2), 2) * 2
    target[1::2] += 1
    target = np.append(target, np.full(math.prod(rows) - target.size, -100))
    rng.shuffle(target)
    sums = set()
    for threads in (1, *THREADS):
        cylsm.set_num_threads(threads)
        arguments = {"axis": axis, "weight": weight, "reduction": "sum"}
        loss, grad = cylsm.cross_entropy_with_grad(logits, target.reshape(rows), **arguments)
        alone = cylsm.cross_entropy(logits, target.reshape(rows), **arguments)
        sums.add((alone.tobytes(), loss.tobytes(), grad.tobytes()))
    assert len(sums) == 1


@on_each_isa
@each_function
@each_dtype
@pytest.mark.parametrize("classes", [*PLACED, 33_001])
def test_place_and_batch_change_no_bit(function, classes, dtype, seed):
    rows = 140 if classes < 1000 else 9
    made = among_special_rows(large(function, (rows, classes), 1, dtype, seed))
    parts = (slice(1), slice(1, 2), slice(rows - 1, None), slice(3, 8), slice(5, 69), slice(rows // 2, None))
    for arguments in forms(made, function, seed):
        whole = getattr(cylsm, function)(**arguments)
        whole = whole if isinstance(whole, tuple) else (whole,)
        for part in parts:
            accuracy.assert_same_bits(
                getattr(cylsm, function)(**cases.rows_of(arguments, part)), tuple(result[part] for result in whole)
            )


@on_each_isa
@each_function
@each_dtype
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 8, 10, 16, 17, 33, 129, 1000])
def test_place_along_another_axis_changes_no_bit(function, classes, dtype, seed):
    """Columns of one array: the same stride wherever they are and however many."""
    columns = 1100 if classes < 100 else 600
    made = among_special_rows(large(function, (classes, columns), 0, dtype, seed))
    parts = (slice(1), slice(1, 2), slice(columns - 1, None), slice(7, 40), slice(3, 530), slice(columns // 2, None))
    for arguments in forms(made, function, seed):
        whole = getattr(cylsm, function)(**arguments)
        whole = whole if isinstance(whole, tuple) else (whole,)
        for part in parts:
            some = {n: value[..., part] if isinstance(value, np.ndarray) else value for n, value in arguments.items()}
            accuracy.assert_same_bits(getattr(cylsm, function)(**some), tuple(result[..., part] for result in whole))


@on_each_isa
@each_function
@each_dtype
@pytest.mark.parametrize("classes", [2, 3, 5, 10, 15])
def test_length_of_runs_changes_no_bit(function, classes, dtype, seed):
    """Few classes along a middle axis, however many lanes lie side by side, in arrays that are whole or not."""

    def along_the_middle(value, outer, inner, beside):
        if not isinstance(value, np.ndarray):
            return value
        lanes = value[: outer * inner].reshape(outer, inner, *value.shape[1:])
        lanes = np.moveaxis(lanes, 1, -1)
        room = np.zeros((*lanes.shape[:-1], inner + beside), value.dtype)
        room[..., :inner] = lanes
        return room[..., :inner]

    made = among_special_rows(large(function, (1300, classes), 1, dtype, seed))
    for arguments in forms(made, function, seed):
        if "b" in arguments:  # weighted sums have a body of their own for lanes
            continue
        whole = getattr(cylsm, function)(**arguments)
        whole = whole if isinstance(whole, tuple) else (whole,)
        for inner, beside in (
            (1, 0),
            (2, 1),
            (3, 0),
            (7, 0),
            (16, 0),
            (25, 3),
            (49, 0),
            (63, 1),
            (64, 0),
            (81, 0),
            (130, 1),
        ):
            outer = 1300 // inner
            some = {name: along_the_middle(value, outer, inner, beside) for name, value in arguments.items()}
            expected = tuple(along_the_middle(result, outer, inner, 0) for result in whole)
            accuracy.assert_same_bits(getattr(cylsm, function)(**some), expected)
            if function in SHAPED_LIKE_INPUT:
                for name in [name for name, value in some.items() if np.shape(value) == expected[-1].shape]:
                    inside = some | {name: some[name].copy()}
                    accuracy.assert_same_bits(getattr(cylsm, function)(**inside, out=inside[name]), expected)


@on_each_isa
@each_function
@each_dtype
@pytest.mark.parametrize("classes", [3, 8, 12, 20, 70])
@pytest.mark.parametrize("inner", [16, 17, 32, 48, 79, 80])
def test_number_of_runs_changes_no_bit(function, classes, inner, dtype, seed):
    """Of short runs along a middle axis, several of which may be taken together."""
    made = large(function, (24, classes, inner), 1, dtype, seed)
    for arguments in forms(made, function, seed):
        whole = getattr(cylsm, function)(**arguments)
        whole = whole if isinstance(whole, tuple) else (whole,)
        shape = whole[-1][:1].shape
        for part in (np.s_[:1], np.s_[23:]):
            one = {name: value[part] if isinstance(value, np.ndarray) else value for name, value in arguments.items()}
            expected = tuple(result[part] for result in whole)
            accuracy.assert_same_bits(getattr(cylsm, function)(**one), expected)
            if function in SHAPED_LIKE_INPUT:
                for name in [name for name, value in one.items() if np.shape(value) == shape]:
                    inside = one | {name: one[name].copy()}
                    accuracy.assert_same_bits(getattr(cylsm, function)(**inside, out=inside[name]), expected)


@on_each_isa
@each_function
@each_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((130, 7), 1), ((33, 100), 1), ((2, 33_000), 1), ((7, 8192), 0), ((40, 2112), 0), ((2, 5, 32, 64), 1)],
)
def test_alignment_changes_no_bit(function, shape, axis, dtype, seed):
    """Of the arguments or the result, losses' sums too."""
    made = large(function, shape, axis, dtype, seed)
    name = next(name for name in ("x", "logits", "log_probs", "probs") if name in made)
    for arguments in [made, *forms(made, function, seed)]:
        wanted = getattr(cylsm, function)(**arguments)
        for shift in range(1, 17):
            moved, out = (np.empty(made[name].size + shift, dtype)[shift:].reshape(shape) for _ in range(2))
            moved[...] = made[name]
            written = {"out": out} if function in SHAPED_LIKE_INPUT + accuracy.LOSSES_WITH_GRAD else {}
            accuracy.assert_same_bits(getattr(cylsm, function)(**arguments | {name: moved} | written), wanted)


@on_each_isa
@pytest.mark.parametrize("function", ["log_softmax", "softmax", "cross_entropy_with_grad"])
@pytest.mark.parametrize("classes", [8, 500, 32_000, 40_000])
def test_larger_than_the_caches(function, classes, seed):
    """Results that bypass the cache are the same, to the last row and column."""
    rows = 40_000_000 // classes
    block = rows // 40
    made = large(function, (block, classes), 1, np.float32, seed)
    made = {name: np.concatenate([value] * 40) if np.ndim(value) else value for name, value in made.items()}
    made = made | ({"reduction": "sum"} if "target" in made else {})
    # New arrays of this size do not bypass it.
    large_result = np.empty((40 * block, classes), np.float32)
    getattr(cylsm, function)(**made, out=large_result)
    new = getattr(cylsm, function)(**made)
    np.testing.assert_array_equal(new[1] if isinstance(new, tuple) else new, large_result)
    first = getattr(cylsm, function)(**cases.rows_of(made, slice(block)))
    first = first[1] if isinstance(first, tuple) else first
    for start in range(0, 40 * block, block):
        np.testing.assert_array_equal(large_result[start : start + block], first)


@pytest.fixture
def cache_bytes():
    """Sets how large the last-level cache is taken to be: rows of what is larger are written around it."""
    before = _driver._use_cache_bytes(0)
    yield _driver._use_cache_bytes
    _driver._use_cache_bytes(before)


def test_share_of_the_cache(monkeypatch, tmp_path):
    """A virtual machine is told how large its host's cache is, and has the share of its own processors."""
    sizes = {"L1": "48K", "L3": "307200K", "odd": "none"}
    for name, size in sizes.items():
        (tmp_path / name).write_text(size + "\n")
    monkeypatch.setattr(_cpu, "glob", lambda pattern: [tmp_path / name for name in (*sizes, "missing")])
    for processors, wanted in [(1, 16 << 20), (2, 32 << 20), (64, 307200 << 10)]:
        assert _cpu.last_level_cache_bytes(processors) == wanted


@on_each_isa
@each_dtype
@pytest.mark.parametrize("function", ["log_softmax", "softmax", "logsumexp_backward", "cross_entropy_with_grad"])
@pytest.mark.parametrize(
    "classes", [96, 101, 128, 129, 144, 200, 257, 300, 321, 513, 1000, 4100, 16_401, 20_000, 70_001]
)
def test_rows_written_while_others_are_added_up(function, classes, dtype, cache_bytes, seed):
    """Each row has the bits that it has alone, whatever the caches hold and however many rows there are."""
    x = among_special_rows(large("softmax", (37, classes), 1, dtype, seed))["x"]
    # A largest zero of either sign, alone and beside one of the other, in batches that are compared early.
    x[18:23] = -np.abs(x[18:23]) - 1
    x[18, 0] = x[19, [0, -1]] = x[20, [5, 90]] = -0.0
    x[20:23, 50] = 0.0
    x[18, 1:] = -20
    # Where a tile is shorter than that before it, the largest lies just before it, or behind.
    x[24], x[25] = np.sort(x[24]), np.sort(x[25])[::-1]
    info = np.finfo(dtype)
    factors = np.linspace(-2, 2, 37, dtype=dtype)
    # Some rows, alone and in a batch with others, are multiplied once more.
    factors[[3, 9, 17, 18, 30]] = info.max, np.nan, info.tiny, -info.tiny / 8, info.smallest_subnormal

    labels = np.arange(37) * 7 % classes

    def call(rows, x, **options):
        if function == "logsumexp_backward":
            return cylsm.logsumexp_backward(factors[rows], x, **options)
        if function == "cross_entropy_with_grad":
            return cylsm.cross_entropy_with_grad(x, labels[rows], reduction="sum", **options)[1]
        return getattr(cylsm, function)(x, **options)

    cache_bytes(1 << 40)
    wanted = np.stack([call(row, x[row]) for row in range(37)])
    for size in (1 << 40, 0):
        cache_bytes(size)
        for rows in (1, 2, 5, 16, 17, 32, 33, 37):
            for start in (0, 1, 9):
                out = np.empty(rows * classes + start, dtype)[start:].reshape(rows, classes)
                accuracy.assert_same_bits(call(slice(rows), x[:rows], out=out), wanted[:rows])
            out[...] = x[:rows]
            accuracy.assert_same_bits(call(slice(rows), out, out=out), wanted[:rows])


@on_each_isa
@each_dtype
@pytest.mark.parametrize("function", ["log_softmax", "softmax", "logsumexp"])
@pytest.mark.parametrize("classes", [40, 100, 150, 260, 600])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_rows_in_short_runs(function, rows, classes, dtype, cache_bytes, seed):
    """A few of every few, in memory that holds more."""
    x = large("softmax", (50, rows + 1, classes), 2, dtype, seed)["x"]
    wanted = getattr(cylsm, function)(x, axis=2)[:, :rows]
    for size in (1 << 40, 0):
        cache_bytes(size)
        accuracy.assert_same_bits(getattr(cylsm, function)(x[:, :rows], axis=2), wanted)
        if function != "logsumexp":
            for held in (x, np.empty_like(x)):
                inside = held.copy()
                beside = inside[:, rows:].copy()
                result = getattr(cylsm, function)(
                    inside[:, :rows] if held is x else x[:, :rows], axis=2, out=inside[:, :rows]
                )
                accuracy.assert_same_bits(result, wanted)
                accuracy.assert_same_bits(inside[:, rows:], beside)


def assert_same_around(function, made, cache_bytes):
    """Around the caches the result is the same, wherever in a line its runs start and end, and nothing beside it is
    written."""
    cache_bytes(1 << 40)
    through = getattr(cylsm, function)(**made)
    through = through[1] if isinstance(through, tuple) else through
    cache_bytes(0)
    runs, length = through.shape
    for start, gap in ((0, 0), (1, 5), (3, 0), (4, 5), (15, 0)):
        room = np.full(runs * (length + gap) + 32, 7, through.dtype)
        lines = room[start : start + runs * (length + gap)].reshape(runs, length + gap)
        getattr(cylsm, function)(**made, out=lines[:, :length])
        np.testing.assert_array_equal(lines[:, :length], through)
        lines[:, :length] = 7
        assert (room == 7).all()


@on_each_isa
@pytest.mark.parametrize("beyond", [0, 1, 8, 16, 20])
@pytest.mark.parametrize(
    ("rows", "row_bytes"), [(150, 128), (37, 512), (21, 1200), (5, 65536), (4, 2 * 65536), (2, 600_000)]
)
@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("softmax", {}),
        ("log_softmax", {}),
        ("log_softmax_backward", {}),
        ("softmax_backward", {}),
        ("logsumexp_backward", {}),
        ("cross_entropy_with_grad", {"reduction": "sum"}),
        ("cross_entropy_with_grad", {"label_smoothing": 0.1, "reduction": "sum"}),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_around_the_caches(dtype, function, options, rows, row_bytes, beyond, cache_bytes, seed):
    """Rows of any length."""
    made = large(function, (rows, row_bytes // dtype().itemsize + beyond), 1, dtype, seed) | options
    assert_same_around(function, made, cache_bytes)


@on_each_isa
@openmp
@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize(
    "function", ["softmax", "log_softmax", "log_softmax_backward", "softmax_backward", "cross_entropy_with_grad"]
)
@pytest.mark.parametrize("shape", [(5000, 33), (2000, 129), (1000, 301), (9, 33_000)])
@each_dtype
def test_threads_that_stream_parts_of_one_line(dtype, shape, function, cache_bytes, seed):
    """Where one thread's rows end, and another's begin."""
    made = large(function, shape, 1, dtype, seed)
    cache_bytes(1 << 40)
    through = getattr(cylsm, function)(**made)
    through = through[1] if isinstance(through, tuple) else through
    cache_bytes(0)
    for start in (0, 3):
        out = np.empty(math.prod(shape) + start, dtype)[start:].reshape(shape)
        getattr(cylsm, function)(**made, out=out)
        np.testing.assert_array_equal(out, through)


@on_each_isa
@pytest.mark.parametrize("shape", [(3, 300), (21, 517), (150, 200), (700, 131), (5000, 70)])
@pytest.mark.parametrize(
    "function", ["softmax", "log_softmax", "log_softmax_backward", "softmax_backward", "cross_entropy_with_grad"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_around_the_caches(dtype, function, shape, cache_bytes, seed):
    """Classes of any number, along the first axis."""
    assert_same_around(function, large(function, shape, 0, dtype, seed), cache_bytes)


@on_each_isa
def test_concurrent_callers(seed):
    """Each gets what it would have got alone."""
    calls = [(f, large(f, shape, axis, np.float32, seed)) for f in accuracy.FUNCTIONS for shape, axis in SHAPES[1::3]]
    alone = [getattr(cylsm, function)(**made) for function, made in calls]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            together = pool.map(lambda call: getattr(cylsm, call[0])(**call[1]), calls)
            for found, wanted in zip(together, alone, strict=True):
                accuracy.assert_same_bits(found, wanted)


@openmp
@pytest.mark.usefixtures("eight_processors")
def test_concurrent_callers_share_the_processors():
    x = np.zeros((4000, 1000), np.float32)
    stop = threading.Event()

    def call_until_stopped():
        while not stop.is_set():
            cylsm.softmax(x, axis=1)

    def reaches(threads):
        deadline = time.monotonic() + 30
        while _threads._threads_for(x.size) != threads and time.monotonic() < deadline:
            time.sleep(1e-4)
        return time.monotonic() < deadline

    with ThreadPoolExecutor(3) as pool:
        try:
            calls = [pool.submit(call_until_stopped)]
            assert reaches(8 // 2)
            calls += [pool.submit(call_until_stopped) for _ in range(2)]
            assert reaches(8 // 4)
        finally:
            stop.set()
    assert [call.result() for call in calls] == [None] * 3
    assert reaches(8)


@openmp
@pytest.mark.usefixtures("eight_processors")
def test_no_threads_for_a_while_where_waiting_for_them_costs_more():
    """As on processors that other processes keep busy; longer each time that another try is lost."""
    work = 1_000_000

    def region(worked, waited, slept=0.0):
        return _threads._note_region(worked, waited, work, slept)

    def late():
        return region(8e-3, 8e-3)  # a million elements do not take so long: the first thread was late too

    assert late() == 0  # one wait is an accident
    assert _threads._threads_for(work) == 8
    assert late() == 10e-3
    assert _threads._threads_for(work) == 1
    assert [late() for _ in range(7)] == [20e-3, 40e-3, 80e-3, 160e-3, 320e-3, 640e-3, 640e-3]
    for _ in range(20):
        assert region(1e-3, 1e-4) == 0
    assert late() == 0
    assert late() == 10e-3
    _threads._pretend_processors(8)
    assert _threads._threads_for(work) == 8
    for _ in range(10):
        assert region(8e-3, 8e-3, slept=2e-3) == 0  # a thread that slept wakes late
    assert _threads._threads_for(work) == 8


@on_each_isa
@openmp
@pytest.mark.usefixtures("eight_processors")
@pytest.mark.parametrize("function", [*accuracy.LOSSES, *accuracy.LOSSES_WITH_GRAD])
@pytest.mark.parametrize(("shape", "axis"), [((60_000, 2), 1), ((1500, 128), 1), ((128, 1500), 0), ((40, 5003), 1)])
def test_labels_that_change_during_the_call(function, shape, axis, rng):
    """Another thread may spoil the result, but no label is used that is no class."""
    scores = rng.normal(size=shape).astype(np.float32)
    target = np.zeros(shape[1 - axis], np.int64)
    wild = rng.integers(-(2**62), 2**62, size=target.shape)
    done = threading.Event()

    def change():
        while not done.is_set():
            target[...] = wild
            target[...] = 1

    changing = threading.Thread(target=change)
    changing.start()
    outcomes = set()
    try:
        for _ in range(15):
            try:
                getattr(cylsm, function)(scores, target, axis)
                outcomes.add("a result")
            except IndexError:
                outcomes.add("a label out of range")
    finally:
        done.set()
        changing.join()
    assert outcomes


# How many


@pytest.mark.usefixtures("default_threads")
def test_set_num_threads():
    most = cylsm.get_num_threads()
    assert 1 <= most <= os.cpu_count()
    for n in (1, 2, 3, 1000, np.int64(2), np.uint8(1)):
        assert cylsm.set_num_threads(n) is None
        assert cylsm.get_num_threads() == min(n, most)
        assert cylsm.show_config(mode="dicts")["num_threads"] == min(n, most)
    cylsm.set_num_threads(None)
    assert cylsm.get_num_threads() == most


def test_config(capsys):
    config = cylsm.show_config(mode="dicts")
    assert config["version"] == cylsm.__version__
    assert config["isa"] in config["available_isas"]
    assert config["available_isas"][0] == "baseline"
    assert isinstance(config["openmp"], bool)
    assert config["num_threads"] == cylsm.get_num_threads()
    assert capsys.readouterr().out == ""
    assert cylsm.show_config() is None
    printed = capsys.readouterr().out
    assert config["version"] in printed
    assert config["isa"] in printed


def test_threads_need_openmp():
    assert CONFIG["openmp"] or cylsm.get_num_threads() == 1


HOW_MANY = "import cylsm; print(cylsm.get_num_threads())"


@linux
@pytest.mark.parametrize("n", [1, 2, 64])
def test_environment_limits_threads(n):
    most = int(run(HOW_MANY, OMP_NUM_THREADS="1000")[0])
    assert most <= len(os.sched_getaffinity(0))
    assert run(HOW_MANY, OMP_NUM_THREADS=str(n)) == [str(min(n, most))]


@linux
def test_affinity_limits_threads():
    assert run("import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + HOW_MANY) == ["1"]


@linux
def test_threads_that_openmp_binds_are_as_many():
    """Though each of them, the calling one too, then has a single processor."""
    assert run(HOW_MANY, OMP_PROC_BIND="true") == run(HOW_MANY)
    place = str(min(os.sched_getaffinity(0)))
    assert run(HOW_MANY, OMP_PROC_BIND="true", OMP_PLACES=f"{{{place}}}") == ["1"]
    assert run(HOW_MANY, OMP_PROC_BIND="master", OMP_PLACES="threads") == ["1"]


@linux
def test_affinity_is_read_at_each_call():
    program = """
import os
import cylsm
everywhere = os.sched_getaffinity(0)
before = cylsm.get_num_threads()
os.sched_setaffinity(0, [min(everywhere)])
print(cylsm.get_num_threads() == 1)
os.sched_setaffinity(0, everywhere)
print(cylsm.get_num_threads() == before)
"""
    assert run(program) == ["True", "True"]


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup//cpu.max": "max 100000\n"}, None),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup//cpu.max": "200000 100000\n"}, 2),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "250000 100000"}, 3),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "50000 100000"}, 1),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/cpu.max": "700000 100000",
                "/sys/fs/cgroup/a/cpu.max": "400000 100000",
            },
            4,
        ),
        (
            {
                "/proc/self/cgroup": "2:cpuacct:/a\n1:cpu:/a\n",
                "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "/proc/self/cgroup": "1:cpu:/\n",
                "/sys/fs/cgroup/cpu//cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu//cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"/proc/self/cgroup": "0::/../../x\n", "/sys/fs/cgroup/x/cpu.max": "100000 100000"}, 1),
        ({"/proc/self/cgroup": "nonsense\n", "/sys/fs/cgroup//cpu.max": "more nonsense"}, None),
    ],
)
def test_quota_of_the_control_group(files, processors, monkeypatch):
    """The smallest one from the process's own group up to the root, rounded up; of either version."""

    def read(name):
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    monkeypatch.setattr(_threads, "open_text", read)
    assert _threads.cgroup_processors() == processors


def test_threadpoolctl_limits_threads():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = cylsm.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert cylsm.get_num_threads() == 1
    assert cylsm.get_num_threads() == before


RUN_AFTER_RUN = """
import hashlib
import numpy as np
import cylsm
from cylsm import _threads

_threads._pretend_processors(%d)
digest = hashlib.sha256()
for dtype in (np.float16, np.float32, np.float64):
    rng = np.random.default_rng(7)
    for shape, axis in (((9000, 10), 1), ((1500, 128), 1), ((3, 100_003), 1), ((128, 1500), 0), ((20, 5003), 1)):
        x = (rng.normal(size=shape) * 5).astype(dtype)
        labels = rng.integers(shape[axis], size=shape[1 - axis])
        digest.update(cylsm.logsumexp(x, axis).tobytes())
        digest.update(cylsm.softmax(x, axis).tobytes())
        for result in cylsm.cross_entropy_with_grad(x, labels, axis, label_smoothing=0.1):
            digest.update(result.tobytes())
        digest.update(cylsm.cross_entropy(x, labels, axis).tobytes())
print(digest.hexdigest())
"""


def test_run_after_run_changes_no_bit():
    """In another process everything lies elsewhere in memory."""
    assert len({run(RUN_AFTER_RUN % threads)[0] for threads in (0, 0, 1, 5, 8)}) == 1


# Instruction sets


def test_unknown_instruction_set():
    program = """
try:
    import cylsm
except ImportError as error:
    print(error)
"""
    message = " ".join(run(program, CYLSM_ISA="avx1024"))
    assert "CYLSM_ISA" in message
    assert "avx1024" in message
    for isa in CONFIG["available_isas"]:
        assert isa in message


@pytest.mark.parametrize("isa", CONFIG["available_isas"])
def test_forced_instruction_set(isa):
    assert run('import cylsm; print(cylsm.show_config(mode="dicts")["isa"])', CYLSM_ISA=isa) == [isa]
