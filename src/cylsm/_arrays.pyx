# What every public function does first: which dtypes, which axis, is `out` acceptable, how the array lies as rows. The
# only room that looks at an array's flags.
#
# (a) An operand is described, not converted: the driver copies what a kernel cannot walk, block by block.
# (b) Row axes are sorted by stride, turned round where x runs backwards, and joined where all operands allow it, so
#     that the last one is as long and as dense as can be.
# (c) `out` may be an input exactly. Where it overlaps an input in any other way, that input is copied whole.

import operator

import numpy as np
from numpy.exceptions import AxisError

cimport numpy as cnp
from numpy cimport ndarray

from cylsm._driver cimport Operand, Task
from cylsm._kernels cimport (
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Element,
)

cnp.import_array()

cdef object float16 = np.dtype(np.float16)
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef type masked = np.ma.MaskedArray


cdef int element_of(ndarray a) noexcept:
    """The Element of an array; -1 where it is none that is accepted."""
    cdef int num = cnp.PyArray_TYPE(a)
    if num == cnp.NPY_FLOAT32:
        return FLOAT32
    if num == cnp.NPY_FLOAT64:
        return FLOAT64
    if num == cnp.NPY_FLOAT16:
        return FLOAT16
    if num == cnp.NPY_BOOL:
        return BOOL
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(a)
    if cnp.PyTypeNum_ISUNSIGNED(num):
        return UINT8 if size == 1 else UINT16 if size == 2 else UINT32 if size == 4 else UINT64
    if cnp.PyTypeNum_ISINTEGER(num):
        return INT8 if size == 1 else INT16 if size == 2 else INT32 if size == 4 else INT64
    return -1


cdef ndarray real_array(object x, str name):
    """x as an array of real numbers, without a copy if it is one."""
    cdef ndarray a
    if type(x) is ndarray:
        a = <ndarray> x
    else:
        if isinstance(x, masked):
            raise TypeError(f"{name} must not be a masked array: fill or drop what is masked first")
        try:
            a = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name} must be an array of real numbers: {error}") from None
        except TypeError as error:
            raise TypeError(f"{name} must be an array of real numbers: {error}") from None
        if a.dtype.kind == "O" and not isinstance(x, np.ndarray) and a.ndim == 0 and isinstance(x, int):
            raise TypeError(f"{name} must hold numbers that fit 64 bits, not {x}")
    if element_of(a) < 0:
        raise TypeError(f"{name} must hold real numbers (float16, float32, float64, integers or booleans), "
                        f"not {a.dtype}")
    return a


cdef object result_dtype(ndarray a):
    """The dtype of a result shaped like a."""
    cdef int num = cnp.PyArray_TYPE(a)
    return float32 if num == cnp.NPY_FLOAT32 else float16 if num == cnp.NPY_FLOAT16 else float64


cdef bint computes_wide(ndarray a):
    """Whether float64 is what a is computed in; float16 and float32 are computed in float32."""
    cdef int num = cnp.PyArray_TYPE(a)
    return num != cnp.NPY_FLOAT32 and num != cnp.NPY_FLOAT16


cdef int one_axis(object axis, int ndim, str name) except -1:
    cdef Py_ssize_t i
    if type(axis) is int:
        i = clipped(axis)
    else:
        if isinstance(axis, (bool, np.bool_)):
            raise TypeError(f"axis must be an integer, not {axis!r}")
        try:
            i = clipped(operator.index(axis))
        except TypeError:
            raise TypeError(f"axis must be an integer, not {axis!r}") from None
    if i < -ndim or i >= ndim:
        raise AxisError(f"axis {axis} is out of bounds for {name} of dimension {ndim}")
    return <int> (i + ndim if i < 0 else i)


cdef Py_ssize_t clipped(object i):
    """An integer of any size, as one that is out of bounds if it does not fit."""
    return i if -1000 < i < 1000 else 1000


