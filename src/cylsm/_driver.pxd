# A task is all that a call computes, described without Python: where its operands lie and what is done to every row.
# The driver cuts it into blocks of rows, and rows into tiles, and calls `open` before and `close` after each block.

from cylsm._kernels cimport Element, Kernels, RowState

cdef enum:
    MOST_AXES = 64      # NumPy's own limit
    MOST_PARTS = 1024   # shares of the blocks: what is summed over rows is summed for each share first
    MOST_RUN = 528      # of a block's rows with labels, those along the last row axis: the driver's MOST_LANES and a line

cdef struct Operand:
    char *data                          # of the first row; NULL: there is none
    Element element
    bint swapped                        # in the other byte order
    bint native                         # in the task's dtype, aligned, in the machine's byte order
    Py_ssize_t item_bytes
    Py_ssize_t class_stride             # bytes
    Py_ssize_t row_strides[MOST_AXES]   # bytes

cdef struct Block:
    Py_ssize_t part         # the share it belongs to
    Py_ssize_t outer        # index into the row axes but the last, flattened
    Py_ssize_t first        # along the last row axis: the rows are first .. first + run
    Py_ssize_t rows
    Py_ssize_t run          # so many of them lie along that axis; the next as many are of the next `outer`, to the end of rows
    Py_ssize_t merged       # entry of the state that holds the result of the first row
    RowState state
    void *factor            # the operation's factor, one real a row, which `open` sets; read where task.has_factor
    char *scratch           # task.row_scratch bytes a row, for `open` and `close`
    bint marked             # what `open` tells `close`

ctypedef void (*block_hook)(Task *task, Block *block) noexcept nogil
# Writes classes first .. first + classes of the block's rows of y, by rows or by lanes (`strip`).
ctypedef void (*y_hook)(Task *task, Block *block, Py_ssize_t first, Py_ssize_t classes, bint strip, void *y,
                        Py_ssize_t y_step) noexcept nogil

cdef struct Task:
    int ndim                            # of the row axes; at least 1
    Py_ssize_t shape[MOST_AXES]
    Py_ssize_t rows
    Py_ssize_t classes
    bint wide                           # float64, else float32
    int operation
    bint has_factor
    bint in_place                       # out is the memory of an input
    bint fresh                          # out was made for this call, and holds nothing yet
    bint adds_up                        # `close` adds rows up: they are cut at the same places for any number of threads
    bint runs_join                      # operands of one number a row walk over a run's end by their last row stride
    Operand x
    Operand y
    Operand out
    y_hook fill_y                       # where y is computed, not stored
    block_hook open                     # or NULL
    block_hook close                    # or NULL
    Py_ssize_t row_scratch
    void *context                       # of the hooks
    Py_ssize_t parts                    # set by run: how many shares `part` counts
    Py_ssize_t blocks_per_part

cdef const Kernels *kernels(bint wide) noexcept nogil
cdef char *row_of(const Task *task, const Operand *operand, const Block *block) noexcept nogil
# Bytes from a row to that of the next run.
cdef Py_ssize_t run_stride(const Task *task, const Operand *operand) noexcept nogil
cdef int run(Task *task) except -1

# Calls each(context, thread, i) for i < count, shared among as many threads as so much work is worth.
ctypedef void (*job)(void *context, int thread, Py_ssize_t index) noexcept nogil
cdef void share_work(job each, void *context, Py_ssize_t count, Py_ssize_t work) noexcept nogil
