"""What users write, after the README and its migration table, and the types that come of it.

``mypy tests/typing_user_script.py`` checks the types; test_typing.py runs this file, and compares every value
with the type that is asserted of it.
"""

from typing import TYPE_CHECKING, Any, TypeAlias, assert_type

import numpy as np
from numpy.typing import NDArray

import cylsm

Half: TypeAlias = NDArray[np.float16]
Single: TypeAlias = NDArray[np.float32]
Double: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool]
Floating: TypeAlias = NDArray[np.floating[Any]]
Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Matrix: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def shaped_like_the_input(
    half: Half,
    single: Single,
    double: Double,
    integers: Integers,
    flags: Flags,
    vector: Vector,
    matrix: Matrix,
) -> None:
    assert_type(cylsm.log_softmax(half), Half)
    assert_type(cylsm.log_softmax(single), Single)
    assert_type(cylsm.log_softmax(double, axis=1), Double)
    assert_type(cylsm.log_softmax(integers), Double)
    assert_type(cylsm.log_softmax(flags), Double)
    assert_type(cylsm.log_softmax(matrix), Matrix)
    assert_type(cylsm.log_softmax([[0.0, -40.0]]), Floating)
    assert_type(cylsm.log_softmax(1.0), np.float64)
    assert_type(cylsm.log_softmax(np.float32(1.0)), np.float32)
    assert_type(cylsm.log_softmax(single, out=matrix), Matrix)

    assert_type(cylsm.softmax(half, None), Half)
    assert_type(cylsm.softmax(single, (0, 1)), Single)
    assert_type(cylsm.softmax(double, np.int64(0)), Double)
    assert_type(cylsm.softmax(integers), Double)
    assert_type(cylsm.softmax(flags), Double)
    assert_type(cylsm.softmax(vector), Vector)
    assert_type(cylsm.softmax((1, 2)), Floating)
    assert_type(cylsm.softmax(range(3)), Floating)
    assert_type(cylsm.softmax([vector, vector]), Floating)
    assert_type(cylsm.softmax(True), np.float64)
    assert_type(cylsm.softmax([[1, 2.5, 0], [3, 4, 0]], out=double), Double)


def gradients_of_row_operations(half: Half, single: Single, double: Double, integers: Integers, matrix: Matrix) -> None:
    assert_type(cylsm.logsumexp_backward([2.0, 1.0], half), Half)
    assert_type(cylsm.logsumexp_backward(1.0, single, axis=None), Single)
    assert_type(cylsm.logsumexp_backward(single[:, 0], double), Double)
    assert_type(cylsm.logsumexp_backward([1, 2], integers), Double)
    assert_type(cylsm.logsumexp_backward([1, 2], [[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]]), Floating)
    assert_type(cylsm.logsumexp_backward(1, np.float32(0)), np.float32)
    assert_type(cylsm.logsumexp_backward([1, 2], single, out=matrix), Matrix)

    assert_type(cylsm.log_softmax_backward(half, half), Half)
    assert_type(cylsm.log_softmax_backward(double, single, axis=0), Single)
    assert_type(cylsm.log_softmax_backward(integers, double, axis=(0, 1)), Double)
    assert_type(cylsm.log_softmax_backward(double, -integers), Double)
    assert_type(cylsm.log_softmax_backward([1.0, 0.0], [-1.0, -0.5]), Floating)
    assert_type(cylsm.log_softmax_backward(2, -1), np.float64)
    assert_type(cylsm.log_softmax_backward(matrix, single, out=matrix), Matrix)

    assert_type(cylsm.softmax_backward(half, half), Half)
    assert_type(cylsm.softmax_backward(half, matrix), Matrix)
    assert_type(cylsm.softmax_backward(single, double), Double)
    assert_type(cylsm.softmax_backward(double, integers), Double)
    assert_type(cylsm.softmax_backward([1.0, 0.0], [0.5, 0.5]), Floating)
    assert_type(cylsm.softmax_backward(1.0, np.float16(1.0)), np.float16)
    assert_type(cylsm.softmax_backward(double, double, out=double), Double)


