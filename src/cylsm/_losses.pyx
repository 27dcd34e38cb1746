# nll_loss, cross_entropy and their gradients.
#
# (a) Labels are checked, and their weights summed, before anything is written. Each is compared once more where it is
#     used as an index, since another thread may have changed it: a label that is no longer one counts as ignored.
# (b) With plain labels the kernels see logits only; the target's logit is picked before they run, and the target's
#     gradient put in its place after. With class probabilities or smoothing the driver's `y` are the targets
#     u = weight * ((1 - s) q + s / C), made tile by tile: the loss is sum(u * -log_probs), the gradient
#     sum(u) * softmax - u.
# (c) Losses are summed per share of rows in double-double, and the shares in order.

import operator

import numpy as np

from libc.math cimport INFINITY, NAN, exp
from libc.stdint cimport INT64_MAX, INT64_MIN, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cimport numpy as cnp
from numpy cimport ndarray

from cylsm._arrays cimport (
    add_rows,
    apart,
    checked_out,
    computes_wide,
    describe,
    join_row_axes,
    new_task,
    no_operand,
    one_axis,
    real_array,
    result_dtype,
    same_memory,
)
from cylsm._driver cimport MOST_PARTS, MOST_RUN, Block, Operand, Task, kernels, row_of, run, run_stride, share_work
from cylsm._kernels cimport (
    FLOAT16,
    INT8,
    INT16,
    INT32,
    INT64,
    LOGSUMEXP,
    MIXTURE,
    MIXTURE_COST,
    SOFTMAX_GRADIENT,
    UINT8,
    UINT16,
    UINT32,
)

cdef extern from "_native.h" nogil:
    void cylsm_require(bint condition)

cnp.import_array()

ctypedef fused real:
    float
    double

ctypedef fused integer:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t

cdef enum:
    IGNORED = -1
    CHECK_ROWS = 8192       # labels that one job checks
    CHUNK = 512             # labels or weights converted at a time
    SUMS = 8                # of losses, taken side by side

cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef type masked = np.ma.MaskedArray

# What a share of the rows adds up to, as double-double.
cdef struct Sum:
    double total
    double carry

cdef struct Share:
    Sum loss
    Sum weight
    Py_ssize_t counted      # rows that are not ignored
    bint bad                # there is a label that is neither a class nor ignore_index

cdef struct Loss:
    Operand target          # labels, or class probabilities
    Operand weight          # class_stride leads from class to class; no data: all 1
    Operand grad_output     # one a row; no data: scale alone
    Operand losses          # where unreduced losses go; no data: they are summed
    bint ignores
    int64_t ignore_index
    uint64_t large_ignore_index     # one that only fits uint64, else 0
    double smoothing
    double scale            # of the gradient
    Share *shares


cdef inline double lost_in_sum(double a, double b, double s) noexcept nogil:
    """What the rounding of s = a + b lost (Knuth's TwoSum); nothing where s is not finite."""
    cdef double v = s - a
    cdef double lost = (a - (s - v)) + (b - v)
    return lost if lost - lost == 0 else 0.0


cdef inline void add(Sum *sum, double term) noexcept nogil:
    cdef double s = sum.total + term
    sum.carry += lost_in_sum(sum.total, term, s)
    sum.total = s


# ---- labels ------------------------------------------------------------------------------------------------------

cdef inline void read_as(const integer *type_only, const Loss *loss, const char *p, Py_ssize_t stride,
                         Py_ssize_t n, int64_t *labels) noexcept nogil:
    """Labels as int64. Unsigned ones that do not fit become the largest int64, which is no class, or the smallest,
    which then stands for ignore_index."""
    cdef const Operand *target = &loss.target
    cdef Py_ssize_t r, i
    cdef integer v
    cdef char *bytes_here = <char *> &v
    for r in range(n):
        for i in range(<Py_ssize_t> sizeof(integer)):
            bytes_here[i] = p[r * stride + (<Py_ssize_t> sizeof(integer) - 1 - i if target.swapped else i)]
        if integer is uint64_t:
            if v <= <uint64_t> INT64_MAX:
                labels[r] = <int64_t> v
            else:
                labels[r] = INT64_MIN if v == loss.large_ignore_index else INT64_MAX
        else:
            labels[r] = <int64_t> v


cdef void read_labels(const Loss *loss, const char *p, Py_ssize_t stride, Py_ssize_t n,
                      int64_t *labels) noexcept nogil:
    cdef const Operand *target = &loss.target
    cdef Py_ssize_t r
    if target.element == INT64 and target.native and stride == 8:
        memcpy(labels, p, n * 8)
    elif target.element == INT64 and target.native:
        for r in range(n):
            labels[r] = (<const int64_t *> (p + r * stride))[0]
    elif target.element == INT32 and target.native:
        for r in range(n):
            labels[r] = (<const int32_t *> (p + r * stride))[0]
    elif target.element == INT8:
        read_as(<const int8_t *> NULL, loss, p, stride, n, labels)
    elif target.element == INT16:
        read_as(<const int16_t *> NULL, loss, p, stride, n, labels)
    elif target.element == INT32:
        read_as(<const int32_t *> NULL, loss, p, stride, n, labels)
    elif target.element == INT64:
        read_as(<const int64_t *> NULL, loss, p, stride, n, labels)
    elif target.element == UINT8:
        read_as(<const uint8_t *> NULL, loss, p, stride, n, labels)
    elif target.element == UINT16:
        read_as(<const uint16_t *> NULL, loss, p, stride, n, labels)
    elif target.element == UINT32:
        read_as(<const uint32_t *> NULL, loss, p, stride, n, labels)
    else:
        read_as(<const uint64_t *> NULL, loss, p, stride, n, labels)


