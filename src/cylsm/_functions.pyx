# logsumexp, log_softmax, softmax and their gradients: each describes a task and runs it.

import numpy as np

from libc.math cimport INFINITY, NAN

cimport numpy as cnp
from numpy cimport ndarray

from cylsm._arrays cimport (
    add_rows,
    all_axes,
    apart,
    checked_out,
    computes_wide,
    join_row_axes,
    new_task,
    one_axis,
    out_of_shape,
    real_array,
    result_dtype,
    same_memory,
)
from cylsm._driver cimport Block, Operand, Task, kernels, row_of, run
from cylsm._kernels cimport (
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOGSUMEXP,
    LOGSUMEXP_WEIGHTED,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    SOFTMAX_GRADIENT,
    RowState,
)

cnp.import_array()

ctypedef fused real:
    float
    double

cdef object float16 = np.dtype(np.float16)
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)


# ---- axes --------------------------------------------------------------------------------------------------------

cdef tuple rest_of(ndarray a, tuple axes):
    return tuple([a.shape[i] for i in range(a.ndim) if i not in axes])


cdef ndarray one_class_axis(ndarray a, tuple axes):
    """a with the axes joined into a last one; a view where that is possible."""
    cdef Py_ssize_t classes = 1
    for i in axes:
        classes *= <Py_ssize_t> a.shape[i]
    return np.moveaxis(a, axes, range(a.ndim - len(axes), a.ndim)).reshape((*rest_of(a, axes), classes))


cdef int rows_and_classes(Task *task, ndarray a, int class_axis) except -1:
    """The shape of the task: that of a."""
    cdef int i, k = 0
    for i in range(a.ndim):
        if i != class_axis:
            task.shape[k] = a.shape[i]
            k += 1
    task.ndim = k
    task.classes = a.shape[class_axis]
    return 0


# ---- operations whose result is shaped like the input --------------------------------------------------------------

cdef object shaped_like_x(int operation, object x, object axis, object out, object other, str x_name, str other_name):
    """x is what is exponentiated, or was; `other` the gradient that comes in, if there is one."""
    cdef ndarray a = real_array(x, x_name)
    cdef ndarray b = None
    cdef ndarray result
    cdef int class_axis
    if other is not None:
        b = real_array(other, other_name)
        if not same_shape(a, b):
            raise ValueError(f"{other_name} must have the shape of {x_name}, {(<object> a).shape}, not {(<object> b).shape}")
    if type(axis) is int and a.ndim > 0:
        class_axis = one_axis(axis, a.ndim, x_name)
        result = checked_out(out, a, result_dtype(a))
        compute(operation, a, class_axis, b, None, result, out is not None)
        return result
    result = checked_out(out, a, result_dtype(a))
    compute_joined(operation, a, all_axes(axis, a.ndim, x_name), b, None, result, out is not None)
    return result if result.ndim > 0 or out is not None else result[()]


cdef bint same_shape(ndarray a, ndarray b):
    cdef int i
    if a.ndim != b.ndim:
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i]:
            return False
    return True


cdef int compute_joined(int operation, ndarray a, tuple axes, ndarray other, ndarray factor, ndarray result,
                        bint given) except -1:
    """compute over any number of axes; what does not collapse to one stride is copied."""
    cdef ndarray joined
    if given:
        a = apart(a, result)
        if other is not None:
            other = apart(other, result)
    joined = one_class_axis(result, axes)
    compute(operation, one_class_axis(a, axes), joined.ndim - 1,
            None if other is None else one_class_axis(other, axes), factor, joined, given)
    if not np.may_share_memory(joined, result):
        np.moveaxis(result, axes, range(result.ndim - len(axes), result.ndim))[...] = joined.reshape(
            rest_of(result, axes) + tuple([result.shape[i] for i in axes]))
    return 0


