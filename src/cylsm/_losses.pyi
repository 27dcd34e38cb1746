# Unreduced losses are an array, but a scalar where the target is a single label. That they are a scalar for a
# single row of class probabilities too is left out.

# mypy takes float32 for what may be a float64, because NumPy's _32Bit is a _64Bit.
# mypy: disable-error-code="overload-overlap"

from typing import Any, Literal, SupportsFloat, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from cylsm._arrays import (
    _Array,
    _Axis,
    _Double,
    _Float,
    _Label,
    _Labels,
    _Probabilities,
    _Reals,
    _Rows,
    _Single,
    _Whole,
)

_NativeT = TypeVar("_NativeT", np.float32, np.float64)
_ShapeT = TypeVar("_ShapeT", bound=tuple[Any, ...])

# The dtype of `out` says that of the loss too.
_SingleOutT = TypeVar("_SingleOutT", bound=NDArray[_Single])
_DoubleOutT = TypeVar("_DoubleOutT", bound=NDArray[np.float64])

@overload
def nll_loss(
    log_probs: _Array[_Single],
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.float32: ...
@overload
def nll_loss(
    log_probs: _Array[_Double],
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.float64: ...
@overload
def nll_loss(
    log_probs: _Rows,
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> np.floating[Any]: ...
@overload
def nll_loss(
    log_probs: _Rows,
    target: _Label,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
) -> np.floating[Any]: ...
@overload
def nll_loss(
    log_probs: _Array[_Single],
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
) -> NDArray[np.float32]: ...
@overload
def nll_loss(
    log_probs: _Array[_Double],
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
) -> NDArray[np.float64]: ...
@overload
def nll_loss(
    log_probs: _Rows,
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
) -> NDArray[np.floating[Any]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[np.float16]],
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.float32, np.ndarray[_ShapeT, np.dtype[np.float16]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[_NativeT]],
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[_NativeT, np.ndarray[_ShapeT, np.dtype[_NativeT]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[_Whole]],
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.float64, np.ndarray[_ShapeT, np.dtype[np.float64]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.floating[Any], NDArray[np.floating[Any]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: _SingleOutT,
) -> tuple[np.float32, _SingleOutT]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Label | _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    grad_output: _Reals | None = None,
    out: _DoubleOutT,
) -> tuple[np.float64, _DoubleOutT]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Label,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: NDArray[_Float] | None = None,
) -> tuple[np.floating[Any], NDArray[np.floating[Any]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[np.float16]],
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.float32], np.ndarray[_ShapeT, np.dtype[np.float16]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[_NativeT]],
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[_NativeT], np.ndarray[_ShapeT, np.dtype[_NativeT]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: np.ndarray[_ShapeT, np.dtype[_Whole]],
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.float64], np.ndarray[_ShapeT, np.dtype[np.float64]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: _SingleOutT,
) -> tuple[NDArray[np.float32], _SingleOutT]: ...
@overload
def nll_loss_with_grad(
    log_probs: _Rows,
    target: _Labels,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    grad_output: _Reals | None = None,
    out: _DoubleOutT,
) -> tuple[NDArray[np.float64], _DoubleOutT]: ...
@overload
def cross_entropy(
    logits: _Array[_Single],
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
) -> np.float32: ...
@overload
def cross_entropy(
    logits: _Array[_Double],
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
) -> np.float64: ...
@overload
def cross_entropy(
    logits: _Rows,
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: _Rows,
    target: _Label,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
) -> np.floating[Any]: ...
@overload
def cross_entropy(
    logits: _Array[_Single],
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
) -> NDArray[np.float32]: ...
@overload
def cross_entropy(
    logits: _Array[_Double],
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
) -> NDArray[np.float64]: ...
@overload
def cross_entropy(
    logits: _Rows,
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
) -> NDArray[np.floating[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[np.float16]],
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.float32, np.ndarray[_ShapeT, np.dtype[np.float16]]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[_NativeT]],
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[_NativeT, np.ndarray[_ShapeT, np.dtype[_NativeT]]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[_Whole]],
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.float64, np.ndarray[_ShapeT, np.dtype[np.float64]]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[np.floating[Any], NDArray[np.floating[Any]]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: _SingleOutT,
) -> tuple[np.float32, _SingleOutT]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Label | _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: _DoubleOutT,
) -> tuple[np.float64, _DoubleOutT]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Label,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: NDArray[_Float] | None = None,
) -> tuple[np.floating[Any], NDArray[np.floating[Any]]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[np.float16]],
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.float32], np.ndarray[_ShapeT, np.dtype[np.float16]]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[_NativeT]],
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[_NativeT], np.ndarray[_ShapeT, np.dtype[_NativeT]]]: ...
@overload
def cross_entropy_with_grad(
    logits: np.ndarray[_ShapeT, np.dtype[_Whole]],
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.float64], np.ndarray[_ShapeT, np.dtype[np.float64]]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: None = None,
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: _SingleOutT,
) -> tuple[NDArray[np.float32], _SingleOutT]: ...
@overload
def cross_entropy_with_grad(
    logits: _Rows,
    target: _Labels | _Probabilities,
    axis: _Axis = -1,
    *,
    weight: _Rows | None = None,
    ignore_index: SupportsIndex | None = -100,
    reduction: Literal["none"],
    label_smoothing: SupportsFloat = 0.0,
    grad_output: _Reals | None = None,
    out: _DoubleOutT,
) -> tuple[NDArray[np.float64], _DoubleOutT]: ...
