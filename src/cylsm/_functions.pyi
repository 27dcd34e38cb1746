# Where the number of axes is unknown, so is whether logsumexp returns an array or a scalar: it is Any then.
# That a 0-d array gives a scalar is left out.

# mypy takes float32 for what may be a float64, because NumPy's _32Bit is a _64Bit.
# mypy: disable-error-code="overload-overlap"

from typing import Any, Literal, Never, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from cylsm._arrays import _Array, _Axes, _Axis, _Double, _Float, _Reals, _Rows, _Single, _Whole

_FloatT = TypeVar("_FloatT", bound=_Float)
_ShapeT = TypeVar("_ShapeT", bound=tuple[Any, ...])
_OutT = TypeVar("_OutT", bound=NDArray[_Float])
_SumOutT = TypeVar("_SumOutT", bound=NDArray[np.float32 | np.float64])

# Only a shape of Any fits this. It fits others too, but mypy takes the first: an Any within an alias, such as
# NDArray, makes nothing ambiguous. NumPy's stubs do the same, and say why there are nine.
_ShapeUnknown: TypeAlias = tuple[Never, Never, Never, Never, Never, Never, Never, Never, Never]

# Not the tuples themselves: for want of a number of axes, mypy would then let np.zeros((2, 3)) have just one.
_OneT = TypeVar("_OneT", bound=tuple[int])
_ManyT = TypeVar("_ManyT", bound=tuple[int, int, *tuple[int, ...]])

# Weights that leave float32 and float64 as they are. A float may be a np.float64, which does not.
_SingleWeights: TypeAlias = _Array[_Single] | int | None
_DoubleWeights: TypeAlias = _Array[_Double] | float | None

