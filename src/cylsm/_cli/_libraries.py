"""cylsm and the libraries a user would pick instead, each computing the same operations on the same arrays.

`LIBRARIES` maps a library's name to a function that builds the call of one operation, written as that library's
users write it, or None where the library has no such operation. Whatever can write into an existing array does.
"""

import importlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import cylsm

# Returns an array (of NumPy or the library's own), for a loss with its gradient a tuple of two.
Call = Callable[[], Any]


@dataclass
class Arrays:
    """The arrays that every library is given; what only some operations need is made when one asks."""

    logits: NDArray[Any]
    target: NDArray[np.int64]
    axis: int
    reduction: Literal["mean", "none"]
    rng: np.random.Generator

    @cached_property
    def log_probs(self) -> NDArray[Any]:
        return np.asarray(cylsm.log_softmax(self.logits, self.axis))

    @cached_property
    def probs(self) -> NDArray[Any]:
        return np.asarray(cylsm.softmax(self.logits, self.axis))

    @cached_property
    def grad_output(self) -> NDArray[Any]:
        return self._normal(self.logits.shape)

    @cached_property
    def row_grad_output(self) -> NDArray[Any]:
        return self._normal(self.target.shape)

    @cached_property
    def out(self) -> NDArray[Any]:
        return np.zeros_like(self.logits)

    @cached_property
    def row_out(self) -> NDArray[Any]:
        return np.zeros(self.target.shape, self.logits.dtype)

    def _normal(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return self.rng.standard_normal(shape, self.logits.dtype.type)


def cylsm_call(operation: str, a: Arrays, *, new: bool = False) -> Call | None:
    """Unless a `new` array is to be returned, `out` is filled."""
    x, target, axis, reduction = a.logits, a.target, a.axis, a.reduction
    out, row_out = (None, None) if new else (a.out, a.row_out)
    match operation:
        case "logsumexp":
            return lambda: cylsm.logsumexp(x, axis, out=row_out)
        case "log_softmax":
            return lambda: cylsm.log_softmax(x, axis, out=out)
        case "softmax":
            return lambda: cylsm.softmax(x, axis, out=out)
        case "logsumexp_backward":
            return lambda: cylsm.logsumexp_backward(a.row_grad_output, x, axis, out=out)
        case "log_softmax_backward":
            return lambda: cylsm.log_softmax_backward(a.grad_output, a.log_probs, axis, out=out)
        case "softmax_backward":
            return lambda: cylsm.softmax_backward(a.grad_output, a.probs, axis, out=out)
        case "cross_entropy":
            return lambda: cylsm.cross_entropy(x, target, axis, reduction=reduction)
        case "cross_entropy_with_grad":
            return lambda: cylsm.cross_entropy_with_grad(x, target, axis, reduction=reduction, out=out)
    return None


def _scipy_call(operation: str, a: Arrays) -> Call | None:
    """SciPy's function, or the NumPy expression around it that SciPy's users write."""
    special = importlib.import_module("scipy.special")
    x, axis = a.logits, a.axis
    at_target = np.expand_dims(a.target, axis)

    def reduced(log_probs: NDArray[Any]) -> Any:
        loss = -np.take_along_axis(log_probs, at_target, axis).squeeze(axis)
        return loss if a.reduction == "none" else loss.mean()

    def cross_entropy_with_grad() -> Any:
        log_probs = special.log_softmax(x, axis=axis)
        gradient = np.exp(log_probs)
        of_target = np.take_along_axis(gradient, at_target, axis) - 1
        np.put_along_axis(gradient, at_target, of_target, axis)
        if a.reduction == "mean":
            gradient /= a.target.size
        return reduced(log_probs), gradient

    match operation:
        case "logsumexp":
            return lambda: special.logsumexp(x, axis=axis)
        case "log_softmax":
            return lambda: special.log_softmax(x, axis=axis)
        case "softmax":
            return lambda: special.softmax(x, axis=axis)
        case "logsumexp_backward":
            return lambda: np.expand_dims(a.row_grad_output, axis) * special.softmax(x, axis=axis)
        case "log_softmax_backward":
            g, log_probs = a.grad_output, a.log_probs
            return lambda: g - np.exp(log_probs) * g.sum(axis=axis, keepdims=True)
        case "softmax_backward":
            g, p = a.grad_output, a.probs
            return lambda: p * (g - (p * g).sum(axis=axis, keepdims=True))
        case "cross_entropy":
            return lambda: reduced(special.log_softmax(x, axis=axis))
        case "cross_entropy_with_grad":
            return cross_entropy_with_grad
    return None


def _torch_call(operation: str, a: Arrays) -> Call | None:
    torch = importlib.import_module("torch")
    torch.set_num_threads(cylsm.get_num_threads())
    loss_of = torch.nn.functional.cross_entropy
    x, target, axis, reduction = torch.from_numpy(a.logits), torch.from_numpy(a.target), a.axis, a.reduction

    def backward_of(function: Callable[[Any], Any], grad_output: Any) -> Call:
        leaf = x.clone().requires_grad_()

        def value_and_gradient() -> Any:
            leaf.grad = None
            value = function(leaf)
            value.backward(grad_output)
            return value.detach(), leaf.grad

        return value_and_gradient

    match operation:
        case "logsumexp":
            row_out = torch.from_numpy(a.row_out)
            return lambda: torch.logsumexp(x, axis, out=row_out)
        case "log_softmax":
            out = torch.from_numpy(a.out)
            return lambda: torch.log_softmax(x, axis, out=out)
        case "softmax":
            out = torch.from_numpy(a.out)
            return lambda: torch.softmax(x, axis, out=out)
        case "logsumexp_backward":
            both = backward_of(lambda leaf: torch.logsumexp(leaf, axis), torch.from_numpy(a.row_grad_output))
            return lambda: both()[1]
        case "log_softmax_backward":  # what autograd calls, here and below
            g, log_probs, out = map(torch.from_numpy, (a.grad_output, a.log_probs, a.out))
            return lambda: torch._log_softmax_backward_data(g, log_probs, axis, x.dtype, out=out)
        case "softmax_backward":
            g, probs, out = map(torch.from_numpy, (a.grad_output, a.probs, a.out))
            return lambda: torch._softmax_backward_data(g, probs, axis, x.dtype, grad_input=out)
        case "cross_entropy":
            classes_second = x.movedim(axis, 1)
            return lambda: loss_of(classes_second, target, reduction=reduction)
        case "cross_entropy_with_grad":
            ones = torch.ones_like(target, dtype=x.dtype) if reduction == "none" else None
            return backward_of(lambda leaf: loss_of(leaf.movedim(axis, 1), target, reduction=reduction), ones)
    return None


def _onnxruntime_call(operation: str, a: Arrays) -> Call | None:
    onnxruntime = importlib.import_module("onnxruntime")
    helper = importlib.import_module("onnx.helper")
    match operation:
        case "logsumexp":
            operator, out, attributes = "ReduceLogSumExp", a.row_out, {"axes": [a.axis], "keepdims": 0}
        case "log_softmax":
            operator, out, attributes = "LogSoftmax", a.out, {"axis": a.axis}
        case "softmax":
            operator, out, attributes = "Softmax", a.out, {"axis": a.axis}
        case _:
            return None
    element = helper.np_dtype_to_tensor_dtype(a.logits.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        operator,
        [helper.make_tensor_value_info("x", element, [None] * a.logits.ndim)],
        [helper.make_tensor_value_info("y", element, [None] * out.ndim)],
    )
    # The oldest versions with these operators in this form, so that no release of the two is too old for the other.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cylsm.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", a.logits)
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

    def call() -> NDArray[Any]:
        session.run_with_iobinding(binding)
        return out

    return call


def _jax_call(operation: str, a: Arrays) -> Call | None:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    axis = a.axis

    def cross_entropy(x: Any, target: Any) -> Any:
        log_probs = jax.nn.log_softmax(x, axis=axis)
        at_target = jax.numpy.expand_dims(target, axis)
        return -jax.numpy.take_along_axis(log_probs, at_target, axis=axis).mean()

    def log_softmax_backward(g: Any, log_probs: Any) -> Any:
        return g - jax.numpy.exp(log_probs) * g.sum(axis=axis, keepdims=True)

    def compiled(function: Callable[..., Any], *arrays: NDArray[Any]) -> Call:
        call = jax.jit(function)
        arguments = [jax.numpy.asarray(array) for array in arrays]
        return lambda: jax.block_until_ready(call(*arguments))

    match operation:
        case "logsumexp":
            return compiled(lambda x: jax.scipy.special.logsumexp(x, axis=axis), a.logits)
        case "log_softmax":
            return compiled(lambda x: jax.nn.log_softmax(x, axis=axis), a.logits)
        case "softmax":
            return compiled(lambda x: jax.nn.softmax(x, axis=axis), a.logits)
        case "log_softmax_backward":
            return compiled(log_softmax_backward, a.grad_output, a.log_probs)
        case "cross_entropy":
            return compiled(cross_entropy, a.logits, a.target)
        case "cross_entropy_with_grad":
            return compiled(jax.value_and_grad(cross_entropy), a.logits, a.target)
    return None


LIBRARIES: dict[str, Callable[[str, Arrays], Call | None]] = {
    "cylsm": cylsm_call,
    "SciPy": _scipy_call,
    "PyTorch": _torch_call,
    "ONNX Runtime": _onnxruntime_call,
    "JAX": _jax_call,
}

# What has to be importable; the first has the version.
PACKAGES = {
    "cylsm": ("cylsm",),
    "SciPy": ("scipy",),
    "PyTorch": ("torch",),
    "ONNX Runtime": ("onnxruntime", "onnx"),
    "JAX": ("jax",),
}


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep what the libraries warn of, of themselves and of extreme values, from the user."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Import the libraries and return the versions of those that are installed."""
    versions = {}
    for name in names:
        try:
            package, *_ = map(importlib.import_module, PACKAGES[name])
        except (ImportError, OSError):  # OSError: one of its own libraries does not load
            continue
        versions[name] = package.__version__
    return versions


def describe(versions: dict[str, str], names: Iterable[str]) -> str:
    """Say in a line which of the libraries take part."""
    present = ", ".join(f"{name} {number}" for name, number in versions.items())
    missing = ", ".join(name for name in names if name not in versions)
    return f"{present}; not installed: {missing}" if missing else present
