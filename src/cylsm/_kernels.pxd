# What crosses between the driver and the kernels: one C signature a kernel, and what it may assume.
#
# A kernel sees a rectangle of `rows` by `classes` numbers of one dtype ("real": float or double; a table holds the
# kernels of one dtype with the element type erased). In `*_rows` kernels a row's classes lie side by side and `step`
# elements lead from one row to the next. In `*_strip` kernels the rows lie side by side ("lanes") and `step` elements
# lead from one class to the next.
#
# Assumed, and asserted in builds with asserts on: pointers are aligned for their dtype; rows >= 1; classes >= 1;
# `*_rows` kernels: classes >= SHORTEST_ROW; few_rows: rows of at most FEW_BYTES. `out` and `exps` either are the memory
# of an input exactly, with the same step, or do not overlap it.

cdef enum:
    SHORTEST_ROW = 16     # elements: one 64-byte vector of float, two of double
    FEW_BYTES = 504       # rows that few_rows takes at most: those of 512 bytes, whole vectors, are faster by rows
    # A longer row is cut into tiles of about this size at most, read again from L2. logsumexp of rows of 5003 float32 classes takes
    # 0.54 ns an element; with 16 KB, where a tile's own costs show, 0.76.
    TILE_BYTES = 65536
    SHORTEST_SOFTMAX = 32  # elements of a row that softmax_rows takes
    # Rows that forward_rows adds up while it compares as many and writes as many, where L1 cannot hold them: two batches wait in L2.
    # Longer rows' tiles are taken so, too, which would otherwise take turns to be read, to take exps and to be written: softmax of
    # 300 x 32000 float32 takes 1.8 ms so, and 2.9; of 1000 x 50257 12 and 16.
    FORWARD_BYTES = 65536
    MOST_FORWARD_TILES = 16  # of a row that it takes
    # Up to here all exps count from the top, with what that loses: logsumexp of 4 float32 classes takes 1.73 ns an element
    # so, and 1.75 with a reference, of 6, 1.5 and 1.4. Less than SHORTEST_ROW: no tile is so short.
    NEAR_CLASSES = 8
    SHORT_CLASSES = 16    # that few_strip takes at most
    GROUP = 64            # rows that few_rows transposes together, a power of 4,
    LONG_GROUP = 16       # or so many where they are longer than a line: the group stays in L1
    SCRATCH = 16 * 128    # reals in one of the arrays that few_rows transposes through

cdef enum Operation:
    LOGSUMEXP             # finish only
    LOGSUMEXP_WEIGHTED    # the sum's terms are multiplied by y; log_sum is of its magnitude, scale its sign
    LOG_SOFTMAX           # (x - top) - log_sum
    SOFTMAX               # exp(x - top) / sum; reduce keeps the exps
    SOFTMAX_GRADIENT      # factor times that, as exact as the logarithm; log_sum and others are set too
    LOG_SOFTMAX_BACKWARD  # x - exp(y) * sum(x)
    SOFTMAX_BACKWARD      # y * (x - sum(x * y))
    MIXTURE_COST          # after LOGSUMEXP, reduce only: mass = sum(y), cost = sum(y * (top - x))
    MIXTURE               # after that, apply only: factor * (mass * softmax(x) - y)

# Streamed, forward_rows has exps wait in scratch of so many bytes, where a row begins with a line.
cdef inline Py_ssize_t forward_scratch(Py_ssize_t row_bytes) noexcept nogil:
    return 2 * (max(<Py_ssize_t> FORWARD_BYTES, row_bytes) + 16 * 64)

# What a kernel reads next, and asks for meanwhile; one of rows, whatever lies behind them.
cdef enum Following:
    NOTHING
    TILE_BELOW            # the next classes
    BLOCK_BESIDE          # the next rows, or lanes

# How the elements of an array are held.
cdef enum Element:
    BOOL
    INT8
    INT16
    INT32
    INT64
    UINT8
    UINT16
    UINT32
    UINT64
    FLOAT16
    FLOAT32
    FLOAT64