cdef tuple all_axes(object axis, int ndim, str name):
    """axis as a tuple of distinct axes in ascending order."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, (tuple, list)):
        if isinstance(axis, list):
            raise TypeError(f"axis must be an integer, a tuple of integers or None, not {axis!r}")
        axes = sorted([one_axis(i, ndim, name) for i in axis])
        if len(set(axes)) < len(axes):
            raise ValueError(f"axis must not be repeated, but is {axis!r}")
        return tuple(axes)
    try:
        # One number is one row of one element.
        one = one_axis(axis, max(ndim, 1), name)
    except TypeError:
        raise TypeError(f"axis must be an integer, a tuple of integers or None, not {axis!r}") from None
    return (one,) if ndim > 0 else ()


cdef object shape_of(ndarray a):
    return tuple([a.shape[i] for i in range(a.ndim)])


cdef ndarray checked_out(object out, ndarray like, object dtype):
    """`out` if it has the shape of `like`, or a new array."""
    cdef ndarray a
    cdef int i
    if out is None:
        return cnp.PyArray_EMPTY(like.ndim, like.shape, dtype.num, 0)
    a = accepted_out(out, dtype)
    if a.ndim == like.ndim:
        for i in range(a.ndim):
            if a.shape[i] != like.shape[i]:
                break
        else:
            return a
    raise ValueError(f"out must have shape {shape_of(like)}, not {shape_of(a)}")


cdef ndarray out_of_shape(object out, tuple shape, object dtype):
    cdef ndarray a
    if out is None:
        return np.empty(shape, dtype)
    a = accepted_out(out, dtype)
    if shape_of(a) != shape:
        raise ValueError(f"out must have shape {shape}, not {shape_of(a)}")
    return a


cdef ndarray accepted_out(object out, object dtype):
    """`out`, known to be a writable array of the dtype; of its shape nothing is known yet."""
    if not isinstance(out, ndarray):
        raise TypeError(f"out must be a numpy.ndarray, not {type(out).__name__}")
    if isinstance(out, masked):
        raise TypeError("out must not be a masked array")
    if cnp.PyArray_TYPE(<ndarray> out) != <int> dtype.num or not cnp.PyArray_ISNOTSWAPPED(<ndarray> out):
        raise TypeError(f"out must have dtype {dtype}, not {out.dtype}")
    if not cnp.PyArray_ISWRITEABLE(<ndarray> out):
        raise ValueError("out must be writable, but is read-only")
    return <ndarray> out


cdef void extent(ndarray a, char **low, char **high) noexcept:
    """The bytes that the array's elements lie within."""
    cdef int i
    cdef Py_ssize_t span
    low[0] = <char *> cnp.PyArray_DATA(a)
    high[0] = low[0] + cnp.PyArray_ITEMSIZE(a)
    for i in range(a.ndim):
        if a.shape[i] == 0:
            high[0] = low[0]
            return
        span = (a.shape[i] - 1) * a.strides[i]
        if span < 0:
            low[0] += span
        else:
            high[0] += span


cdef bint same_memory(ndarray a, ndarray b):
    """Whether b is element for element the memory of a."""
    cdef int i
    if cnp.PyArray_DATA(a) != cnp.PyArray_DATA(b) or a.ndim != b.ndim or cnp.PyArray_ITEMSIZE(a) != cnp.PyArray_ITEMSIZE(b):
        return False
    for i in range(a.ndim):
        if a.shape[i] != b.shape[i] or (a.strides[i] != b.strides[i] and a.shape[i] > 1):
            return False
    return True


cdef bint overlaps_itself(ndarray a):
    """Whether two of its elements may share memory, as in a broadcast array that was made writable."""
    cdef int i
    for i in range(a.ndim):
        if a.shape[i] > 1 and -cnp.PyArray_ITEMSIZE(a) < a.strides[i] < cnp.PyArray_ITEMSIZE(a):
            return True
    return False


cdef ndarray apart(ndarray a, ndarray out):
    """a, copied where `out` shares some of its memory, but not element for element."""
    cdef char *low
    cdef char *high
    cdef char *out_low
    cdef char *out_high
    extent(a, &low, &high)
    extent(out, &out_low, &out_high)
    if low >= out_high or out_low >= high:
        return a
    if same_memory(a, out) and not overlaps_itself(out):
        return a
    try:
        shared = np.shares_memory(a, out, max_work=10000)
    except np.exceptions.TooHardError:
        shared = True
    return a.copy() if shared else a


