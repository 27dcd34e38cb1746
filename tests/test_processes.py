"""What a process goes through besides calls: forks, signals, other OpenMP runtimes, subinterpreters, no more memory."""

import os
import sys
from importlib.util import find_spec

import pytest
from programs import run

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
# It replaces the allocators that these tests limit, count or switch.
not_sanitized = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="not with AddressSanitizer's allocator")

# Forks

AFTER_A_FORK = """
import os, signal
import numpy as np
import cylsm

x = np.random.default_rng(1).normal(size=(2000, 700)).astype(np.float32)
wanted = cylsm.log_softmax(x)
child = os.fork()
if child == 0:
    signal.alarm(60)  # whatever hangs, Python's own handlers included
    same = np.array_equal(cylsm.log_softmax(x), wanted)
    threads = cylsm.get_num_threads()
    config = cylsm.show_config(mode="dicts")["num_threads"]
    cylsm.set_num_threads(4)
    again = cylsm.get_num_threads()
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(30)
        os._exit(not np.array_equal(cylsm.log_softmax(x), wanted))
    below = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
    os._exit(0 if same and threads == config == again == 1 and below == 0 else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, np.array_equal(cylsm.log_softmax(x), wanted))
"""


@forks
def test_fork_after_use():
    """A child runs serially, and its parent goes on as before."""
    assert run(AFTER_A_FORK) == ["0", "True"]


IN_A_POOL = """
import multiprocessing
import numpy as np
import cylsm

def row_sums(x):
    return cylsm.logsumexp(x)

if __name__ == "__main__":
    x = np.ones((1000, 500), np.float32)
    wanted = cylsm.logsumexp(x)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(row_sums, [x] * 4).get(timeout=60)
    print(all(np.array_equal(result, wanted) for result in results))
"""


@forks
def test_multiprocessing_by_fork():
    assert run(IN_A_POOL) == ["True"]


WHILE_A_THREAD_COMPUTES = """
import os, signal, threading
import numpy as np
import cylsm

x = np.random.default_rng(1).normal(size=(3000, 1000)).astype(np.float32)
labels = np.zeros(3000, int)
wanted, done, started = cylsm.cross_entropy(x, labels), threading.Event(), threading.Event()
right = []

def compute():
    while not done.is_set():
        right.append(cylsm.cross_entropy(x, labels) == wanted)
        started.set()

thread = threading.Thread(target=compute)
thread.start()
started.wait()
statuses = set()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if cylsm.cross_entropy(x, labels) == wanted else 3)
    statuses.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
thread.join()
print(statuses, all(right))
"""


@forks
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not promise a process with threads a working fork")
def test_fork_while_another_thread_computes():
    assert run(WHILE_A_THREAD_COMPUTES, PYTHONWARNINGS="ignore") == ["{0}", "True"]


IN_SERVED_PROCESSES = """
import multiprocessing
import sys
import numpy as np
import cylsm

if __name__ == "__main__":
    x = np.ones((1000, 500), np.float32)
    wanted = cylsm.logsumexp(x)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cylsm"] if sys.argv[1:] else [])
    with context.Pool(2) as pool:
        results = pool.map_async(cylsm.logsumexp, [x] * 4).get(timeout=60)
    print(all(np.array_equal(result, wanted) for result in results))
"""