cdef inline bint all_usable(const Loss *loss, const int64_t *labels, Py_ssize_t n, int64_t classes) noexcept nogil:
    """Whether every label is known to be a class that is not ignored, from their sign bits alone, as they mostly are."""
    cdef int64_t signs = 0
    cdef Py_ssize_t r
    if loss.ignores and 0 <= loss.ignore_index < classes:
        return False
    for r in range(n):
        signs |= labels[r] | (classes - 1 - (labels[r] & INT64_MAX))
    return signs >= 0


cdef inline double weight_at(const Loss *loss, Py_ssize_t c) noexcept nogil:
    cdef double w
    cdef const char *p = loss.weight.data + c * loss.weight.class_stride
    if loss.weight.native:
        return (<const float *> p)[0] if loss.weight.item_bytes == 4 else (<const double *> p)[0]
    kernels(True).load(loss.weight.element, loss.weight.swapped, p, 0, 0, 1, 1, &w, 0)
    return w


cdef inline Py_ssize_t runs_of(const Task *task, Py_ssize_t rows) noexcept nogil:
    """How many pieces of at most `rows` rows the runs of the last row axis are cut into."""
    cdef Py_ssize_t across = task.shape[task.ndim - 1]
    return task.rows // across * ((across + rows - 1) // rows)


cdef inline void piece(const Task *task, Py_ssize_t rows, Py_ssize_t index, Block *block) noexcept nogil:
    cdef Py_ssize_t across = task.shape[task.ndim - 1]
    cdef Py_ssize_t per_run = (across + rows - 1) // rows
    block.outer = index // per_run
    block.first = index % per_run * rows
    block.rows = block.run = min(across - block.first, rows)


cdef void check_job(void *context, int thread, Py_ssize_t part) noexcept nogil:
    """Checks the labels of one share."""
    cdef Task *task = <Task *> context
    cdef Loss *loss = <Loss *> task.context
    cdef Py_ssize_t index, pieces = runs_of(task, CHECK_ROWS)
    cdef Block block
    for index in range(part * task.blocks_per_part, min((part + 1) * task.blocks_per_part, pieces)):
        piece(task, CHECK_ROWS, index, &block)
        check_labels(task, loss, row_of(task, &loss.target, &block), block.rows, &loss.shares[part])