# A row's running reduction and what follows from it: arrays of real with one entry a row (of each tile).
cdef struct RowState:
    void *top        # the largest element, the lowest finite number in a row of -inf, anything in one with a nan
    void *ties       # how many equal it, or the sum of their weights; 0 where SOFTMAX leaves the whole sum in rest
    void *rest       # sum of exp(x - top) over the others; for the backward operations the sum itself
    void *carry      # what rest's rounding lost; after MIXTURE_COST what cost's did
    void *log_sum    # log(ties + rest)
    void *log_low    # what its rounding lost
    void *others     # factor times the probability of all but one of the ties
    void *scale      # factor / (ties + rest), what exp(x - top) is multiplied by; for the backward operations the sum
    void *mass
    void *mass_carry
    void *cost

# Fills entries first .. first + rows of the state. SOFTMAX, SOFTMAX_GRADIENT: `exps` receives the exps; otherwise, if not
# NULL, it is what will be written next, and is asked for meanwhile, but not by a backward operation, whose sum is short.
ctypedef void (*reduce_kernel)(int operation, const void *x, Py_ssize_t x_step, const void *y, Py_ssize_t y_step,
                               Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                               void *exps, Py_ssize_t exps_step, int following) noexcept nogil
# Folds the entries of `tiles` tiles (tile t of row r at t * rows + r), in order, into entries first .. first + rows.
ctypedef void (*merge_kernel)(int operation, const RowState *state, void *tops, Py_ssize_t rows, Py_ssize_t tiles,
                              Py_ssize_t first) noexcept nogil
# Sets log_sum and log_low of entries first .. first + rows, but for SOFTMAX, and where they are needed others and scale; a
# NULL factor is 1.
ctypedef void (*finish_kernel)(int operation, const RowState *state, Py_ssize_t first, Py_ssize_t rows,
                               const void *factor) noexcept nogil
# Sets every tile's scale from its row's, so that exps taken relative to a tile's own top can be used as they
# are.
ctypedef void (*spread_kernel)(const RowState *state, const void *tops, Py_ssize_t rows, Py_ssize_t tiles,
                               Py_ssize_t first) noexcept nogil
# Writes the result, where `stream` around the caches; out then overlaps no input. SOFTMAX, SOFTMAX_GRADIENT: where `kept`, x
# holds the exps that reduce has kept. `ask` is for strips: x, y and out are in no cache, and are asked for some classes
# ahead; rows do not read it.
ctypedef void (*apply_kernel)(int operation, bint kept, const void *x, Py_ssize_t x_step, const void *y,
                              Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                              Py_ssize_t first, const void *factor, void *out, Py_ssize_t out_step, bint ask,
                              bint stream) noexcept nogil
# reduce, finish and apply of short rows; `scratch` holds 3 * SCRATCH reals. out may be NULL.
ctypedef void (*few_kernel)(int operation, const void *x, Py_ssize_t x_step, const void *y, Py_ssize_t y_step,
                            Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const void *factor,
                            void *out, Py_ssize_t out_step, void *scratch) noexcept nogil
# The same of lanes, of `runs` runs of so many rows: `x_run` and so on lead from one to the next. Up to NEAR_CLASSES are asked for
# ahead where they are `far`, and gradients' always, but for lines of several runs; where `stream` they are written around the
# caches, but gradients. Up to GROUP - 1 entries of the state behind the rows are overwritten, and as many of `factor` read.
ctypedef void (*few_strip_kernel)(int operation, const void *x, Py_ssize_t x_step, Py_ssize_t x_run, const void *y,
                                  Py_ssize_t y_step, Py_ssize_t y_run, Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t classes,
                                  const RowState *state, const void *factor, void *out, Py_ssize_t out_step,
                                  Py_ssize_t out_run, void *scratch, bint far, bint stream) noexcept nogil