cdef int compute(int operation, ndarray a, int class_axis, ndarray other, ndarray factor, ndarray result,
                 bint given) except -1:
    cdef Task task
    cdef Operand factors
    cdef Operand *operands[3]
    cdef bint wide = computes_wide(a)
    cdef int count = 2
    if given:
        a = apart(a, result)
        if other is not None:
            other = apart(other, result)
    new_task(&task, operation, wide)
    rows_and_classes(&task, a, class_axis)
    if other is None:
        add_rows(&task, &task.x, a, wide, class_axis)
        operands[0] = &task.x
    else:
        add_rows(&task, &task.x, other, wide, class_axis)
        add_rows(&task, &task.y, a, wide, class_axis)
        operands[0] = &task.y
        operands[2] = &task.x
        count = 3
    add_rows(&task, &task.out, result, wide, class_axis)
    operands[1] = &task.out
    if factor is not None:
        add_rows(&task, &factors, factor, wide, -1)
        operands[2] = &factors
        count = 3
        task.has_factor = True
        task.context = &factors
        task.open = &read_factor
    task.in_place = given and (same_memory(a, result) or (other is not None and same_memory(other, result)))
    task.fresh = not given
    join_row_axes(&task, operands, count)
    if task.rows > 0 and task.classes > 0:
        run(&task)
    return 0


def log_softmax(x, axis=-1, *, out=None):
    """Logarithm of the softmax of `x` along an axis.

    Parameters
    ----------
    x : array_like
        Real numbers, such as the logits of a model. float32 and float64 are computed as they are, float16 in float32,
        integers and booleans in float64.
    axis : int, tuple of ints or None, default -1
        The axis, or axes, along which the probabilities sum to 1; None means all of them.
    out : ndarray, optional
        Where to write the result: of the shape of `x` and the dtype of the result. It may be `x`.

    Returns
    -------
    ndarray
        Of the shape of `x`; float16, float32 or float64 as `x`, float64 for integers. In nats.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If `out` has another shape or is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    softmax : the probabilities themselves.
    logsumexp : the logarithm of the denominator.
    log_softmax_backward : its gradient.

    Notes
    -----
    With m the largest element of a row, ``log_softmax(x)[i] = (x[i] - m) - log(sum(exp(x - m)))``, where the largest
    element is kept apart from the sum, so that the result keeps its relative accuracy where one class dominates [1]_.
    A row with nan, or with -inf only, is nan.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41 (2021), 2311-2330.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.log_softmax([0.0, -40.0])
    array([-4.24835426e-18, -4.00000000e+01])
    """
    return shaped_like_x(LOG_SOFTMAX, x, axis, out, None, "x", "")


def softmax(x, axis=-1, *, out=None):
    """Softmax of `x` along an axis: ``exp(x)`` divided by its sum.

    Parameters
    ----------
    x : array_like
        Real numbers, such as the logits of a model. float32 and float64 are computed as they are, float16 in float32,
        integers and booleans in float64.
    axis : int, tuple of ints or None, default -1
        The axis, or axes, along which the probabilities sum to 1; None means all of them.
    out : ndarray, optional
        Where to write the result: of the shape of `x` and the dtype of the result. It may be `x`.

    Returns
    -------
    ndarray
        Probabilities, of the shape of `x`; float16, float32 or float64 as `x`, float64 for integers.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If `out` has another shape or is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax : the logarithm, which does not underflow.
    softmax_backward : its gradient.

    Notes
    -----
    With m the largest element of a row, ``softmax(x)[i] = exp(x[i] - m) / sum(exp(x - m))``. An element of -inf among
    finite ones has the probability 0 exactly; a row with nan, or with -inf only, is nan.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.softmax([1.0, 1.0, 1.0, 1.0])
    array([0.25, 0.25, 0.25, 0.25])
    """
    return shaped_like_x(SOFTMAX, x, axis, out, None, "x", "")


