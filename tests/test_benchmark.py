"""How long each function takes, beside the libraries a user would pick instead.

A plain run skips these; `python -m pytest --benchmark-only` runs them, with those peers that are installed
(`pip install ".[bench]"` brings all). A group is one operation on one shape and dtype. In the JSON that
`--benchmark-json` writes, `extra_info` says how many bytes the operation has to move at least, how fast its best round
moved them, and what share that is of the speed of moving them and doing nothing else. Whatever can write into an
existing array does; what comes out is compared with the plain NumPy formula.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import cylsm
from cylsm._cli._memory import movers
from cylsm._cli._rounds import best_times

SHAPES = [(8, 10), (65536, 10), (4096, 128), (4096, 1000), (512, 32000), (128, 128256), (1, 4_000_000)]
SEED = 0

# Arrays as large as the logits that the operation has to read or write.
ARRAYS_MOVED = {
    "logsumexp": 1,
    "log_softmax": 2,
    "softmax": 2,
    "log_softmax_backward": 3,
    "cross_entropy": 1,
    "cross_entropy_with_grad": 2,
}


class Case:
    """The arrays of one group."""

    def __init__(self, shape, dtype):
        rng = np.random.default_rng(SEED)
        self.logits = 4 * rng.standard_normal(shape, dtype=dtype)
        self.target = rng.integers(0, shape[1], shape[0])
        self.grad_output = rng.standard_normal(shape, dtype=dtype)
        self.log_probs = numpy_log_softmax(self.logits)
        self.out = np.zeros_like(self.logits)
        self.row_out = np.zeros(shape[0], dtype)


def numpy_log_softmax(x):
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def numpy_calls(case):
    x, target, rows = case.logits, case.target, np.arange(len(case.target))

    def logsumexp():
        largest = x.max(axis=1, keepdims=True)
        return np.log(np.exp(x - largest).sum(axis=1)) + largest[:, 0]

    def softmax():
        e = np.exp(x - x.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        return e

    def cross_entropy_with_grad():
        log_probs = numpy_log_softmax(x)
        gradient = np.exp(log_probs)
        gradient[rows, target] -= 1
        gradient /= len(rows)
        return -log_probs[rows, target].mean(), gradient

    return {
        "logsumexp": logsumexp,
        "log_softmax": lambda: numpy_log_softmax(x),
        "softmax": softmax,
        "log_softmax_backward": lambda: (
            case.grad_output - np.exp(case.log_probs) * case.grad_output.sum(axis=1, keepdims=True)
        ),
        "cross_entropy": lambda: -numpy_log_softmax(x)[rows, target].mean(),
        "cross_entropy_with_grad": cross_entropy_with_grad,
    }


def cylsm_calls(case):
    x, target, out = case.logits, case.target, case.out
    return {
        "logsumexp": lambda: cylsm.logsumexp(x, out=case.row_out),
        "log_softmax": lambda: cylsm.log_softmax(x, out=out),
        "softmax": lambda: cylsm.softmax(x, out=out),
        "log_softmax_backward": lambda: cylsm.log_softmax_backward(case.grad_output, case.log_probs, out=out),
        "cross_entropy": lambda: cylsm.cross_entropy(x, target),
        "cross_entropy_with_grad": lambda: cylsm.cross_entropy_with_grad(x, target, out=out),
    }


def scipy_calls(case):
    special = pytest.importorskip("scipy.special")
    return {
        "logsumexp": lambda: special.logsumexp(case.logits, axis=1),
        "log_softmax": lambda: special.log_softmax(case.logits, axis=1),
        "softmax": lambda: special.softmax(case.logits, axis=1),
    }


def torch_calls(case):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    torch.set_num_threads(cylsm.get_num_threads())
    x, target, grad_output, log_probs, out, row_out = map(
        torch.from_numpy,
        (case.logits, case.target, case.grad_output, case.log_probs, case.out, case.row_out),
    )
    leaf = x.clone().requires_grad_()

    def cross_entropy_with_grad():
        leaf.grad = None
        loss = functional.cross_entropy(leaf, target)
        loss.backward()
        return loss.detach(), leaf.grad

    return {
        "logsumexp": lambda: torch.logsumexp(x, 1, out=row_out),
        "log_softmax": lambda: torch.log_softmax(x, 1, out=out),
        "softmax": lambda: torch.softmax(x, 1, out=out),
        "log_softmax_backward": lambda: torch._log_softmax_backward_data(grad_output, log_probs, 1, x.dtype, out=out),
        "cross_entropy": lambda: functional.cross_entropy(x, target),
        "cross_entropy_with_grad": cross_entropy_with_grad,
    }


def onnxruntime_calls(case):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    element = onnx.helper.np_dtype_to_tensor_dtype(case.logits.dtype)

    def call(operator, out, **attributes):
        def tensor(name, rank):
            return onnx.helper.make_tensor_value_info(name, element, [None] * rank)

        node = onnx.helper.make_node(operator, ["x"], ["y"], **attributes)
        graph = onnx.helper.make_graph([node], operator, [tensor("x", 2)], [tensor("y", out.ndim)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cylsm.get_num_threads()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", case.logits)
        binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

        def run():
            session.run_with_iobinding(binding)
            return out

        return run

    return {
        "logsumexp": call("ReduceLogSumExp", case.row_out, axes=[1], keepdims=0),
        "log_softmax": call("LogSoftmax", case.out, axis=1),
        "softmax": call("Softmax", case.out, axis=1),
    }


def jax_calls(case):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)

    def cross_entropy(x, target):
        log_probs = jax.nn.log_softmax(x, axis=1)
        return -jax.numpy.take_along_axis(log_probs, target[:, None], axis=1).mean()

    def log_softmax_backward(grad_output, log_probs):
        return grad_output - jax.numpy.exp(log_probs) * grad_output.sum(axis=1, keepdims=True)

    def call(function, *arrays):
        compiled = jax.jit(function)
        arguments = [jax.numpy.asarray(array) for array in arrays]
        return lambda: jax.block_until_ready(compiled(*arguments))

    return {
        "logsumexp": call(lambda x: jax.scipy.special.logsumexp(x, axis=1), case.logits),
        "log_softmax": call(lambda x: jax.nn.log_softmax(x, axis=1), case.logits),
        "softmax": call(lambda x: jax.nn.softmax(x, axis=1), case.logits),
        "log_softmax_backward": call(log_softmax_backward, case.grad_output, case.log_probs),
        "cross_entropy": call(cross_entropy, case.logits, case.target),
        "cross_entropy_with_grad": call(jax.value_and_grad(cross_entropy), case.logits, case.target),
    }


LIBRARIES = {
    "cylsm": cylsm_calls,
    "numpy": numpy_calls,
    "scipy": scipy_calls,
    "torch": torch_calls,
    "onnxruntime": onnxruntime_calls,
    "jax": jax_calls,
}


@pytest.fixture(autouse=True)
def no_warnings():
    """Unlike everywhere else: the peers may warn, when they are imported too."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def case(request, dtype):
    return Case(request.param, dtype)