# The same of a backward operation, of rows of at least SHORTEST_ROW classes. No state is kept. out may be x or y, but where
# it is streamed around the caches. `far`: the arrays take half of the last-level cache, or more.
ctypedef void (*backward_kernel)(int operation, const void *x, Py_ssize_t x_step, const void *y, Py_ssize_t y_step,
                                 Py_ssize_t rows, Py_ssize_t classes, void *out, Py_ssize_t out_step,
                                 bint far, bint stream) noexcept nogil
# The same of LOG_SOFTMAX, SOFTMAX and SOFTMAX_GRADIENT, to the bits of reduce_rows, merge, finish and apply_rows. A row has one tile,
# or up to MOST_FORWARD_TILES of `tile` classes each but for the last; tiles' entries come first in the state, and are used again for
# every row. Only the gradient has a factor, or NULL, and leaves its rows' entries. Exps wait in out or, where that is streamed, in
# `exps`, of forward_scratch bytes. out may be x, but where it is streamed.
ctypedef void (*forward_kernel)(int operation, const void *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                                Py_ssize_t tile, const RowState *state, const void *factor, void *out, Py_ssize_t out_step,
                                void *exps, bint far, bint stream) noexcept nogil
# The same of softmax, of rows of SHORTEST_SOFTMAX to longest_softmax classes. out may be x.
ctypedef void (*softmax_kernel)(const void *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, void *out,
                                Py_ssize_t out_step, bint far) noexcept nogil
# Converts elements of any kind, with any strides (bytes) and alignment: out[i * out_step + j], j < inner.
ctypedef void (*load_kernel)(Element element, bint swapped, const char *data, Py_ssize_t outer_stride,
                             Py_ssize_t inner_stride, Py_ssize_t outer, Py_ssize_t inner, void *out,
                             Py_ssize_t out_step) noexcept nogil
# The way back, to FLOAT16, FLOAT32 or FLOAT64 in the machine's byte order.
ctypedef void (*store_kernel)(Element element, const void *x, Py_ssize_t x_step, Py_ssize_t outer,
                              Py_ssize_t inner, char *data, Py_ssize_t outer_stride,
                              Py_ssize_t inner_stride) noexcept nogil
# For tests of the primitives: out[i] = exp(x[i]) for x <= 0, and of pairs exp(x[i] - y[i]) for x <= y (exp_near_of),
# exp(x[i]) * y[i] (exp_scaled_of) and log(x[i] + y[i]) for x >= 1, y >= 0 (log_of).
ctypedef void (*exp_kernel)(const void *x, void *out, Py_ssize_t n) noexcept nogil
ctypedef void (*pair_kernel)(const void *x, const void *y, void *out, Py_ssize_t n) noexcept nogil

cdef struct Kernels:
    Py_ssize_t few_bytes  # rows up to here go to few_rows, but for backward_rows' and softmax_rows'
    Py_ssize_t forward_few_bytes  # the same of softmax and log_softmax
    Py_ssize_t longest_softmax  # 0 where softmax_rows takes none
    bint streams_more     # exps take so little beside memory that softmax, and short rows, are worth streaming
    bint forwards_gradients  # forward_rows takes gradients
    bint spreads_lines    # few_strip takes lines of several runs together
    reduce_kernel reduce_rows
    reduce_kernel reduce_strip
    merge_kernel merge
    finish_kernel finish
    spread_kernel spread
    apply_kernel apply_rows
    apply_kernel apply_strip
    few_kernel few_rows
    few_strip_kernel few_strip
    backward_kernel backward_rows
    forward_kernel forward_rows  # or NULL, as the next: the others take less
    softmax_kernel softmax_rows
    load_kernel load
    store_kernel store
    exp_kernel exp_of
    pair_kernel exp_near_of
    pair_kernel exp_scaled_of
    pair_kernel log_of

cdef struct KernelTable:
    Kernels of_float
    Kernels of_double