def sums(
    half: Half,
    single: Single,
    double: Double,
    integers: Integers,
    flags: Flags,
    vector: Vector,
    matrix: Matrix,
) -> None:
    # All axes, or the only one: a scalar.
    assert_type(cylsm.logsumexp(half, axis=None), np.float32)
    assert_type(cylsm.logsumexp(single, None), np.float32)
    assert_type(cylsm.logsumexp(double, None), np.float64)
    assert_type(cylsm.logsumexp(integers, None), np.float64)
    assert_type(cylsm.logsumexp(flags, None), np.float64)
    assert_type(cylsm.logsumexp([[0.0, 1.0]], None), np.floating[Any])
    assert_type(cylsm.logsumexp(vector), np.float32)
    assert_type(cylsm.logsumexp(np.zeros(3)), np.float64)

    # One axis of several: an array.
    assert_type(cylsm.logsumexp(matrix), Single)
    assert_type(cylsm.logsumexp(matrix, axis=0), Single)
    assert_type(cylsm.logsumexp(np.zeros((2, 3))), Double)

    # Either.
    assert_type(cylsm.logsumexp(single), Any)
    assert_type(cylsm.logsumexp(double, axis=(0, 1)), Any)
    assert_type(cylsm.logsumexp(matrix, keepdims=bool(matrix.size)), Any)
    assert_type(cylsm.logsumexp([0.0, -40.0]), Any)

    assert_type(cylsm.logsumexp(half, keepdims=True), Single)
    assert_type(cylsm.logsumexp(single, axis=(0, 1), keepdims=True), Single)
    assert_type(cylsm.logsumexp(double, axis=None, keepdims=True), Double)
    assert_type(cylsm.logsumexp(integers, keepdims=True), Double)

    # Weights promote as in SciPy.
    assert_type(cylsm.logsumexp(single, None, b=half), np.float32)
    assert_type(cylsm.logsumexp(single, None, b=2), np.float32)
    assert_type(cylsm.logsumexp(single, None, b=double), np.floating[Any])
    assert_type(cylsm.logsumexp(single, None, b=0.5), np.floating[Any])
    assert_type(cylsm.logsumexp(single, None, b=np.float64(0.5)), np.floating[Any])
    assert_type(cylsm.logsumexp(double, None, b=integers), np.float64)
    assert_type(cylsm.logsumexp(double, None, b=0.5), np.float64)
    assert_type(cylsm.logsumexp(integers, None, b=flags), np.float64)
    assert_type(cylsm.logsumexp(double, None, b=[0.25, 0.5, 0.25]), np.floating[Any])
    assert_type(cylsm.logsumexp(matrix, b=[0.25, 0.5, 0.25]), Any)
    assert_type(cylsm.logsumexp(single, keepdims=True, b=single), Single)

    assert_type(cylsm.logsumexp(half, None, return_sign=True), tuple[np.float32, np.float32])
    assert_type(cylsm.logsumexp(double, None, b=-double, return_sign=True), tuple[np.float64, np.float64])
    assert_type(cylsm.logsumexp([1.0], None, return_sign=True), tuple[np.floating[Any], np.floating[Any]])
    assert_type(cylsm.logsumexp(vector, return_sign=True), tuple[np.float32, np.float32])
    assert_type(cylsm.logsumexp(matrix, return_sign=True), tuple[Single, Single])
    assert_type(cylsm.logsumexp(integers, keepdims=True, return_sign=True), tuple[Double, Double])
    assert_type(cylsm.logsumexp(matrix, return_sign=bool(matrix.size)), Any)
    value, sign = cylsm.logsumexp([1.0, 1.0], b=[1.0, -2.0], return_sign=True)
    assert_type(value, Any)
    assert_type(sign, Any)

    row = np.empty(2, np.float32)
    assert_type(cylsm.logsumexp(single, out=row), Vector)
    assert_type(cylsm.logsumexp(single, b=1, return_sign=True, out=row), tuple[Vector, Any])


