# softmax of short rows of float, a few at a time, without a state.

cdef inline float row_top(Py_ssize_t whole, const float *x, Py_ssize_t classes) noexcept nogil:
    """The largest element of a row of `whole` vectors and perhaps the beginning of one more."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef float top[MOST_LANES]
    for j in range(lanes):
        top[j] = lowest(x)
    for i in range(whole):
        turn_by_turn()
        raise_lanes(SOFTMAX, x + i * lanes, x, top)
    if classes % lanes != 0:
        raise_lanes(SOFTMAX, x + classes - lanes, x, top)
    return folded(True, top, lanes)


cdef inline void exps_of_vector(const float *x, float top, int known, float *exps, double *total) noexcept nogil:
    """Adds all but the first `known` to their lanes' sums."""
    cdef int j
    for j in range(<int> lanes_of(x)):
        exps[j] = exp_of_lane(ROUNDED, x[j], &top, 0, 0)
    for j in range(<int> lanes_of(x)):
        total[j] += <double> exps[j] if j >= known else 0.0


cdef inline double row_exps(Py_ssize_t whole, const float *x, Py_ssize_t classes, float top, float *exps, Py_ssize_t ahead,
                            Py_ssize_t exps_ahead) noexcept nogil:
    """Stores a row's exps, relative to its top, and returns their sum. Meanwhile x of the next batch is asked for."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef double total[MOST_LANES]
    cdef float here[MOST_LANES]
    cdef float last[MOST_LANES]
    for j in range(lanes):
        total[j] = 0
    if classes % lanes != 0:
        # It overlaps the one before. The exps may replace x: it is computed before anything is stored.
        exps_of_vector(x + classes - lanes, top, <int> (lanes - classes % lanes), last, total)
    for i in range(whole):
        ask_for(x + i * lanes + ahead, lanes)
        ask_for(exps + i * lanes + exps_ahead, lanes)
        exps_of_vector(x + i * lanes, top, 0, here, total)
        memcpy(exps + i * lanes, here, lanes * sizeof(float))
    if classes % lanes != 0:
        memcpy(exps + classes - lanes, last, lanes * sizeof(float))
    return folded(False, total, lanes)


cdef inline void scale_row(Py_ssize_t whole, float *row, Py_ssize_t classes, float scale) noexcept nogil:
    cdef Py_ssize_t i, j, lanes = lanes_of(row)
    cdef float here[MOST_LANES]
    cdef float last[MOST_LANES]
    if classes % lanes != 0:
        for j in range(lanes):
            last[j] = row[classes - lanes + j] * scale
    for i in range(whole):
        turn_by_turn()
        for j in range(lanes):
            here[j] = row[i * lanes + j] * scale
        memcpy(row + i * lanes, here, lanes * sizeof(float))
    if classes % lanes != 0:
        memcpy(row + classes - lanes, last, lanes * sizeof(float))


cdef inline void softmax_batch(Py_ssize_t whole, const float *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                               float *out, Py_ssize_t out_step, Py_ssize_t own, bint far) noexcept nogil:
    """Up to GROUP rows, of `own` that are this thread's. If they are `far`, out is asked for as it comes, and what follows in x
    even behind them."""
    cdef Py_ssize_t r, ahead = BATCH_BYTES // <Py_ssize_t> sizeof(float)
    cdef int infinite = 0
    cdef float top[GROUP]
    cdef float beside[GROUP]
    cdef double total[GROUP]
    for r in range(rows):
        top[r] = row_top(whole, x + r * x_step, classes)
    for r in range(rows):
        infinite |= top[r] == <float> INFINITY
    for r in range(rows if infinite else 0):
        if top[r] == <float> INFINITY:
            beside[r] = beside_infinity(x + r * x_step, 1, classes)
    for r in range(rows):
        total[r] = row_exps(whole, x + r * x_step, classes, top[r], out + r * out_step,
                            ahead if far else ahead_within(ahead, classes, (own - 1 - r) * x_step + classes),
                            ahead_within(ahead_of(True, x), classes, (own - 1 - r) * out_step + classes) if far else 0)
    for r in range(rows if infinite else 0):
        if top[r] == <float> INFINITY:
            total[r] = beside[r] / exp_unit(x)
    for r in range(rows):
        # The sum is of units, and so becomes the scale.
        scale_row(whole, out + r * out_step, classes, <float> (1.0 / total[r] if total[r] != 0 else <double> NAN))


cdef void softmax_rows(const float *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, float *out,
                       Py_ssize_t out_step, bint far) noexcept nogil:
    """Rows of two to eight vectors: of a number that the compiler knows, one takes a tenth less."""
    cdef Py_ssize_t b, r, n, own, whole = classes // lanes_of(x)
    cdef Py_ssize_t batch = min(<Py_ssize_t> GROUP, BATCH_BYTES // (classes * <Py_ssize_t> sizeof(float)))
    cylsm_require(SHORTEST_SOFTMAX <= classes <= LONGEST_SOFTMAX)
    for b in range((rows + batch - 1) // batch):
        r = b * batch
        n = min(rows - r, batch)
        own = rows - r
        if whole == 2:
            softmax_batch(2, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif whole == 3:
            softmax_batch(3, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif whole == 4:
            softmax_batch(4, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif whole == 5:
            softmax_batch(5, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif whole == 6:
            softmax_batch(6, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif whole == 7:
            softmax_batch(7, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        else:
            softmax_batch(8, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