def log_softmax_backward(grad_output, log_probs, axis=-1, *, out=None):
    """Gradient of `log_softmax`, from its result.

    Parameters
    ----------
    grad_output : array_like
        Gradient of a scalar with respect to the result of `log_softmax`; of the shape of `log_probs`.
    log_probs : array_like
        The result of `log_softmax`, in nats. Its dtype decides the result's.
    axis : int, tuple of ints or None, default -1
        As it was for `log_softmax`.
    out : ndarray, optional
        Where to write the result: of the shape of `log_probs` and the dtype of the result. It may be an input.

    Returns
    -------
    ndarray
        Gradient with respect to the logits, of the shape of `log_probs`.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If shapes differ, `out` is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax : the forward function.

    Notes
    -----
    ``grad_output - exp(log_probs) * sum(grad_output)``, the sum along `axis`.

    Examples
    --------
    >>> import numpy as np, cylsm
    >>> cylsm.log_softmax_backward([1.0, 0.0], np.log([0.5, 0.5]))
    array([ 0.5, -0.5])
    """
    return shaped_like_x(LOG_SOFTMAX_BACKWARD, log_probs, axis, out, required(grad_output), "log_probs", "grad_output")


def softmax_backward(grad_output, probs, axis=-1, *, out=None):
    """Gradient of `softmax`, from its result.

    Parameters
    ----------
    grad_output : array_like
        Gradient of a scalar with respect to the result of `softmax`; of the shape of `probs`.
    probs : array_like
        The result of `softmax`. Its dtype decides the result's.
    axis : int, tuple of ints or None, default -1
        As it was for `softmax`.
    out : ndarray, optional
        Where to write the result: of the shape of `probs` and the dtype of the result. It may be an input.

    Returns
    -------
    ndarray
        Gradient with respect to the logits, of the shape of `probs`.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If shapes differ, `out` is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    softmax : the forward function.

    Notes
    -----
    ``probs * (grad_output - sum(probs * grad_output))``, the sum along `axis`.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.softmax_backward([1.0, 0.0], [0.5, 0.5])
    array([ 0.25, -0.25])
    """
    return shaped_like_x(SOFTMAX_BACKWARD, probs, axis, out, required(grad_output), "probs", "grad_output")


cdef object required(object grad_output):
    if grad_output is None:
        raise TypeError("grad_output must be an array of real numbers, not None")
    return grad_output


# ---- logsumexp ---------------------------------------------------------------------------------------------------

cdef struct Totals:
    Operand value
    Operand sign        # no data: not asked for


cdef void write_totals(Task *task, Block *block) noexcept nogil:
    """value = top + log_sum; nan for a negative sum whose sign nobody asked for."""
    cdef Totals *totals = <Totals *> task.context
    cdef Py_ssize_t item = 8 if task.wide else 4
    if task.wide:
        add_totals(<double *> block.scratch, &block.state, block.merged, block.rows,
                   task.operation == LOGSUMEXP_WEIGHTED, totals.sign.data != NULL)
    else:
        add_totals(<float *> block.scratch, &block.state, block.merged, block.rows,
                   task.operation == LOGSUMEXP_WEIGHTED, totals.sign.data != NULL)
    write_rows(task, block, &totals.value, block.scratch)
    if totals.sign.data != NULL:
        write_rows(task, block, &totals.sign, <char *> block.state.scale + block.merged * item)


cdef void add_totals(real *value, const RowState *state, Py_ssize_t first, Py_ssize_t rows,
                     bint weighted, bint signed) noexcept nogil:
    cdef const real *top = <const real *> state.top + first
    cdef const real *log_sum = <const real *> state.log_sum + first
    cdef const real *sign = <const real *> state.scale + first
    cdef const real *log_low = <const real *> state.log_low + first
    cdef real s, lost, v
    cdef Py_ssize_t r
    for r in range(rows):
        s = top[r] + log_sum[r]
        v = s - top[r]
        lost = ((top[r] - (s - v)) + (log_sum[r] - v)) + log_low[r]
        value[r] = s + (lost if lost - lost == 0 else <real> 0.0)
    if weighted and not signed:
        for r in range(rows):
            if sign[r] < 0:
                value[r] = <real> NAN


cdef void write_rows(Task *task, Block *block, const Operand *operand, const void *values) noexcept nogil:
    kernels(task.wide).store(operand.element, values, 0, 1, block.rows,
                             row_of(task, operand, block), 0, operand.row_strides[task.ndim - 1])