@forks
@pytest.mark.parametrize("preloaded", [False, True])
def test_multiprocessing_by_forkserver(preloaded, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(IN_SERVED_PROCESSES)
    assert run(
        f"import runpy, sys; sys.argv = [{str(program)!r}] + ['preloaded'] * {preloaded}; "
        f"runpy.run_path({str(program)!r}, run_name='__main__')"
    ) == ["True"]


# Signals

INTERRUPTED = """
import os, signal, threading, time
import numpy as np
import cylsm

x = np.random.default_rng(1).normal(size=(20_000, 1000)).astype(np.float32)
wanted = cylsm.log_softmax(x)
outcomes = set()
for delay in (0.001, 0.003, 0.01, 0.1):
    for attempt in range(3):
        out = np.zeros_like(x)
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            cylsm.log_softmax(x, out=out)
            timer.join()
            time.sleep(0.01)  # Python looks for signals after a call
        except KeyboardInterrupt:
            outcomes.add("complete" if np.array_equal(out, wanted) else "in part" if out.any() else "not begun")
        timer.join()
print("complete" in outcomes, "in part" in outcomes)
"""


@posix
def test_interrupt_arrives_after_the_call():
    """KeyboardInterrupt finds a complete result."""
    assert run(INTERRUPTED) == ["True", "False"]


# Other runtimes

WITH_TORCH = """
import numpy as np
import {first}
import {second}
import torch.nn.functional as F

x = np.random.default_rng(1).normal(size=(2000, 500)).astype(np.float32)
for _ in range(3):
    ours, theirs = cylsm.log_softmax(x), F.log_softmax(torch.from_numpy(x), 1).numpy()
    assert np.allclose(ours, theirs, atol=1e-4)
torch.set_num_threads(1)
assert np.array_equal(cylsm.log_softmax(x), ours)
print(cylsm.get_num_threads() >= 1)
"""


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize(("first", "second"), [("torch", "cylsm"), ("cylsm", "torch")])
def test_beside_pytorch(first, second):
    """Whose OpenMP runtime may be another one, and may come first."""
    assert run(WITH_TORCH.format(first=first, second=second)) == ["True"]


EVERY_FUNCTION = """
import sys
sys.path.insert(0, {tests!r})
import accuracy, cases
import numpy as np
import cylsm

rng = np.random.default_rng(3)
for dtype in accuracy.FLOATS:
    for shape, axis in (((70, 7), -1), ((5, 300), 1), ((300, 20), 0), ((2, 9000), 1)):
        x = rng.normal(size=shape).astype(dtype)
        for function in accuracy.FUNCTIONS:
            made = cases.arguments(function, x, rng, axis)
            accuracy.assert_accurate(getattr(cylsm, function)(**made), accuracy.expected(function, **made))
print("right")
"""


@not_sanitized
def test_python_checks_its_memory():
    """PYTHONMALLOC=debug puts guard bytes around what Python allocates and overwrites what it frees."""
    program = EVERY_FUNCTION.format(tests=os.path.dirname(__file__))
    assert run(program, PYTHONMALLOC="debug", PYTHONDEVMODE="1") == ["right"]


# Subinterpreters

IMPORT = """
try:
    import cylsm
except ImportError as error:
    print(error)
"""
IN_A_SUBINTERPRETER = """
try:
    import _interpreters
except ImportError:
    import _xxsubinterpreters as _interpreters
{before}
_interpreters.run_string(_interpreters.create(), {program!r})
"""


@pytest.mark.parametrize("before", ["", "import cylsm"])
def test_subinterpreters_are_refused(before):
    message = " ".join(run(IN_A_SUBINTERPRETER.format(before=before, program=IMPORT)))
    assert message.startswith("cylsm can't be imported in a subinterpreter: ")


# Memory

WITHOUT_MEMORY = """
import ctypes, resource, sys
sys.path.insert(0, {tests!r})
import accuracy, cases
import numpy as np
import cylsm

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
rng = np.random.default_rng(3)
cylsm.set_num_threads(1)
calls = []
for dtype in (np.float16, np.float32):
    for shape, axis in (((3000, 7), -1), ((40, 900), 1), ((900, 40), 0), ((2, 20_000), 1)):
        x = rng.normal(size=shape).astype(dtype)
        for function in accuracy.FUNCTIONS:
            made = cases.arguments(function, x, rng, axis)
            result = getattr(cylsm, function)(**made)
            if function not in accuracy.LOSSES:
                result = made["out"] = np.full_like(result[1] if isinstance(result, tuple) else result, 7)
            calls.append((getattr(cylsm, function), made, result, result.tobytes()))
raised = np.zeros(len(calls), bool)
unchanged = np.ones(len(calls), bool)
kept = (ctypes.c_void_p * 1_000_000)()
limits = resource.getrlimit(resource.RLIMIT_AS)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for i, (call, made, result, before) in enumerate(calls):
    taken = 0
    resource.setrlimit(resource.RLIMIT_AS, (size, limits[1]))
    while (room := libc.malloc(3000)):
        kept[taken] = room
        taken += 1
    try:
        call(**made)
    except MemoryError:
        raised[i] = True
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for j in range(taken):
            libc.free(kept[j])
    if raised[i]:
        unchanged[i] = result.tobytes() == before
print(raised.mean(), unchanged.all())
for call, made, result, before in calls:
    call(**made)
"""


@linux
@not_sanitized
def test_no_memory(isa):
    """Where the heap is full, a call raises MemoryError before it writes, and the next one is none the worse."""
    share, unchanged = run(WITHOUT_MEMORY.format(tests=os.path.dirname(__file__)), CYLSM_ISA=isa)
    assert float(share) > 0.5
    assert unchanged == "True"


NOTHING_LEFT_BEHIND = """
import contextlib, ctypes, gc, sys
sys.path.insert(0, {tests!r})
import accuracy, cases, test_errors
import numpy as np
import cylsm

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", Mallinfo)  # since glibc 2.33
mallinfo2.restype = Mallinfo
rng = np.random.default_rng(3)
calls = []
for function in accuracy.FUNCTIONS:
    for shape, axis in (((70, 7), -1), ((5, 300), 1), ((300, 20), 0), ((2, 9000), 1)):
        made = cases.arguments(function, rng.normal(size=shape).astype(np.float32), rng, axis)
        calls.append((getattr(cylsm, function), made))
        calls.append((getattr(cylsm, function), made | {{"axis": 7}}))
        for name in made:
            calls.append((getattr(cylsm, function), made | {{name: object()}}))
        if "target" in made:
            calls.append((getattr(cylsm, function), made | {{"target": made["target"] + 10**6}}))
            calls.append((getattr(cylsm, function), made | {{"weight": np.ones(shape[axis])}}))
        elif function != "logsumexp":
            calls.append((getattr(cylsm, function), made | {{"out": np.zeros(shape, np.float32)[::-1]}}))

def held():
    for call, made in calls:
        with contextlib.suppress(TypeError, ValueError, IndexError):
            call(**made)
    gc.collect()
    memory = mallinfo2()
    return sys.getallocatedblocks(), memory.uordblks + memory.hblkhd

# Python and NumPy keep what they free in lists of their own, which grow for some thirty rounds.
counts = np.zeros((100, 2), np.int64)
for row in counts:
    row[...] = held()
print(*(counts[-1] - counts[50]))
"""


@linux
@not_sanitized
def test_nothing_is_left_behind():
    """Neither Python's objects nor the C library's memory grow with the number of calls, failed ones included."""
    blocks, size = map(int, run(NOTHING_LEFT_BEHIND.format(tests=os.path.dirname(__file__)), OMP_NUM_THREADS="1"))
    assert blocks < 20
    assert size < 20 * 32
