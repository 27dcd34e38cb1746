# softmax of short rows of float, a few at a time, without a state.

cdef inline void row_top(Py_ssize_t whole, const float *x, Py_ssize_t classes, float *four) noexcept nogil:
    """Four lanes of the largest element of a row of `whole` vectors and perhaps the beginning of one more."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef float top[MOST_LANES]
    for j in range(lanes):
        top[j] = lowest(x)
    for i in range(whole):
        turn_by_turn()
        raise_lanes(SOFTMAX, x + i * lanes, x, top)
    if classes % lanes != 0:
        raise_lanes(SOFTMAX, x + classes - lanes, x, top)
    to_four(True, top, lanes, four)


cdef inline void exps_of_vector(const float *x, float top, float *exps) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(lanes_of(x)):
        exps[j] = exp_of_lane(ROUNDED, x[j], &top, 0, 0)


cdef inline void row_exps(Py_ssize_t whole, const float *x, Py_ssize_t classes, float top, float *exps, Py_ssize_t ahead,
                          Py_ssize_t exps_ahead, double *four) noexcept nogil:
    """Stores a row's exps, relative to its top, and four lanes of their sum. Meanwhile x of the next batch is asked for."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef double total[MOST_LANES]
    cdef float here[MOST_LANES]
    cdef float last[MOST_LANES]
    for j in range(lanes):
        total[j] = 0
    if classes % lanes != 0:
        # It overlaps the one before. The exps may replace x: it is computed before anything is stored.
        exps_of_vector(x + classes - lanes, top, last)
        add_exactly(SOFTMAX, <int> (lanes - classes % lanes), last, last, total)
    for i in range(whole):
        ask_for(x + i * lanes + ahead, lanes)
        ask_for(exps + i * lanes + exps_ahead, lanes)
        exps_of_vector(x + i * lanes, top, here)
        memcpy(exps + i * lanes, here, lanes * sizeof(float))
    # Read again, they are converted a half at a time: softmax of 256 x 64 float32 takes 6.7 us on one thread so, and 7.3.
    from_memory()
    for i in range(whole):
        add_exactly(SOFTMAX, 0, exps + i * lanes, exps, total)
    if classes % lanes != 0:
        memcpy(exps + classes - lanes, last, lanes * sizeof(float))
    to_four(False, total, lanes, four)


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
    cdef float top[4 * GROUP]
    cdef float beside[GROUP]
    cdef double total[4 * GROUP]
    for r in range(rows):
        row_top(whole, x + r * x_step, classes, top + 4 * r)
    fold(True, top, 4, rows)
    for r in range(rows):
        infinite |= top[r] == <float> INFINITY
    for r in range(rows if infinite else 0):
        if top[r] == <float> INFINITY:
            beside[r] = beside_infinity(x + r * x_step, 1, classes)
    for r in range(rows):
        row_exps(whole, x + r * x_step, classes, top[r], out + r * out_step,
                 ahead if far else ahead_within(ahead, classes, (own - rows) * x_step + classes),
                 ahead_within(ahead_of(True, x), classes, (own - rows) * out_step + classes) if far else 0, total + 4 * r)
    fold(False, total, 4, rows)
    for r in range(rows if infinite else 0):
        if top[r] == <float> INFINITY:
            total[r] = beside[r] / exp_unit(x)
    for r in range(rows):
        # The sum is of units, and so becomes the scale.
        scale_row(whole, out + r * out_step, classes, <float> (1.0 / total[r] if total[r] != 0 else <double> NAN))


cdef void softmax_rows(const float *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, float *out,
                       Py_ssize_t out_step, bint far) noexcept nogil:
    """Rows of up to eight vectors: of a number that the compiler knows, one takes a tenth less."""
    cdef Py_ssize_t b, r, n, own, whole = classes // lanes_of(x)
    cdef Py_ssize_t batch = min(<Py_ssize_t> GROUP, BATCH_BYTES // (classes * <Py_ssize_t> sizeof(float)))
    cylsm_require(classes >= SHORTEST_SOFTMAX and whole <= SOFTMAX_VECTORS)
    for b in range((rows + batch - 1) // batch):
        r = b * batch
        n = min(rows - r, batch)
        own = rows - r
        if is_whole(whole, 2, SHORTEST_SOFTMAX, x):
            softmax_batch(2, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif is_whole(whole, 3, SHORTEST_SOFTMAX, x):
            softmax_batch(3, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif is_whole(whole, 4, SHORTEST_SOFTMAX, x):
            softmax_batch(4, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif is_whole(whole, 5, SHORTEST_SOFTMAX, x):
            softmax_batch(5, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif is_whole(whole, 6, SHORTEST_SOFTMAX, x):
            softmax_batch(6, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        elif is_whole(whole, 7, SHORTEST_SOFTMAX, x):
            softmax_batch(7, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
        else:
            softmax_batch(8, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own, far)