def logsumexp(x, axis=-1, *, b=None, keepdims=False, return_sign=False, out=None):
    """Logarithm of the sum of exponentials of `x` along an axis.

    Parameters
    ----------
    x : array_like
        Real numbers. float32 and float64 are computed as they are, float16 in float32, integers and booleans in
        float64.
    axis : int, tuple of ints or None, default -1
        The axis, or axes, summed over; None means all of them. With `b`, it counts in the broadcast shape.
    b : array_like, optional
        Weights of the exponentials, broadcast against `x`; they may be negative. A weight of 0 removes its element,
        whatever that holds.
    keepdims : bool, default False
        Whether the axes that were summed over stay, with length 1.
    return_sign : bool, default False
        Whether the sign of the sum is returned too. Without it, the logarithm of a negative sum is nan.
    out : ndarray, optional
        Where to write the logarithm: of the result's shape and dtype.

    Returns
    -------
    ndarray or scalar
        The logarithm in nats, without the axes; float64, or float32 where `x` (and `b`) are float32 or float16.
    sign : ndarray or scalar
        With `return_sign` only: 1, 0 (where the sum is 0), -1 or nan; shaped like the logarithm.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If `x` and `b` do not broadcast, `out` has another shape or is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    log_softmax : ``x - logsumexp(x)``, without the cancellation.
    logsumexp_backward : its gradient.

    Notes
    -----
    ``log(sum(b * exp(x)))``. With m the largest element, which is kept apart from the others, the result is
    ``m + log1p(sum of the others' exp(x - m))`` [1]_. Of an empty axis, and of -inf only, it is -inf.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA J. Numer. Anal. 41 (2021), 2311-2330.

    Examples
    --------
    >>> import cylsm
    >>> float(cylsm.logsumexp([0.0, -40.0]))
    4.248354255291589e-18
    >>> value, sign = cylsm.logsumexp([1.0, 1.0], b=[1.0, -2.0], return_sign=True)
    >>> float(value), float(sign)
    (1.0, -1.0)
    """
    cdef Task task
    cdef Totals totals
    cdef Operand *operands[4]
    cdef ndarray a = real_array(x, "x")
    cdef ndarray weights = None
    cdef ndarray value, flat
    cdef ndarray sign = None
    cdef bint wide
    cdef int class_axis, count = 2
    cdef tuple axes
    if b is None and not return_sign:
        wide = computes_wide(a)
    else:
        weights = real_array(1.0 if b is None else b, "b")
        wide = computes_wide(a) if b is None else weighted_wide(a, x, weights, b)
        try:
            shape = np.broadcast_shapes((<object> a).shape, (<object> weights).shape)
        except ValueError:
            raise ValueError(f"x and b must broadcast, but have the shapes {(<object> a).shape} and "
                             f"{(<object> weights).shape}") from None
        a = np.broadcast_to(a, shape)
        weights = np.broadcast_to(weights, shape)
    axes = all_axes(axis, a.ndim, "x")
    if keepdims:
        shape = tuple([1 if i in axes else a.shape[i] for i in range(a.ndim)])
    else:
        shape = rest_of(a, axes)
    value = out_of_shape(out, shape, float64 if wide else float32)
    if return_sign:
        sign = np.empty(shape, value.dtype)
    if out is not None:
        a = apart(a, value)
        if weights is not None:
            weights = apart(weights, value)
    if len(axes) == 1:
        class_axis = axes[0]
    else:
        a = one_class_axis(a, axes)
        if weights is not None:
            weights = one_class_axis(weights, axes)
        class_axis = a.ndim - 1
    new_task(&task, LOGSUMEXP if weights is None else LOGSUMEXP_WEIGHTED, wide)
    rows_and_classes(&task, a, class_axis)
    if task.classes == 0:
        value[...] = -INFINITY
        if sign is not None:
            sign[...] = 0
    else:
        add_rows(&task, &task.x, a, wide, class_axis)
        operands[0] = &task.x
        flat = value.squeeze(axes) if keepdims else value
        add_rows(&task, &totals.value, flat, wide, -1)
        operands[1] = &totals.value
        totals.sign.data = NULL
        if weights is not None:
            add_rows(&task, &task.y, weights, wide, class_axis)
            operands[2] = &task.y
            count = 3
        if sign is not None:
            flat = sign.squeeze(axes) if keepdims else sign
            add_rows(&task, &totals.sign, flat, wide, -1)
            operands[3] = &totals.sign
            count = 4
        task.context = &totals
        task.close = &write_totals
        task.row_scratch = 8
        join_row_axes(&task, operands, count)
        if task.rows > 0:
            run(&task)
    result = value if value.ndim > 0 or out is not None else value[()]
    if sign is not None:
        return result, sign if sign.ndim > 0 else sign[()]
    return result