cdef void check_labels(Task *task, Loss *loss, const char *p, Py_ssize_t rows, Share *found) noexcept nogil:
    cdef int64_t labels[CHUNK]
    cdef Py_ssize_t stride = loss.target.row_strides[task.ndim - 1]
    cdef Py_ssize_t chunk, first, r, n, ignored, bad
    for chunk in range((rows + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        n = min(rows - first, <Py_ssize_t> CHUNK)
        read_labels(loss, p + first * stride, stride, n, labels)
        ignored = bad = 0
        if not all_usable(loss, labels, n, task.classes):
            for r in range(n):
                if loss.ignores and labels[r] == loss.ignore_index:
                    ignored += 1
                else:
                    bad += <uint64_t> labels[r] >= <uint64_t> task.classes
        found.counted += n - ignored
        if bad > 0:
            found.bad = True
        elif loss.weight.data != NULL:
            for r in range(n):
                if not (loss.ignores and labels[r] == loss.ignore_index):
                    add(&found.weight, weight_at(loss, labels[r]))


cdef inline int64_t usable(int64_t label, bint ignores, int64_t ignore_index, int64_t classes) noexcept nogil:
    if (ignores and label == ignore_index) or <uint64_t> label >= <uint64_t> classes:
        return IGNORED
    return label


# ---- what is done before and after a block -------------------------------------------------------------------------

cdef inline int64_t *labels_of(const Block *block) noexcept nogil:
    return <int64_t *> block.scratch


cdef inline real *picked_of(const Block *block, const real *type_only) noexcept nogil:
    return <real *> (block.scratch + 8 * block.rows)


cdef inline real *weights_of(const Block *block, const real *type_only) noexcept nogil:
    return <real *> (block.scratch + 16 * block.rows)


cdef void read_factors(Task *task, Block *block, real *factor) noexcept nogil:
    """The gradient's factor of every row, still without the weight of its label."""
    cdef Loss *loss = <Loss *> task.context
    cdef Py_ssize_t r
    if loss.grad_output.data == NULL:
        for r in range(block.rows):
            factor[r] = <real> loss.scale
    else:
        kernels(task.wide).load(loss.grad_output.element, loss.grad_output.swapped,
                                row_of(task, &loss.grad_output, block), 0,
                                loss.grad_output.row_strides[task.ndim - 1], 1, block.rows, factor, 0)
        for r in range(block.rows):
            factor[r] = <real> (factor[r] * loss.scale)


cdef void pick_run(const Task *task, const char *logits, Py_ssize_t rows, bint all_count, const int64_t *labels,
                   real *picked) noexcept nogil:
    """The targets' logits; of an ignored row that of class 0. Not inline, as put_run, for the registers."""
    cdef Py_ssize_t stride = task.x.row_strides[task.ndim - 1], class_stride = task.x.class_stride, r
    if task.x.native and all_count:
        for r in range(rows):
            picked[r] = (<const real *> (logits + r * stride + labels[r] * class_stride))[0]
    elif task.x.native:
        for r in range(rows):
            picked[r] = (<const real *> (logits + r * stride + (labels[r] if labels[r] > 0 else 0) * class_stride))[0]
    else:
        for r in range(rows):
            kernels(task.wide).load(task.x.element, task.x.swapped,
                                    logits + r * stride + (labels[r] if labels[r] > 0 else 0) * class_stride, 0, 0, 1, 1,
                                    picked + r, 0)


cdef inline void pick(Task *task, Block *block, real *factor) noexcept nogil:
    """Labels, weights and logits of the targets, and the gradient's factors. A block with rows that are ignored is marked."""
    cdef Loss *loss = <Loss *> task.context
    cdef int64_t *labels = labels_of(block)
    cdef real *picked = picked_of(block, factor)
    cdef real *weights = weights_of(block, factor)
    cdef const char *logits = row_of(task, &task.x, block)
    cdef Py_ssize_t r
    cdef bint ignores = loss.ignores, all_count
    cdef int64_t ignore_index = loss.ignore_index, classes = task.classes
    read_labels(loss, row_of(task, &loss.target, block), loss.target.row_strides[task.ndim - 1], block.rows,
                labels)
    for r in range(block.rows):
        weights[r] = 1
    all_count = all_usable(loss, labels, block.rows, classes)
    if not all_count:
        for r in range(block.rows):
            labels[r] = usable(labels[r], ignores, ignore_index, classes)
            weights[r] = <real> (labels[r] != IGNORED)
    block.marked = not all_count
    if loss.weight.data != NULL:
        for r in range(block.rows):
            if labels[r] != IGNORED:
                weights[r] = <real> weight_at(loss, labels[r])
    for r in range(block.rows // block.run):
        pick_run(task, logits, block.run, all_count, labels + r * block.run, picked + r * block.run)
        logits += run_stride(task, &task.x)
    if task.has_factor:
        read_factors(task, block, factor)
        if task.operation == SOFTMAX_GRADIENT:
            for r in range(block.rows):
                factor[r] = factor[r] * weights[r]


cdef void open_labels(Task *task, Block *block) noexcept nogil:
    if task.wide:
        pick(task, block, <double *> block.factor)
    else:
        pick(task, block, <float *> block.factor)


cdef void open_probabilities(Task *task, Block *block) noexcept nogil:
    if task.has_factor:
        if task.wide:
            read_factors(task, block, <double *> block.factor)
        else:
            read_factors(task, block, <float *> block.factor)


cdef inline void fill(Task *task, Block *block, Py_ssize_t first, Py_ssize_t classes, bint strip, real *u,
                      Py_ssize_t step) noexcept nogil:
    """u = weight * ((1 - s) q + s / C), where q is 1 at the label or the class probability."""
    cdef Loss *loss = <Loss *> task.context
    cdef bint labelled = task.open == &open_labels
    cdef Py_ssize_t row_step = 1 if strip else step, class_step = step if strip else 1
    cdef Py_ssize_t stride = loss.target.row_strides[task.ndim - 1]
    cdef double keep = 1.0 - loss.smoothing, even = loss.smoothing / task.classes
    cdef double w[CHUNK]
    cdef Py_ssize_t chunk, c, r, start, n
    cdef char *p
    if not labelled:
        p = row_of(task, &loss.target, block) + first * loss.target.class_stride
        if strip:
            kernels(task.wide).load(loss.target.element, loss.target.swapped, p, loss.target.class_stride, stride, classes,
                                    block.rows, u, step)
        else:
            kernels(task.wide).load(loss.target.element, loss.target.swapped, p, stride, loss.target.class_stride,
                                    block.rows, classes, u, step)
        if loss.weight.data == NULL and loss.smoothing == 0:
            return
    for chunk in range((classes + CHUNK - 1) // CHUNK):
        start = chunk * CHUNK
        n = min(classes - start, <Py_ssize_t> CHUNK)
        for c in range(n):
            w[c] = 1.0 if loss.weight.data == NULL else weight_at(loss, first + start + c)
        for r in range(block.rows):
            for c in range(n):
                if labelled:
                    u[r * row_step + (start + c) * class_step] = <real> (
                        w[c] * even if labels_of(block)[r] != IGNORED else 0.0)
                else:
                    u[r * row_step + (start + c) * class_step] = <real> (
                        w[c] * (keep * u[r * row_step + (start + c) * class_step] + even))
            if labelled and first + start <= labels_of(block)[r] < first + start + n:
                c = labels_of(block)[r] - first - start
                u[r * row_step + (start + c) * class_step] = <real> (w[c] * (keep + even))


cdef void fill_targets(Task *task, Block *block, Py_ssize_t first, Py_ssize_t classes, bint strip, void *u,
                       Py_ssize_t step) noexcept nogil:
    if task.wide:
        fill(task, block, first, classes, strip, <double *> u, step)
    else:
        fill(task, block, first, classes, strip, <float *> u, step)


cdef inline void keep_losses(Task *task, Block *block, real *losses) noexcept nogil:
    """Writes the rows' losses, or adds them to their share's."""
    cdef Loss *loss = <Loss *> task.context
    cdef double sums[SUMS]
    cdef double lost[SUMS]
    cdef double s, v, term
    cdef Py_ssize_t r, i, n = block.rows - block.rows % SUMS
    if loss.losses.data != NULL:
        kernels(task.wide).store(loss.losses.element, losses, 0, 1, block.rows,
                                 row_of(task, &loss.losses, block), 0, loss.losses.row_strides[task.ndim - 1])
        return
    # Several sums: one chain of double-double additions would take longer than the rows themselves. What the additions lose
    # is kept, so that how rows are grouped shows in a result only where they cancel.
    for i in range(SUMS):
        sums[i] = lost[i] = 0
    for r in range(n // SUMS):
        for i in range(SUMS):
            term = losses[r * SUMS + i]
            s = sums[i] + term
            v = s - sums[i]
            lost[i] += (sums[i] - (s - v)) + (term - v)
            sums[i] = s
    for i in range(SUMS):
        add(&loss.shares[block.part].loss, sums[i])
        add(&loss.shares[block.part].loss, lost[i] if lost[i] - lost[i] == 0 else 0)
    for r in range(n, block.rows):
        add(&loss.shares[block.part].loss, losses[r])


cdef void put_one(Task *task, char *p, real value) noexcept nogil:
    if task.out.native:
        (<real *> p)[0] = value
    else:
        kernels(task.wide).store(task.out.element, &value, 0, 1, 1, p, 0, 0)


cdef void put_target(Task *task, char *p, real picked, real top, real others, real scale, real factor) noexcept nogil:
    """The target's gradient where `out` is no native array. What stands in a float16 one is rounded already."""
    cdef real here
    if task.out.element == FLOAT16:
        here = <real> (exp(<double> picked - top) * scale)
    else:
        kernels(task.wide).load(task.out.element, False, p, 0, 0, 1, 1, &here, 0)
    put_one(task, p, -others if picked == top else here - factor)


cdef void fill_row(Task *task, char *p, Py_ssize_t classes, real value) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(classes):
        put_one(task, p + c * task.out.class_stride, value)


cdef void put_run(Task *task, char *out, Py_ssize_t rows, bint marked, const int64_t *labels, const real *picked,
                  const real *top, const real *others, const real *scale, const real *factor) noexcept nogil:
    """The targets' own gradients: factor * (p - 1), as minus the others' where p is the largest."""
    cdef Py_ssize_t stride = task.out.row_strides[task.ndim - 1], class_stride = task.out.class_stride, r
    cdef real there[MOST_RUN]
    cdef real of_largest, of_another
    cylsm_require(rows <= MOST_RUN)
    if task.out.native:
        # The choice in a loop of its own, which is vectorised: a branch would be mispredicted where classes are few. Of an
        # ignored row class 0 is written here.
        for r in range(rows):
            there[r] = (<real *> (out + r * stride + (labels[r] if labels[r] > 0 else 0) * class_stride))[0]
        for r in range(rows):
            of_largest, of_another = -others[r], there[r] - factor[r]
            there[r] = of_largest if picked[r] == top[r] else of_another
        for r in range(rows):
            (<real *> (out + r * stride + (labels[r] if labels[r] > 0 else 0) * class_stride))[0] = there[r]
    else:
        for r in range(rows):
            if labels[r] != IGNORED:
                put_target(task, out + r * stride + labels[r] * class_stride, picked[r], top[r], others[r], scale[r],
                           factor[r])
    for r in range(rows if marked else 0):
        if labels[r] == IGNORED:
            fill_row(task, out + r * stride, task.classes, <real> 0)


cdef inline void put_targets(Task *task, Block *block, const real *picked, const real *factor) noexcept nogil:
    cdef const real *top = <const real *> block.state.top + block.merged
    cdef const real *others = <const real *> block.state.others + block.merged
    cdef const real *scale = <const real *> block.state.scale + block.merged
    cdef char *out = row_of(task, &task.out, block)
    cdef Py_ssize_t i, r
    for i in range(block.rows // block.run):
        r = i * block.run
        put_run(task, out, block.run, block.marked, labels_of(block) + r, picked + r, top + r, others + r, scale + r, factor + r)
        out += run_stride(task, &task.out)


cdef inline void close_picked(Task *task, Block *block, real *factor) noexcept nogil:
    """Losses of plain labels, and the targets' own gradients."""
    cdef const Loss *loss = <const Loss *> task.context
    cdef const real *top = <const real *> block.state.top + block.merged
    cdef const real *log_sum = <const real *> block.state.log_sum + block.merged
    cdef const real *log_low = <const real *> block.state.log_low + block.merged
    cdef const int64_t *labels = labels_of(block)
    cdef real *picked = picked_of(block, factor)
    cdef real *weights = weights_of(block, factor)
    cdef real nll
    cdef double exact
    cdef Py_ssize_t r
    if task.out.data != NULL:
        put_targets(task, block, picked, factor)
    if real is float and loss.weight.data != NULL:
        # Rounded once, after the weight. Unweighted losses do without: the conversions take a tenth of two classes' time.
        for r in range(block.rows):
            exact = (<double> top[r] - picked[r]) + (<double> log_sum[r] + log_low[r])
            picked[r] = 0 if weights[r] == 0 and exact == INFINITY else <real> (weights[r] * exact)
    else:
        for r in range(block.rows):
            nll = (top[r] - picked[r]) + log_sum[r]
            picked[r] = 0 if weights[r] == 0 and nll == <real> INFINITY else weights[r] * nll
    for r in range(block.rows if block.marked else 0):
        if labels[r] == IGNORED:
            picked[r] = 0
    keep_losses(task, block, picked)


cdef void close_labels(Task *task, Block *block) noexcept nogil:
    if task.wide:
        close_picked(task, block, <double *> block.factor)
    else:
        close_picked(task, block, <float *> block.factor)


cdef inline void close_costs(Task *task, Block *block, real *losses) noexcept nogil:
    """Losses of class probabilities or smoothed labels; ignored rows' gradients."""
    cdef const real *log_sum = <const real *> block.state.log_sum + block.merged
    cdef const real *log_low = <const real *> block.state.log_low + block.merged
    cdef const real *mass = <const real *> block.state.mass + block.merged
    cdef const real *mass_carry = <const real *> block.state.mass_carry + block.merged
    cdef const real *cost = <const real *> block.state.cost + block.merged
    cdef const real *carry = <const real *> block.state.carry + block.merged
    cdef bint labelled = task.open == &open_labels
    cdef char *out
    cdef Py_ssize_t r
    for r in range(block.rows):
        losses[r] = <real> (((<double> mass[r] + mass_carry[r]) * (<double> log_sum[r] + log_low[r]) + carry[r]) + cost[r])
        if labelled and labels_of(block)[r] == IGNORED:
            losses[r] = 0
    if labelled and task.out.data != NULL:
        out = row_of(task, &task.out, block)
        for r in range(block.rows):
            if labels_of(block)[r] == IGNORED:
                fill_row(task, out + r // block.run * run_stride(task, &task.out)
                         + r % block.run * task.out.row_strides[task.ndim - 1], task.classes, <real> 0)
    keep_losses(task, block, losses)


cdef void close_mixture(Task *task, Block *block) noexcept nogil:
    if task.wide:
        close_costs(task, block, picked_of(block, <double *> block.factor))
    else:
        close_costs(task, block, picked_of(block, <float *> block.factor))


# ---- negative log-likelihood: no kernel, one element a row ---------------------------------------------------------

cdef void nll_job(void *context, int thread, Py_ssize_t part) noexcept nogil:
    """The rows of one share."""
    cdef Task *task = <Task *> context
    cdef Py_ssize_t index, pieces = runs_of(task, CHUNK)
    cdef Block block
    cdef double factor[CHUNK]
    cdef double scratch[3 * CHUNK]
    block.factor = factor
    block.scratch = <char *> scratch
    block.part = part
    for index in range(part * task.blocks_per_part, min((part + 1) * task.blocks_per_part, pieces)):
        piece(task, CHUNK, index, &block)
        open_labels(task, &block)
        if task.wide:
            nll_rows(task, &block, <double *> block.factor)
        else:
            nll_rows(task, &block, <float *> block.factor)


cdef inline void nll_rows(Task *task, Block *block, real *factor) noexcept nogil:
    cdef int64_t *labels = labels_of(block)
    cdef real *picked = picked_of(block, factor)
    cdef real *weights = weights_of(block, factor)
    cdef char *out
    cdef Py_ssize_t r, stride
    for r in range(block.rows):
        # 0 - x: a loss of 0 is not -0.
        picked[r] = 0 if labels[r] == IGNORED or (weights[r] == 0 and picked[r] == <real> -INFINITY) else 0 - weights[r] * picked[r]
    keep_losses(task, block, picked)
    if task.out.data != NULL:
        out = row_of(task, &task.out, block)
        stride = task.out.row_strides[task.ndim - 1]
        for r in range(block.rows):
            # A factor that is nan, as where "mean" divides by 0, makes the whole row nan.
            fill_row(task, out + r * stride, task.classes,
                     factor[r] if labels[r] != IGNORED and factor[r] != factor[r] else <real> 0)
            if labels[r] != IGNORED:
                put_one(task, out + r * stride + labels[r] * task.out.class_stride, <real> 0 - weights[r] * factor[r])


# ---- arguments ---------------------------------------------------------------------------------------------------

cdef tuple shape_of(ndarray a):
    return (<object> a).shape


cdef tuple without(ndarray a, int axis):
    shape = shape_of(a)
    return shape[:axis] + shape[axis + 1:]


cdef ndarray target_array(object target, ndarray logits, int axis, str name, bint probabilities_allowed):
    """The target: integers, one a row, or class probabilities shaped like the logits."""
    cdef ndarray t
    rest = without(logits, axis)
    if type(target) is ndarray:
        t = <ndarray> target
    else:
        if isinstance(target, masked):
            raise TypeError("target must not be a masked array: use ignore_index for what is masked")
        try:
            t = np.asarray(target)
        except ValueError as error:
            raise ValueError(f"target must be an array of class labels: {error}") from None
        except TypeError as error:
            raise TypeError(f"target must be an array of class labels: {error}") from None
        if t.size == 0 and not isinstance(target, np.ndarray) and t.dtype == float64:
            t = t.astype(np.int64)
    kind = t.dtype.kind
    if kind == "b":
        raise TypeError("target must hold integer class labels, not booleans: use target.astype(int) if 0 and 1 are meant")
    if kind in "iu":
        if shape_of(t) != rest:
            if shape_of(t) == shape_of(logits) and probabilities_allowed:
                raise ValueError(f"target of integers must have shape {rest}, one label a row, not {shape_of(t)}: for "
                                 "class probabilities pass floats (target.astype(float)), for one-hot rows "
                                 f"target.argmax({axis})")
            if shape_of(t) == shape_of(logits):
                raise ValueError(f"target must have shape {rest}, one label a row, not {shape_of(t)}: for one-hot rows "
                                 f"pass target.argmax({axis})")
            raise ValueError(f"target must have shape {rest}, that of {name} without axis {axis}, not {shape_of(t)}")
        return t
    if kind == "f" and t.dtype.itemsize <= 8:
        if not probabilities_allowed:
            raise TypeError(f"target must hold integer class labels, not {t.dtype}: use target.astype(int) if they are "
                            "whole numbers; cross_entropy takes class probabilities")
        if shape_of(t) != shape_of(logits):
            if shape_of(t) == rest:
                raise ValueError(f"target of floats must be class probabilities of shape {shape_of(logits)}, not "
                                 f"{shape_of(t)}: for class labels pass integers (target.astype(int))")
            raise ValueError(f"target must have shape {rest} (class labels) or {shape_of(logits)} (class probabilities), "
                             f"not {shape_of(t)}")
        return t
    raise TypeError(f"target must hold integer class labels{' or float class probabilities' if probabilities_allowed else ''}"
                    f", not {t.dtype}")


cdef double checked_smoothing(object label_smoothing) except? -1:
    cdef double s
    if isinstance(label_smoothing, masked):
        raise TypeError(f"label_smoothing must not be a masked array, as {label_smoothing!r} is")
    try:
        s = label_smoothing
    except OverflowError:
        s = INFINITY
    except (TypeError, ValueError):
        raise TypeError(f"label_smoothing must be a real number, not {label_smoothing!r}") from None
    if not 0 <= s <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], not {label_smoothing!r}")
    return s


cdef object checked_ignore_index(object ignore_index):
    if ignore_index is None or type(ignore_index) is int:
        return ignore_index
    try:
        if isinstance(ignore_index, (bool, np.bool_)):
            raise TypeError
        return operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer or None, not {ignore_index!r}") from None


cdef int set_ignored(Loss *loss, ndarray target, object ignore_index) except -1:
    """No label equals an ignore_index that does not fit the labels' dtype: then nothing is ignored."""
    loss.large_ignore_index = 0
    loss.ignore_index = 0
    loss.ignores = False
    if ignore_index is None or target.dtype.kind == "f":
        return 0
    if -(1 << 63) <= ignore_index < (1 << 63):
        loss.ignores = True
        loss.ignore_index = ignore_index
    elif ignore_index > 0 and ignore_index < (1 << 64):
        loss.ignores = True
        loss.ignore_index = INT64_MIN
        loss.large_ignore_index = ignore_index
    return 0


cdef int raise_bad_label(ndarray target, Py_ssize_t classes, object ignore_index) except -1:
    """The first label, in the order of the array, that is neither a class nor ignored."""
    bad = (target < 0) | (target >= classes)
    if ignore_index is not None:
        bad &= target != ignore_index
    for position in np.argwhere(bad)[:1]:
        where = f"[{', '.join(map(str, position))}]" if target.ndim else ""
        hint = "" if ignore_index is None else f" and is not ignore_index = {ignore_index}"
        raise IndexError(f"target{where} = {target[tuple(position)]} is out of range for {classes} classes{hint}")
    return 0


cdef object loss_scalar(double value, bint wide):
    if wide:
        return np.float64(value)
    # The cast is C's: NumPy's warns where it overflows.
    return np.float32(<double> <float> value)


# ---- the functions -----------------------------------------------------------------------------------------------

cdef object compute(object x, str name, object target_given, object axis_given, object weight_given, object ignore_index,
                    object reduction, object label_smoothing, bint with_grad, object grad_output, object out,
                    bint is_nll):
    """What the four losses share: checks, in the order of the arguments; the pass over the labels; the task."""
    cdef Task task
    cdef Loss loss
    cdef Operand *operands[5]
    cdef int count = 0, axis, i, k
    cdef ndarray logits = real_array(x, name)
    cdef ndarray target
    cdef ndarray weight = None
    cdef ndarray grads = None
    cdef ndarray losses = None
    cdef ndarray result = None
    cdef bint wide = computes_wide(logits), labelled, none, mean
    cdef double denominator = 1.0
    cdef Sum total, weights
    cdef Py_ssize_t counted = 0, part, parts, rows, shares
    axis = one_axis(axis_given, logits.ndim, name)
    if logits.shape[axis] == 0:
        raise ValueError(f"{name} must have classes, but axis {axis} of its shape {shape_of(logits)} is empty")
    target = target_array(target_given, logits, axis, name, not is_nll)
    labelled = target.dtype.kind != "f"
    if weight_given is not None:
        weight = real_array(weight_given, "weight")
        if weight.ndim != 1 or weight.shape[0] != logits.shape[axis]:
            raise ValueError(f"weight must have shape ({logits.shape[axis]},), one a class, not {shape_of(weight)}")
    ignore_index = checked_ignore_index(ignore_index)
    if not labelled and ignore_index is not None and ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative or None with class probabilities, not {ignore_index}")
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', not {reduction!r}")
    none = reduction == "none"
    mean = reduction == "mean"
    loss.smoothing = 0.0 if is_nll else checked_smoothing(label_smoothing)
    loss.scale = 1.0
    rest = without(logits, axis)
    if grad_output is not None:
        grads = real_array(grad_output, "grad_output")
        if grads.ndim == 0:
            loss.scale = float(grads[()])
            grads = None
        elif not none:
            raise ValueError(f"grad_output must be a scalar for reduction={reduction!r}, but has the shape {shape_of(grads)}")
        elif shape_of(grads) != rest:
            raise ValueError(f"grad_output must be a scalar or have shape {rest}, not {shape_of(grads)}")
    if with_grad:
        result = checked_out(out, logits, result_dtype(logits))

    new_task(&task, 0, wide)
    set_ignored(&loss, target, ignore_index)
    no_operand(&loss.weight)
    no_operand(&loss.grad_output)
    no_operand(&loss.losses)
    if out is not None:
        # What is read a row at a time must not be what other rows' gradients are written to.
        logits = apart(logits, result)
        if labelled:
            target = target.copy() if np.may_share_memory(target, result) else target
        else:
            target = apart(target, result)
        if weight is not None and np.may_share_memory(weight, result):
            weight = weight.copy()
        if grads is not None and np.may_share_memory(grads, result):
            grads = grads.copy()
    k = 0
    for i in range(logits.ndim):
        if i != axis:
            task.shape[k] = logits.shape[i]
            k += 1
    task.ndim = k
    task.classes = logits.shape[axis]
    add_rows(&task, &task.x, logits, wide, axis)
    add_rows(&task, &loss.target, target, wide, -1 if labelled else axis)
    if labelled:
        loss.target.native = not loss.target.swapped and cnp.PyArray_ISALIGNED(target)
    operands[0] = &task.x
    operands[1] = &loss.target
    count = 2
    if weight is not None:
        describe(&loss.weight, weight, weight.dtype == float64)
        loss.weight.class_stride = weight.strides[0]
    if none:
        losses = np.empty(rest, float64 if wide else float32)
        add_rows(&task, &loss.losses, losses, wide, -1)
        operands[count] = &loss.losses
        count += 1
    if with_grad:
        add_rows(&task, &task.out, result, wide, axis)
        operands[count] = &task.out
        count += 1
        task.in_place = out is not None and (same_memory(logits, result) or same_memory(target, result))
        task.fresh = out is None
        if grads is not None:
            add_rows(&task, &loss.grad_output, grads, wide, -1)
            operands[count] = &loss.grad_output
            count += 1
        task.has_factor = True
    task.adds_up = not none
    join_row_axes(&task, operands, count)
    rows = task.rows
    task.context = &loss

    shares = min(rows, <Py_ssize_t> MOST_PARTS)
    loss.shares = <Share *> calloc(max(shares, <Py_ssize_t> 1), sizeof(Share))
    if loss.shares == NULL:
        raise MemoryError("cylsm could not allocate memory for the sums of the losses")
    try:
        parts = 0
        weights.total = weights.carry = 0
        if labelled and rows > 0:
            parts = cut(&task, runs_of(&task, CHECK_ROWS))
            with nogil:
                share_work(&check_job, &task, parts, rows)
            for part in range(parts):
                if loss.shares[part].bad:
                    raise_bad_label(target, task.classes, ignore_index)
                counted += loss.shares[part].counted
                add(&weights, loss.shares[part].weight.total)
                weights.carry += loss.shares[part].weight.carry
        if mean:
            if not labelled:
                denominator = <double> rows
            elif weight is None:
                denominator = <double> counted
            else:
                denominator = weights.total + weights.carry
            loss.scale = loss.scale / denominator if denominator != 0 else NAN
        if rows > 0:
            if is_nll:
                task.open = &open_labels
                parts = cut(&task, runs_of(&task, CHUNK))
                with nogil:
                    share_work(&nll_job, &task, parts, rows * task.classes if with_grad else rows)
            else:
                if labelled:
                    task.open = &open_labels
                else:
                    task.open = &open_probabilities
                if labelled and loss.smoothing == 0:
                    task.operation = SOFTMAX_GRADIENT if with_grad else LOGSUMEXP
                    task.close = &close_labels
                else:
                    task.operation = MIXTURE if with_grad else MIXTURE_COST
                    task.fill_y = &fill_targets
                    task.close = &close_mixture
                task.row_scratch = 24
                run(&task)
                parts = task.parts
        if none:
            value = losses if losses.ndim > 0 else losses[()]
        else:
            total.total = total.carry = 0
            for part in range(parts):
                add(&total, loss.shares[part].loss.total)
                total.carry += loss.shares[part].loss.carry
            if denominator == 0:
                value = loss_scalar(NAN, wide)
            else:
                value = loss_scalar((total.total + total.carry) / denominator, wide)
    finally:
        free(loss.shares)
    return (value, result) if with_grad else value


cdef Py_ssize_t cut(Task *task, Py_ssize_t pieces) noexcept:
    """Number of shares for so many pieces."""
    task.blocks_per_part = (pieces + MOST_PARTS - 1) // MOST_PARTS
    return (pieces + task.blocks_per_part - 1) // task.blocks_per_part


def nll_loss(log_probs, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean"):
    """Negative log-likelihood of class labels, from log-probabilities.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities in nats, such as the result of `log_softmax`. float32 and float64 are read as they are,
        float16 as float32, integers and booleans as float64.
    target : array_like of int
        Class labels, of the shape of `log_probs` without `axis`.
    axis : int, default -1
        The axis of the classes; 1 is PyTorch's layout (N, C, d1, ...).
    weight : array_like, optional
        A weight for each class, of shape (C,).
    ignore_index : int or None, default -100
        Label of rows that do not count; None: there is none.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the summed weights of the labels that count.

    Returns
    -------
    ndarray or scalar
        The loss in nats: a scalar, or for "none" an array of the shape of `target`; float32 where `log_probs` is
        float16 or float32, else float64.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`.
    TypeError
        If a dtype is not accepted: floating and boolean labels are not.
    ValueError
        If shapes do not fit, there is no class, or `reduction` is unknown.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy : the same from logits, in one pass.
    nll_loss_with_grad : with the gradient.

    Notes
    -----
    A row's loss is ``-weight[t] * log_probs[t]`` with its label t. Where no row counts, the mean is nan.

    Examples
    --------
    >>> import numpy as np, cylsm
    >>> float(cylsm.nll_loss(np.log([[0.5, 0.5], [0.25, 0.75]]), [0, 0]))
    1.0397207708399179
    """
    return compute(log_probs, "log_probs", target, axis, weight, ignore_index, reduction, 0.0, False, None, None, True)


def nll_loss_with_grad(log_probs, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean",
                       grad_output=None, out=None):
    """Negative log-likelihood of class labels and its gradient with respect to the log-probabilities.

    Parameters
    ----------
    log_probs : array_like
        Log-probabilities in nats, such as the result of `log_softmax`. float32 and float64 are read as they are,
        float16 as float32, integers and booleans as float64.
    target : array_like of int
        Class labels, of the shape of `log_probs` without `axis`.
    axis : int, default -1
        The axis of the classes; 1 is PyTorch's layout (N, C, d1, ...).
    weight : array_like, optional
        A weight for each class, of shape (C,).
    ignore_index : int or None, default -100
        Label of rows that do not count; None: there is none.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the summed weights of the labels that count.
    grad_output : array_like, optional
        Gradient with respect to the loss: a scalar, or for "none" also an array of the shape of `target`. 1 by default.
    out : ndarray, optional
        Where to write the gradient: of the shape of `log_probs` and the gradient's dtype. It may be an input.

    Returns
    -------
    loss : ndarray or scalar
        As `nll_loss` returns it.
    gradient : ndarray
        Of the shape of `log_probs`; float16, float32 or float64 as `log_probs`, float64 for integers.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`.
    TypeError
        If a dtype is not accepted, or `out` is no array of the gradient's dtype.
    ValueError
        If shapes do not fit, there is no class, `reduction` is unknown, or `out` is read-only.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    nll_loss : the loss alone.

    Notes
    -----
    The gradient is ``-weight[t]`` times the row's `grad_output` at the label t, divided by the summed weights for
    "mean", and 0 elsewhere. Where the weights of the rows that count sum to 0, "mean" and those rows' gradients are nan.

    Examples
    --------
    >>> import numpy as np, cylsm
    >>> loss, gradient = cylsm.nll_loss_with_grad(np.log([[0.5, 0.5], [0.25, 0.75]]), [0, 0])
    >>> gradient
    array([[-0.5,  0. ],
           [-0.5,  0. ]])
    """
    return compute(log_probs, "log_probs", target, axis, weight, ignore_index, reduction, 0.0, True, grad_output, out,
                   True)


def cross_entropy(logits, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Cross-entropy between logits and class labels or class probabilities.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities. float32 and float64 are computed as they are, float16 in float32, integers and
        booleans in float64.
    target : array_like
        Integers: class labels, of the shape of `logits` without `axis`. Floats: class probabilities, of the shape of
        `logits`; that they sum to 1 is not checked.
    axis : int, default -1
        The axis of the classes; 1 is PyTorch's layout (N, C, d1, ...).
    weight : array_like, optional
        A weight for each class, of shape (C,).
    ignore_index : int or None, default -100
        Label of rows that do not count; None: there is none.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the summed weights of the labels that count, or by the number of rows with class
        probabilities.
    label_smoothing : float, default 0.0
        Share s, from 0 to 1, of each row's target that is spread evenly over all classes.

    Returns
    -------
    ndarray or scalar
        The loss in nats: a scalar, or for "none" an array of the shape of `logits` without `axis`; float32 where
        `logits` is float16 or float32, else float64.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`.
    TypeError
        If a dtype is not accepted: boolean labels are not.
    ValueError
        If shapes do not fit, there is no class, `reduction` is unknown, `label_smoothing` is not in [0, 1], or
        `ignore_index` is not negative with class probabilities.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy_with_grad : with the gradient, in one pass.
    nll_loss : from log-probabilities.

    Notes
    -----
    With lp the log-softmax of a row, w the weights, s the smoothing and C the number of classes, the loss of a label
    t is ``-(1 - s) w[t] lp[t] - s / C * sum(w * lp)``, that of class probabilities q
    ``-sum(w * ((1 - s) q + s / C) * lp)``, as in PyTorch. The log-probabilities are never stored, and the loss of a
    confident row keeps all its digits. A class of probability, weight and smoothing 0 adds 0 even where lp is -inf.

    Examples
    --------
    >>> import numpy as np, cylsm
    >>> float(cylsm.cross_entropy([[1.0, 1.0, 1.0, 1.0]], [2]))
    1.3862943611198906
    >>> float(cylsm.cross_entropy(np.array([[20.0, 0.0]]), [0]))
    2.061153620314381e-09
    """
    return compute(logits, "logits", target, axis, weight, ignore_index, reduction, label_smoothing, False, None, None,
                   False)


def cross_entropy_with_grad(logits, target, axis=-1, *, weight=None, ignore_index=-100, reduction="mean",
                            label_smoothing=0.0, grad_output=None, out=None):
    """Cross-entropy and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities. float32 and float64 are computed as they are, float16 in float32, integers and
        booleans in float64.
    target : array_like
        Integers: class labels, of the shape of `logits` without `axis`. Floats: class probabilities, of the shape of
        `logits`; that they sum to 1 is not checked.
    axis : int, default -1
        The axis of the classes; 1 is PyTorch's layout (N, C, d1, ...).
    weight : array_like, optional
        A weight for each class, of shape (C,).
    ignore_index : int or None, default -100
        Label of rows that do not count; None: there is none. Their gradient is exactly 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the summed weights of the labels that count, or by the number of rows with class
        probabilities.
    label_smoothing : float, default 0.0
        Share s, from 0 to 1, of each row's target that is spread evenly over all classes.
    grad_output : array_like, optional
        Gradient with respect to the loss: a scalar, or for "none" also one number a row. 1 by default.
    out : ndarray, optional
        Where to write the gradient: of the shape of `logits` and the gradient's dtype. It may be an input.

    Returns
    -------
    loss : ndarray or scalar
        As `cross_entropy` returns it.
    gradient : ndarray
        Of the shape of `logits`; float16, float32 or float64 as `logits`, float64 for integers.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`.
    TypeError
        If a dtype is not accepted, or `out` is no array of the gradient's dtype.
    ValueError
        If shapes do not fit, there is no class, `reduction` is unknown, `label_smoothing` is not in [0, 1],
        `ignore_index` is not negative with class probabilities, or `out` is read-only.
    numpy.exceptions.AxisError
        If `axis` is out of range.

    See Also
    --------
    cross_entropy : the loss alone.

    Notes
    -----
    With p the softmax of a row and u the target that its loss is ``-sum(u * log(p))`` of (`cross_entropy` says how
    weights and smoothing enter), the gradient is ``sum(u) * p - u``, times the row's `grad_output`, divided for "mean".
    Where p is near 1, ``p - 1`` is computed as minus the probability of the other classes.

    Examples
    --------
    >>> import cylsm
    >>> loss, gradient = cylsm.cross_entropy_with_grad([[1.0, 1.0, 1.0, 1.0]], [2])
    >>> gradient
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """
    return compute(logits, "logits", target, axis, weight, ignore_index, reduction, label_smoothing, True, grad_output,
                   out, False)