cdef int describe(Operand *operand, ndarray a, bint wide) except -1:
    """All but the strides."""
    cdef Element element = <Element> element_of(a)
    operand.data = <char *> cnp.PyArray_DATA(a)
    operand.element = element
    operand.swapped = not cnp.PyArray_ISNOTSWAPPED(a)
    operand.item_bytes = cnp.PyArray_ITEMSIZE(a)
    operand.native = (element == (FLOAT64 if wide else FLOAT32) and not operand.swapped
                      and is_aligned(a, operand.item_bytes))
    operand.class_stride = 0
    return 0


cdef bint is_aligned(ndarray a, Py_ssize_t size) noexcept:
    """Every element on a multiple of its own size: more than NumPy asks for on some platforms."""
    cdef int i
    if <size_t> cnp.PyArray_DATA(a) % <size_t> size:
        return False
    for i in range(a.ndim):
        if a.strides[i] % size:
            return False
    return True


cdef void no_operand(Operand *operand) noexcept:
    operand.data = NULL
    operand.native = False
    operand.element = FLOAT32
    operand.swapped = False
    operand.class_stride = 0
    operand.item_bytes = 1


cdef int new_task(Task *task, int operation, bint wide) except -1:
    task.operation = operation
    task.wide = wide
    task.has_factor = False
    task.in_place = False
    task.fresh = False
    task.adds_up = False
    task.runs_join = True
    task.fill_y = NULL
    task.open = NULL
    task.close = NULL
    task.row_scratch = 0
    task.context = NULL
    no_operand(&task.x)
    no_operand(&task.y)
    no_operand(&task.out)
    return 0


cdef int add_rows(Task *task, Operand *operand, ndarray a, bint wide, int class_axis) except -1:
    """Describe an operand whose axes but `class_axis` (-1: none) are the row axes, in order."""
    cdef int i, k = 0
    describe(operand, a, wide)
    for i in range(a.ndim):
        if i == class_axis:
            operand.class_stride = a.strides[i]
        else:
            operand.row_strides[k] = a.strides[i]
            k += 1
    return 0


cdef void join_row_axes(Task *task, Operand **operands, int count) noexcept:
    """Sort, turn and join the task's row axes; operands[0] leads."""
    cdef int i, j, k, n = 0
    cdef bint joins
    task.rows = 1
    for i in range(task.ndim):
        task.rows *= task.shape[i]
    if task.ndim == 1:
        if operands[0].row_strides[0] >= 0:
            return
    # Axes of length 1 say nothing.
    for i in range(task.ndim):
        if task.shape[i] != 1:
            if n != i:
                task.shape[n] = task.shape[i]
                for k in range(count):
                    operands[k].row_strides[n] = operands[k].row_strides[i]
            n += 1
    if n == 0:
        task.ndim = 1
        task.shape[0] = 1
        for k in range(count):
            operands[k].row_strides[0] = 0
        return
    if task.rows > 0:
        for i in range(n):
            if operands[0].row_strides[i] < 0:
                for k in range(count):
                    if operands[k].data != NULL:
                        operands[k].data += (task.shape[i] - 1) * operands[k].row_strides[i]
                        operands[k].row_strides[i] = -operands[k].row_strides[i]
    for i in range(1, n):
        j = i
        while j > 0 and operands[0].row_strides[j - 1] < operands[0].row_strides[j]:
            task.shape[j - 1], task.shape[j] = task.shape[j], task.shape[j - 1]
            for k in range(count):
                operands[k].row_strides[j - 1], operands[k].row_strides[j] = (
                    operands[k].row_strides[j], operands[k].row_strides[j - 1])
            j -= 1
    i = 0
    for j in range(1, n):
        joins = True
        for k in range(count):
            if operands[k].data != NULL and operands[k].row_strides[i] != task.shape[j] * operands[k].row_strides[j]:
                joins = False
        if joins:
            task.shape[i] *= task.shape[j]
        else:
            i += 1
            task.shape[i] = task.shape[j]
        for k in range(count):
            operands[k].row_strides[i] = operands[k].row_strides[j]
    task.ndim = i + 1
    for k in range(count if i > 0 else 0):
        if operands[k] != &task.x and operands[k] != &task.y and operands[k] != &task.out and operands[k].data != NULL:
            task.runs_join &= operands[k].row_strides[i - 1] == task.shape[i] * operands[k].row_strides[i]