@pytest.fixture(scope="module")
def limits(case):
    """Seconds to move one, two or three arrays of the case once, by how many there are."""
    threads = cylsm.get_num_threads()
    arrays = {1: [case.logits], 2: [case.logits, case.out], 3: [case.grad_output, case.log_probs, case.out]}
    with ThreadPoolExecutor(threads) as pool:
        return {n: min(best_times(movers(moved, pool, threads), 0.1, 3).values()) for n, moved in arrays.items()}


def as_list(result):
    """Loss and gradient, or the one array, as NumPy arrays."""
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.benchmark(max_time=0.5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("operation", ARRAYS_MOVED)
def test_speed(benchmark, case, limits, operation, library):
    calls = LIBRARIES[library](case)
    if operation not in calls:
        pytest.skip(f"{library} has no {operation}")
    call = calls[operation]

    tolerance = 1e-3 if case.logits.dtype == np.float32 else 1e-9
    for got, expected in zip(as_list(call()), as_list(numpy_calls(case)[operation]()), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * abs(expected).max())

    rows, classes = case.logits.shape
    benchmark.group = f"{operation} {rows}x{classes} {case.logits.dtype}"
    benchmark(call)

    moved = ARRAYS_MOVED[operation] * case.logits.nbytes
    benchmark.extra_info["bytes moved"] = moved
    if benchmark.stats is not None:  # --benchmark-disable
        benchmark.extra_info["GB/s"] = moved / benchmark.stats.stats.min / 1e9
        benchmark.extra_info["share of the limit"] = limits[ARRAYS_MOVED[operation]] / benchmark.stats.stats.min