cdef bint weighted_wide(ndarray a, object x, ndarray weights, object b) except -1:
    """Whether result_type(x, b) is computed in float64: a Python scalar promotes nothing."""
    cdef object first = x if type(x) in (int, float, bool) else a.dtype
    cdef object second = b if type(b) in (int, float, bool) else weights.dtype
    if type(first) in (int, float, bool) and type(second) in (int, float, bool):
        return True
    return np.result_type(first, second) not in (float32, float16)


# ---- logsumexp_backward ------------------------------------------------------------------------------------------

cdef void read_factor(Task *task, Block *block) noexcept nogil:
    cdef const Operand *grad_output = <const Operand *> task.context
    kernels(task.wide).load(grad_output.element, grad_output.swapped, row_of(task, grad_output, block), 0,
                            grad_output.row_strides[task.ndim - 1], 1, block.rows, block.factor, 0)


def logsumexp_backward(grad_output, x, axis=-1, *, out=None):
    """Gradient of `logsumexp` (without weights), from its input.

    Parameters
    ----------
    grad_output : array_like
        Gradient of a scalar with respect to the result of `logsumexp`: of the shape of `x` without the axes, or with
        length 1 in their place.
    x : array_like
        The input of `logsumexp`. Its dtype decides the result's.
    axis : int, tuple of ints or None, default -1
        As it was for `logsumexp`.
    out : ndarray, optional
        Where to write the result: of the shape of `x` and the dtype of the result. It may be `x`.

    Returns
    -------
    ndarray
        Gradient with respect to `x`, of its shape.

    Raises
    ------
    TypeError
        If a dtype is not accepted, or `out` is no array of the result's dtype.
    ValueError
        If shapes do not fit, `out` is read-only, or an axis is repeated.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    logsumexp : the forward function.

    Notes
    -----
    ``grad_output * softmax(x)``, `grad_output` with its axes kept.

    Examples
    --------
    >>> import cylsm
    >>> cylsm.logsumexp_backward([2.0, 1.0], [[0.0, 0.0], [3.0, 3.0]])
    array([[1. , 1. ],
           [0.5, 0.5]])
    """
    cdef ndarray a = real_array(x, "x")
    cdef ndarray factor = real_array(required(grad_output), "grad_output")
    cdef ndarray result
    cdef tuple axes = all_axes(axis, a.ndim, "x")
    rest = rest_of(a, axes)
    kept = tuple([1 if i in axes else a.shape[i] for i in range(a.ndim)])
    if (<object> factor).shape != rest:
        if (<object> factor).shape != kept:
            raise ValueError(f"grad_output must have shape {rest} or {kept} for x of shape {(<object> a).shape}, not "
                             f"{(<object> factor).shape}")
        factor = factor.squeeze(axes)
    result = checked_out(out, a, result_dtype(a))
    if out is not None:
        a = apart(a, result)
        factor = whole_copy_if_shared(factor, result)
    if len(axes) == 1:
        compute(SOFTMAX_GRADIENT, a, axes[0], None, factor, result, out is not None)
    else:
        compute_joined(SOFTMAX_GRADIENT, a, axes, None, factor, result, out is not None)
    return result if result.ndim > 0 or out is not None else result[()]


cdef ndarray whole_copy_if_shared(ndarray a, ndarray out):
    """What is read a row at a time must not be what other rows' results are written to."""
    return a.copy() if np.may_share_memory(a, out) else a