def losses(
    half: Half,
    single: Single,
    double: Double,
    integers: Integers,
    vector: Vector,
    matrix: Matrix,
    labels: Integers,
) -> None:
    assert_type(cylsm.nll_loss(half, labels), np.float32)
    assert_type(cylsm.nll_loss(single, labels), np.float32)
    assert_type(cylsm.nll_loss(double, [0, 2], weight=[1, 2, 0.5]), np.float64)
    assert_type(cylsm.nll_loss(integers, labels, reduction="sum"), np.float64)
    assert_type(cylsm.nll_loss(vector, 1, reduction="none"), np.floating[Any])
    assert_type(cylsm.nll_loss(half, labels, reduction="none"), Single)
    assert_type(cylsm.nll_loss(single, labels.astype(np.uint8), ignore_index=0, reduction="none"), Single)
    assert_type(cylsm.nll_loss(double, (0, -100), reduction="none"), Double)
    assert_type(cylsm.nll_loss([[0.5, 0.5]], [1]), np.floating[Any])
    assert_type(cylsm.nll_loss([[0.5, 0.5]], [1], reduction="none"), Floating)

    assert_type(cylsm.cross_entropy(half, labels), np.float32)
    assert_type(cylsm.cross_entropy(single, labels, weight=vector, label_smoothing=0.1), np.float32)
    assert_type(cylsm.cross_entropy(double, labels, ignore_index=None), np.float64)
    assert_type(cylsm.cross_entropy(integers, labels, label_smoothing=np.float32(0.1)), np.float64)
    assert_type(cylsm.cross_entropy([[1.0, 1.0, 1.0, 1.0]], [2]), np.floating[Any])
    assert_type(cylsm.cross_entropy(np.zeros((2, 5, 4, 4)), np.ones((2, 4, 4), int), axis=1), np.float64)
    assert_type(cylsm.cross_entropy(vector, np.int64(0)), np.float32)
    assert_type(cylsm.cross_entropy(single, double), np.float32)
    assert_type(cylsm.cross_entropy(double, [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]), np.float64)

    assert_type(cylsm.cross_entropy(half, labels, reduction="none"), Single)
    assert_type(cylsm.cross_entropy(double, [-100, 2], reduction="none"), Double)
    assert_type(cylsm.cross_entropy(integers, labels, reduction="none"), Double)
    assert_type(cylsm.cross_entropy([[0, 1]], labels[:1], reduction="none"), Floating)
    assert_type(cylsm.cross_entropy(matrix, double, reduction="none"), Single)
    assert_type(cylsm.cross_entropy(matrix, [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], reduction="none"), Single)
    assert_type(cylsm.cross_entropy(vector, 1, reduction="none"), np.floating[Any])
    assert_type(cylsm.cross_entropy(single, double, reduction="none"), Single)


def losses_with_gradients(
    half: Half,
    single: Single,
    double: Double,
    integers: Integers,
    vector: Vector,
    matrix: Matrix,
    labels: Integers,
) -> None:
    assert_type(cylsm.nll_loss_with_grad(half, labels), tuple[np.float32, Half])
    assert_type(cylsm.nll_loss_with_grad(matrix, labels, reduction="sum"), tuple[np.float32, Matrix])
    assert_type(cylsm.nll_loss_with_grad(double, labels, grad_output=2), tuple[np.float64, Double])
    assert_type(cylsm.nll_loss_with_grad(integers, labels), tuple[np.float64, Double])
    assert_type(cylsm.nll_loss_with_grad([[0.5, 0.5]], [0]), tuple[np.floating[Any], Floating])
    assert_type(cylsm.nll_loss_with_grad(half, labels, out=half), tuple[np.float32, Half])
    assert_type(cylsm.nll_loss_with_grad(single, labels, out=matrix), tuple[np.float32, Matrix])
    assert_type(cylsm.nll_loss_with_grad(vector, 0, reduction="none"), tuple[np.floating[Any], Floating])
    assert_type(cylsm.nll_loss_with_grad(single, labels, reduction="none"), tuple[Single, Single])
    assert_type(cylsm.nll_loss_with_grad(half, labels, reduction="none"), tuple[Single, Half])
    assert_type(cylsm.nll_loss_with_grad(double, labels, reduction="none", out=double), tuple[Double, Double])

    assert_type(cylsm.cross_entropy_with_grad(half, labels), tuple[np.float32, Half])
    assert_type(cylsm.cross_entropy_with_grad(matrix, double), tuple[np.float32, Matrix])
    assert_type(cylsm.cross_entropy_with_grad(double, labels, weight=vector), tuple[np.float64, Double])
    assert_type(cylsm.cross_entropy_with_grad(integers, labels), tuple[np.float64, Double])
    assert_type(cylsm.cross_entropy_with_grad([[1.0, 1.0]], [1]), tuple[np.floating[Any], Floating])
    assert_type(cylsm.cross_entropy_with_grad(half, labels, out=half), tuple[np.float32, Half])
    assert_type(cylsm.cross_entropy_with_grad([[1.0] * 3] * 2, labels, out=double), tuple[np.float64, Double])

    g = np.array([0.5, 2.0])
    assert_type(cylsm.cross_entropy_with_grad(single, labels, reduction="none", grad_output=g), tuple[Single, Single])
    assert_type(
        cylsm.cross_entropy_with_grad(integers, [0, 1], reduction="none", label_smoothing=0.1),
        tuple[Double, Double],
    )
    assert_type(cylsm.cross_entropy_with_grad(matrix, double, reduction="none"), tuple[Single, Matrix])
    assert_type(cylsm.cross_entropy_with_grad(single, labels, reduction="none", out=matrix), tuple[Single, Matrix])
    assert_type(cylsm.cross_entropy_with_grad(vector, 0, reduction="none"), tuple[np.floating[Any], Floating])


