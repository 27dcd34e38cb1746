# The kernels, one body each, fused over float and double and compiled once per instruction set.
#
# (a) The compiler vectorises; the loops are written for it. A sum or a maximum over a row is kept in lane arrays (one
#     vector's worth, so that they stay in registers), since a scalar reduction may not be reordered and so is not
#     vectorised. Results pass through small local arrays where `out` may be an input: the compiler cannot know that
#     they do not overlap, and keeps such an array in registers too where its length is a constant.
# (b) The largest element is separated: sum = ties + rest, where `ties` counts the elements equal to it. So the loss
#     of a confident row, log1p(rest), keeps all its digits, and no row needs a special case: in a row with +inf the
#     infinities are ties and the others add 0, a row of -inf only has the sum 0, and a nan reaches rest through exp
#     or, where the top itself is nan, through the way to multiples of exp(top).
# (c) exp counts from a multiple of ln 2 near the largest element, not from the element: x of an ordinary row needs no
#     rounded subtraction, and a sum is brought to multiples of exp(top) once, at its end. Of few classes it counts from the
#     largest, and carries what the subtraction lost: that takes less than the way back.
#     Probabilities count from the largest too, whose exp is 1 then; of more classes than those few, without the carry,
#     since their limit grows with the gap as the rounding of x - top does, and without counting ties. A gradient's carry it: from
#     the reference they would take a tenth less, but of a row that is sure the factor itself would not always come back.
# (d) Sums are compensated: term by term where there are few, in long rows two or four terms at a time.
#     The pair (rest, carry) is used in full by the logarithm. Where only the sum itself is needed, by the backward
#     operations and softmax of short rows, those of float are taken in double.
# (e) The end of a row that is no multiple of its lanes is read as an overlapping vector whose known lanes are masked. It
#     is copied before anything is stored, since `out` may be the input.
# (f) Never x - lse: (x - top) - log_sum, both terms of one sign.
# (g) Exps wait for no memory: forward_rows adds up a batch of rows, or a tile, while it compares the next and writes the last row's.

from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, NAN, fabs, fma, fmaf, frexp, ldexp, log as libm_log
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.pycapsule cimport PyCapsule_New

from cylsm._kernels cimport (
    BOOL,
    FEW_BYTES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORWARD_BYTES,
    GROUP,
    INT8,
    INT16,
    INT32,
    INT64,
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOGSUMEXP,
    LOGSUMEXP_WEIGHTED,
    LONG_GROUP,
    MIXTURE,
    MIXTURE_COST,
    NEAR_CLASSES,
    NOTHING,
    SCRATCH,
    SHORT_CLASSES,
    SHORTEST_ROW,
    SHORTEST_SOFTMAX,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    SOFTMAX_GRADIENT,
    TILE_BELOW,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Element,
    KernelTable,
    RowState,
    apply_kernel,
    backward_kernel,
    exp_kernel,
    few_kernel,
    few_strip_kernel,
    finish_kernel,
    forward_kernel,
    forward_scratch,
    load_kernel,
    merge_kernel,
    pair_kernel,
    reduce_kernel,
    softmax_kernel,
    spread_kernel,
    store_kernel,
)