@overload
def logsumexp(
    x: _Array[_Single],
    axis: None,
    *,
    b: _SingleWeights = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> np.float32: ...
@overload
def logsumexp(
    x: _Array[_Double],
    axis: None,
    *,
    b: _DoubleWeights = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> np.float64: ...
@overload
def logsumexp(
    x: _Reals,
    axis: None,
    *,
    b: _Reals | None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> np.floating[Any]: ...
@overload
def logsumexp(
    x: np.ndarray[_ShapeUnknown, np.dtype[_Float | _Whole]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> Any: ...
@overload
def logsumexp(
    x: np.ndarray[_ManyT, np.dtype[_Single]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> NDArray[np.float32]: ...
@overload
def logsumexp(
    x: np.ndarray[_ManyT, np.dtype[_Double]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> NDArray[np.float64]: ...
@overload
def logsumexp(
    x: np.ndarray[_OneT, np.dtype[_Single]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> np.float32: ...
@overload
def logsumexp(
    x: np.ndarray[_OneT, np.dtype[_Double]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> np.float64: ...
@overload
def logsumexp(
    x: _Array[_Single],
    axis: _Axes = -1,
    *,
    b: _SingleWeights = None,
    keepdims: Literal[True],
    return_sign: Literal[False] = False,
    out: None = None,
) -> NDArray[np.float32]: ...
@overload
def logsumexp(
    x: _Array[_Double],
    axis: _Axes = -1,
    *,
    b: _DoubleWeights = None,
    keepdims: Literal[True],
    return_sign: Literal[False] = False,
    out: None = None,
) -> NDArray[np.float64]: ...
@overload
def logsumexp(
    x: _Reals,
    axis: _Axes = -1,
    *,
    b: _Reals | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    out: None = None,
) -> Any: ...
@overload
def logsumexp(
    x: _Reals,
    axis: _Axes = -1,
    *,
    b: _Reals | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    out: _SumOutT,
) -> _SumOutT: ...
@overload
def logsumexp(
    x: _Array[_Single],
    axis: None,
    *,
    b: _SingleWeights = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[np.float32, np.float32]: ...
@overload
def logsumexp(
    x: _Array[_Double],
    axis: None,
    *,
    b: _DoubleWeights = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[np.float64, np.float64]: ...
@overload
def logsumexp(
    x: _Reals,
    axis: None,
    *,
    b: _Reals | None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[np.floating[Any], np.floating[Any]]: ...
@overload
def logsumexp(
    x: np.ndarray[_ShapeUnknown, np.dtype[_Float | _Whole]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    x: np.ndarray[_ManyT, np.dtype[_Single]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
@overload
def logsumexp(
    x: np.ndarray[_ManyT, np.dtype[_Double]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def logsumexp(
    x: np.ndarray[_OneT, np.dtype[_Single]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[np.float32, np.float32]: ...
@overload
def logsumexp(
    x: np.ndarray[_OneT, np.dtype[_Double]],
    axis: _Axis = -1,
    *,
    b: None = None,
    keepdims: Literal[False] = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[np.float64, np.float64]: ...
@overload
def logsumexp(
    x: _Array[_Single],
    axis: _Axes = -1,
    *,
    b: _SingleWeights = None,
    keepdims: Literal[True],
    return_sign: Literal[True],
    out: None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
@overload
def logsumexp(
    x: _Array[_Double],
    axis: _Axes = -1,
    *,
    b: _DoubleWeights = None,
    keepdims: Literal[True],
    return_sign: Literal[True],
    out: None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
@overload
def logsumexp(
    x: _Reals,
    axis: _Axes = -1,
    *,
    b: _Reals | None = None,
    keepdims: bool = False,
    return_sign: Literal[True],
    out: None = None,
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    x: _Reals,
    axis: _Axes = -1,
    *,
    b: _Reals | None = None,
    keepdims: bool = False,
    return_sign: Literal[True],
    out: _SumOutT,
) -> tuple[_SumOutT, Any]: ...
@overload
def logsumexp(
    x: _Reals,
    axis: _Axes = -1,
    *,
    b: _Reals | None = None,
    keepdims: bool = False,
    return_sign: bool,
    out: NDArray[np.float32 | np.float64] | None = None,
) -> Any: ...
@overload
def log_softmax(x: _FloatT, axis: _Axes = -1, *, out: None = None) -> _FloatT: ...
@overload
def log_softmax(x: float | _Whole, axis: _Axes = -1, *, out: None = None) -> np.float64: ...
@overload
def log_softmax(
    x: np.ndarray[_ShapeT, np.dtype[_FloatT]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[_FloatT]]: ...
@overload
def log_softmax(
    x: np.ndarray[_ShapeT, np.dtype[_Whole]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[np.float64]]: ...
@overload
def log_softmax(x: _Rows, axis: _Axes = -1, *, out: None = None) -> NDArray[np.floating[Any]]: ...
@overload
def log_softmax(x: _Reals, axis: _Axes = -1, *, out: _OutT) -> _OutT: ...
@overload
def softmax(x: _FloatT, axis: _Axes = -1, *, out: None = None) -> _FloatT: ...
@overload
def softmax(x: float | _Whole, axis: _Axes = -1, *, out: None = None) -> np.float64: ...
@overload
def softmax(
    x: np.ndarray[_ShapeT, np.dtype[_FloatT]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[_FloatT]]: ...
@overload
def softmax(
    x: np.ndarray[_ShapeT, np.dtype[_Whole]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[np.float64]]: ...
@overload
def softmax(x: _Rows, axis: _Axes = -1, *, out: None = None) -> NDArray[np.floating[Any]]: ...
@overload
def softmax(x: _Reals, axis: _Axes = -1, *, out: _OutT) -> _OutT: ...
@overload
def logsumexp_backward(grad_output: _Reals, x: _FloatT, axis: _Axes = -1, *, out: None = None) -> _FloatT: ...
@overload
def logsumexp_backward(grad_output: _Reals, x: float | _Whole, axis: _Axes = -1, *, out: None = None) -> np.float64: ...
@overload
def logsumexp_backward(
    grad_output: _Reals, x: np.ndarray[_ShapeT, np.dtype[_FloatT]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[_FloatT]]: ...
@overload
def logsumexp_backward(
    grad_output: _Reals, x: np.ndarray[_ShapeT, np.dtype[_Whole]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[np.float64]]: ...
@overload
def logsumexp_backward(
    grad_output: _Reals, x: _Rows, axis: _Axes = -1, *, out: None = None
) -> NDArray[np.floating[Any]]: ...
@overload
def logsumexp_backward(grad_output: _Reals, x: _Reals, axis: _Axes = -1, *, out: _OutT) -> _OutT: ...
@overload
def log_softmax_backward(grad_output: _Reals, log_probs: _FloatT, axis: _Axes = -1, *, out: None = None) -> _FloatT: ...
@overload
def log_softmax_backward(
    grad_output: _Reals, log_probs: float | _Whole, axis: _Axes = -1, *, out: None = None
) -> np.float64: ...
@overload
def log_softmax_backward(
    grad_output: _Reals,
    log_probs: np.ndarray[_ShapeT, np.dtype[_FloatT]],
    axis: _Axes = -1,
    *,
    out: None = None,
) -> np.ndarray[_ShapeT, np.dtype[_FloatT]]: ...
@overload
def log_softmax_backward(
    grad_output: _Reals,
    log_probs: np.ndarray[_ShapeT, np.dtype[_Whole]],
    axis: _Axes = -1,
    *,
    out: None = None,
) -> np.ndarray[_ShapeT, np.dtype[np.float64]]: ...
@overload
def log_softmax_backward(
    grad_output: _Reals, log_probs: _Rows, axis: _Axes = -1, *, out: None = None
) -> NDArray[np.floating[Any]]: ...
@overload
def log_softmax_backward(grad_output: _Reals, log_probs: _Reals, axis: _Axes = -1, *, out: _OutT) -> _OutT: ...
@overload
def softmax_backward(grad_output: _Reals, probs: _FloatT, axis: _Axes = -1, *, out: None = None) -> _FloatT: ...
@overload
def softmax_backward(
    grad_output: _Reals, probs: float | _Whole, axis: _Axes = -1, *, out: None = None
) -> np.float64: ...
@overload
def softmax_backward(
    grad_output: _Reals, probs: np.ndarray[_ShapeT, np.dtype[_FloatT]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[_FloatT]]: ...
@overload
def softmax_backward(
    grad_output: _Reals, probs: np.ndarray[_ShapeT, np.dtype[_Whole]], axis: _Axes = -1, *, out: None = None
) -> np.ndarray[_ShapeT, np.dtype[np.float64]]: ...
@overload
def softmax_backward(
    grad_output: _Reals, probs: _Rows, axis: _Axes = -1, *, out: None = None
) -> NDArray[np.floating[Any]]: ...
@overload
def softmax_backward(grad_output: _Reals, probs: _Reals, axis: _Axes = -1, *, out: _OutT) -> _OutT: ...