def settings() -> None:
    cylsm.set_num_threads(1)
    assert_type(cylsm.get_num_threads(), int)
    cylsm.set_num_threads(None)
    assert_type(cylsm.show_config("dicts"), dict[str, Any])
    assert_type(cylsm.show_config(mode="dicts")["available_isas"], Any)
    assert_type(cylsm.__version__, str)
    cylsm.show_config()


def multiclass_objective(scores: Double, labels: Integers) -> tuple[Double, Double]:
    _, gradient = cylsm.cross_entropy_with_grad(scores, labels, reduction="sum")
    p = cylsm.softmax(scores)
    return gradient, p * (1.0 - p)


def trained(features: Double, labels: Integers) -> Double:
    weights = np.zeros((features.shape[1], 3))
    for _ in range(100):
        scores = features @ weights
        _, gradient = cylsm.cross_entropy_with_grad(scores, labels, out=scores)
        weights -= 2.0 * features.T @ gradient
    return weights


def step_of_a_hidden_markov_model(log_alpha: Double, log_transition: Double) -> Double:
    return np.asarray(cylsm.logsumexp(log_alpha[:, np.newaxis] + log_transition, axis=0))


if TYPE_CHECKING:  # what raises; an ignored error that is none is an error

    def mistakes(
        single: Single,
        half: Half,
        integers: Integers,
        flags: Flags,
        wide: NDArray[np.longdouble],
        turns: NDArray[np.complex128],
        labels: Integers,
    ) -> None:
        cylsm.softmax(wide)  # type: ignore[type-var]
        cylsm.softmax(turns)  # type: ignore[type-var]
        cylsm.softmax("0.5")  # type: ignore[call-overload]
        cylsm.softmax(["0.5"])  # type: ignore[list-item]
        cylsm.softmax(None)  # type: ignore[call-overload]
        cylsm.softmax(single, 0.0)  # type: ignore[call-overload]
        cylsm.softmax(single, [0, 1])  # type: ignore[call-overload]
        cylsm.softmax(single, -1, single)  # type: ignore[call-overload]
        cylsm.softmax(single, out=integers)  # type: ignore[type-var]
        cylsm.logsumexp(half, out=half)  # type: ignore[type-var]
        cylsm.softmax_backward(None, single)  # type: ignore[call-overload]
        cylsm.nll_loss(single, single)  # type: ignore[arg-type]
        cylsm.nll_loss(single, [0.0, 1.0])  # type: ignore[list-item]
        cylsm.nll_loss(single, labels, axis=(0,))  # type: ignore[call-overload]
        cylsm.nll_loss(single, labels, reduction="avg")  # type: ignore[call-overload]
        cylsm.nll_loss(1.0, 0)  # type: ignore[call-overload]
        cylsm.cross_entropy(single, flags)  # type: ignore[arg-type]
        cylsm.cross_entropy(single, labels, ignore_index=1.5)  # type: ignore[call-overload]
        cylsm.cross_entropy(single, labels, label_smoothing="0.1")  # type: ignore[call-overload]
        cylsm.cross_entropy(single, labels, out=single)  # type: ignore[call-overload]
        cylsm.cross_entropy_with_grad(single, labels, out=integers)  # type: ignore[type-var]
        cylsm.set_num_threads(1.5)  # type: ignore[arg-type]
        cylsm.show_config("json")  # type: ignore[call-overload]


def main() -> None:
    matrix = np.array([[2, 1, 0], [0, 3, 0]], np.float32).reshape((2, 3))
    vector = np.ones(3, np.float32)
    single, half, double = matrix.copy(), matrix.astype(np.float16), matrix.astype(np.float64)
    integers, flags, labels = matrix.astype(np.int64), matrix > 1, np.array([0, 2])
    shaped_like_the_input(half, single, double, integers, flags, vector, matrix)
    gradients_of_row_operations(half, single, double, integers, matrix)
    sums(half, single, double, integers, flags, vector, matrix)
    losses(half, single, double, integers, vector, matrix, labels)
    losses_with_gradients(half, single, double, integers, vector, matrix, labels)
    settings()
    multiclass_objective(double, labels)
    trained(double, labels)
    step_of_a_hidden_markov_model(np.log([0.6, 0.4]), np.log([[0.7, 0.3], [0.1, 0.9]]))


if __name__ == "__main__":
    main()
