from numpy cimport ndarray

from cylsm._driver cimport Operand, Task

cdef ndarray real_array(object x, str name)
cdef object result_dtype(ndarray a)
cdef bint computes_wide(ndarray a)
cdef int one_axis(object axis, int ndim, str name) except -1
cdef tuple all_axes(object axis, int ndim, str name)
cdef ndarray checked_out(object out, ndarray like, object dtype)
cdef ndarray out_of_shape(object out, tuple shape, object dtype)
cdef bint same_memory(ndarray a, ndarray b)
cdef ndarray apart(ndarray a, ndarray out)
cdef int describe(Operand *operand, ndarray a, bint wide) except -1
cdef void no_operand(Operand *operand) noexcept
cdef int new_task(Task *task, int operation, bint wide) except -1
cdef int add_rows(Task *task, Operand *operand, ndarray a, bint wide, int class_axis) except -1
cdef void join_row_axes(Task *task, Operand **operands, int count) noexcept