cdef extern from "_native.h" nogil:
    const bint CYLSM_FMA
    const bint CYLSM_CLANG
    enum: CYLSM_VECTOR_BYTES
    void cylsm_require(bint condition)
    uint32_t bits_of_float(float x)
    uint64_t bits_of_double(double x)
    float float_of_bits(uint32_t bits)
    double double_of_bits(uint64_t bits)
    void prefetch_line(const void *p)
    void keep_call()
    void from_memory()
    void turn_by_turn()
    void widen_half(const float *x, double *out)
    void stream_lines(void *to, const void *source, Py_ssize_t lines)
    enum: CYLSM_FLOAT_QUADS
    enum: CYLSM_DOUBLE_QUADS
    void gather_float(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void gather_double(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)
    void scatter_float(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void scatter_double(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)
    void gather_float_1(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void gather_double_1(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)

ctypedef fused real:
    float
    double

cdef enum:
    LINE_BYTES = 64
    SOFTMAX_VECTORS = 8       # of a row that softmax_rows takes, at most, and part of one
    MOST_LANES = 16           # of float in the widest vector: stack arrays have room for any, and at_once takes so many at least
    BATCH = 16                # rows of a reduction, at most, whose lanes are folded together
    # Elements of a row from which on apply_rows writes log_softmax in vectors that begin with a line: 1000 x 16 float32 would take
    # 6.0 us so, and takes 5.4.
    SHORTEST_ALIGNED = 128
    ONE_BY_ONE = 64           # up to so many classes of a lane are added one by one
    REGISTER_CLASSES = 4      # up to here all of a lane's classes stay in registers
    AT_ONCE = 4 * GROUP       # lanes of so few classes that are taken at a time; of more classes half as many double
    # On AVX-512 lanes of fewer vectors are taken a vector at a time, which stays in registers: log_softmax_backward of 9 x 21 x 66
    # float32 along the second axis takes 6.2 us on one thread so, and 8.2 by strips; of 53 x 29 x 128 107 and 94.
    FEW_VECTORS = 5
    STRIP = 528               # lanes that a strip kernel takes at a time, 2 KB of float from each class: the driver's MOST_RUN
    # Rows that a backward operation, or softmax_rows, adds up before it writes them: few, so that memory is read while exps
    # are taken, and many enough to hide what waits at the end of a sum. log_softmax_backward of 4096 x 64 float32 takes
    # 52 us on one thread so, and 55 with 4 KB; of 50000 x 100, 1.26 ms and 1.15.
    BATCH_BYTES = 8192
    # And so many where they are streamed, for the same reason: memory moved in phases of 8 KB takes a tenth longer than in 2 KB.
    STREAMED_BYTES = 4096
    # Rows that a reduction compares before it adds them up, four at least, since so many are folded together: of up to 6 KB they
    # stay in L1 with most of what is asked for meanwhile. logsumexp of 60000 x 1000 float32 takes 11.0 ms so, and 12.1 with BATCH rows.
    REDUCED_BYTES = 24576
    # Rows that forward_rows adds up, beside as many that it compares and as many that it writes, stay in L1 with what is asked for
    # meanwhile: on one thread softmax of 30000 x 200 float32 takes 2.1 ms so, and 2.7 with batches of FORWARD_BYTES, of 2048 x 257
    # 0.18 and 0.22. What a batch costs is the logarithm above all: log_softmax's has three rows at least, or is not so short; of
    # 300 x 700 it takes 68 us so, and in twos 76.
    NEAR_FORWARD_BYTES = 7168
    NEAR_LOG_SOFTMAX_ROWS = 3
    # So far ahead are outputs asked for, and inputs that no maximum has brought into the caches, of arrays in the caches or in
    # batches that stay in L1, and of far ones. Not a page: what has just been stored lies as far into another page then, and the
    # processor takes one for the other. softmax of 2048 x 257 float64 takes 246 us on one thread so,
    # 341 with 4096 for both, and 267 with 6144; of 16384 x 1000 log_softmax 6.1 ms with 6144, 6.8 with 4096 and 7.6 with 3072.
    AHEAD_BYTES = 3072
    FAR_AHEAD_BYTES = 6144
    # By kernels that keep a state, and of the shortest rows of a gradient: there a page is best. log_softmax_backward of
    # 64 x 50257 float32 takes 0.40 ms on two threads so, 0.45 with 3072 and 0.48 with 6144.
    PLAIN_AHEAD_BYTES = 4096
    # By strips, in whole classes: log_softmax_backward of 4096 x 1000 float32 along axis 0 takes 0.92 ms so, and 1.57 without.
    STRIP_AHEAD_BYTES = 4096

# What the exps of a row count from.
cdef enum Origin:
    CENTRED                   # centre + N ln 2
    PLAIN                     # the same where the centre is 0
    NEAR                      # the top; what x - top loses is carried
    ROUNDED                   # the top, and x - top is rounded

# What will be read or written next: asked for while a loop computes, beside every class a run of each. From one run to the
# next lead so many bytes; where one_step is 0 those of both are adjacent.
cdef struct Soon:
    const void *one
    const void *other
    Py_ssize_t one_step
    Py_ssize_t other_step

# Lines of lanes that do not lie side by side: how many elements lead from one to the next, in each array.
cdef struct Apart:
    Py_ssize_t x
    Py_ssize_t y
    Py_ssize_t out
    Py_ssize_t state

# A row's last elements that fill no line wait for the next row's first: streamed together, neither is fetched.
cdef struct Tail:
    bint more                 # the next row begins where this one ends
    Py_ssize_t held           # bytes that wait
    char room[3 * LINE_BYTES]  # the line is the one in the middle: what is copied is always as long as a line, and overlaps

# What row_sum does beside adding up:
cdef enum Also:
    ALONE                     # nothing,
    RAISING                   # it takes the maximum of a later row,
    WRITING                   # and writes an earlier one,
    STREAMING                 # around the caches

# The later row, where its maximum's lanes go, and the earlier row, its parameters and where it is written.
cdef struct Meanwhile:
    const void *later
    void *later_top
    const void *earlier
    const void *parameters
    void *out
    Py_ssize_t out_ahead
    Tail *tail

# What belongs to a row (or lane): lines of one array, as long as there are rows.
cdef enum:
    TOP
    CENTRE
    SHIFT
    LEAST
    REFERENCE                 # how many lines a reduction needs
    # scale; for LOG_SOFTMAX -log_sum, beside -top; for LOG_SOFTMAX_BACKWARD the mantissa of set_factor, beside its SHIFT, LEAST
    LOW = REFERENCE
    AGAIN                     # what a row is multiplied by once more: 1, but for factors near the smallest numbers
    MASS
    MASS_CARRY
    OTHERS                    # probability of all but one of the ties
    FACTOR
    PARAMETERS                # how many apply needs


# Each uses what stands before it.
include "_exp.pxi"
include "_lanes.pxi"
include "_rows.pxi"
include "_finish.pxi"
include "_forward.pxi"
include "_backward.pxi"
include "_softmax.pxi"
include "_strips.pxi"
include "_few.pxi"
include "_elements.pxi"

# ---- the table -----------------------------------------------------------------------------------------------------

cdef void exp_of(const real *x, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real centre, shift, least
    set_reference(<real> 0.0, &centre, &shift, &least)
    for i in range(n):
        out[i] = exp_from(True, False, x[i], centre, shift, least) * exp_unit(x)


cdef void exp_near_of(const real *x, const real *tops, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = exp_near(x[i], tops[i]) * exp_unit(x)


cdef void exp_scaled_of(const real *x, const real *factors, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real shift, least, mantissa
    for i in range(n):
        mantissa = set_factor(factors[i], &shift, &least)
        out[i] = exp_scaled(x[i], shift, least, most_shifted(shift)) * mantissa


cdef void log_of(const real *x, const real *y, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real low
    for i in range(n):
        out[i] = log_of_sum(x[i], y[i], <real> 0.0, &low)


cdef KernelTable table

# Rows up to here are transposed in groups, so that the lanes of a vector are rows. On AVX-512 logsumexp of 4096 rows takes
# so, and by rows, on one thread: of 100 float32 classes 83 us and 101, of 50 float64 classes 107 and 164. On AVX2 of 77
# float32 classes 182 and 197. Baseline is like AVX2.
table.of_float.few_bytes = FEW_BYTES if CYLSM_VECTOR_BYTES == 64 else 80 * sizeof(float)
table.of_double.few_bytes = FEW_BYTES
# And so of what forward_rows takes: log_softmax of 80 float32 classes 152 us and 162, of 100 214 and 199,
# of 50 float64 classes 241 and 270; on AVX2 of 50 float32 classes 127 and 150, of 64 187 and 186, of 24 float64 classes 156 and
# 166, of 32 207 and 201.
table.of_float.forward_few_bytes = 380 if CYLSM_VECTOR_BYTES == 64 else 252 if CYLSM_VECTOR_BYTES == 32 else table.of_float.few_bytes
table.of_double.forward_few_bytes = 252 if CYLSM_VECTOR_BYTES == 32 else table.of_double.few_bytes
# Softmax of short rows of float takes less so, with sums in double: 4096 x 32 on AVX-512, 39 us on one thread and 48 in groups,
# x 64 63 and 88; x 128, 109 us and 118 by reduce_rows; 100000 x 64 1.6 ms and 2.3. On AVX2 4096 x 64 161 us and 195, but x 128
# 313 and 300.
table.of_float.softmax_rows = <softmax_kernel> &softmax_rows if CYLSM_VECTOR_BYTES > 16 else NULL
table.of_float.longest_softmax = (SOFTMAX_VECTORS + 1) * CYLSM_VECTOR_BYTES // sizeof(float) - 1 if CYLSM_VECTOR_BYTES > 16 else 0
table.of_double.softmax_rows = NULL
table.of_double.longest_softmax = 0

# Of narrow vectors arithmetic hides memory anyway: log_softmax takes a tenth longer so.
table.of_float.forward_rows = <forward_kernel> &forward_rows[float] if CYLSM_VECTOR_BYTES > 16 else NULL
table.of_double.forward_rows = <forward_kernel> &forward_rows[double] if CYLSM_VECTOR_BYTES > 16 else NULL
# On AVX2 they would save a twentieth, and take 30 KB of the wheel.
table.of_float.forwards_gradients = table.of_double.forwards_gradients = CYLSM_VECTOR_BYTES == 64

# Of narrower vectors arithmetic hides memory. On AVX2 log_softmax_backward of 100000 x 64 float32 takes 1.50 ms streamed,
# and 1.21; softmax of 16384 x 1000 2.65 and 2.24, on baseline of float64 19.0 and 17.8.
table.of_float.streams_more = table.of_double.streams_more = CYLSM_VECTOR_BYTES == 64

# Of 256 x 3 x 4 x 4 float32 softmax takes 6.6 us on AVX-512 if lines of several runs are taken together, and otherwise 9.0.
table.of_float.spreads_lines = table.of_double.spreads_lines = CYLSM_VECTOR_BYTES == 64

table.of_float.reduce_rows = <reduce_kernel> &reduce_rows[float]
table.of_float.reduce_strip = <reduce_kernel> &reduce_strip[float]
table.of_float.merge = <merge_kernel> &merge[float]
table.of_float.finish = <finish_kernel> &finish[float]
table.of_float.spread = <spread_kernel> &spread[float]
table.of_float.apply_rows = <apply_kernel> &apply_rows[float]
table.of_float.apply_strip = <apply_kernel> &apply_strip[float]
table.of_float.few_strip = <few_strip_kernel> &few_strip[float]
table.of_float.few_rows = <few_kernel> &few_rows[float]
table.of_float.backward_rows = <backward_kernel> &backward_rows[float]
table.of_float.load = <load_kernel> &load[float]
table.of_float.store = <store_kernel> &store[float]
table.of_float.exp_of = <exp_kernel> &exp_of[float]
table.of_float.exp_near_of = <pair_kernel> &exp_near_of[float]
table.of_float.exp_scaled_of = <pair_kernel> &exp_scaled_of[float]
table.of_float.log_of = <pair_kernel> &log_of[float]
table.of_double.reduce_rows = <reduce_kernel> &reduce_rows[double]
table.of_double.reduce_strip = <reduce_kernel> &reduce_strip[double]
table.of_double.merge = <merge_kernel> &merge[double]
table.of_double.finish = <finish_kernel> &finish[double]
table.of_double.spread = <spread_kernel> &spread[double]
table.of_double.apply_rows = <apply_kernel> &apply_rows[double]
table.of_double.apply_strip = <apply_kernel> &apply_strip[double]
table.of_double.few_strip = <few_strip_kernel> &few_strip[double]
table.of_double.few_rows = <few_kernel> &few_rows[double]
table.of_double.backward_rows = <backward_kernel> &backward_rows[double]
table.of_double.load = <load_kernel> &load[double]
table.of_double.store = <store_kernel> &store[double]
table.of_double.exp_of = <exp_kernel> &exp_of[double]
table.of_double.exp_near_of = <pair_kernel> &exp_near_of[double]
table.of_double.exp_scaled_of = <pair_kernel> &exp_scaled_of[double]
table.of_double.log_of = <pair_kernel> &log_of[double]

capsule = PyCapsule_New(&table, "cylsm.KernelTable", NULL)
