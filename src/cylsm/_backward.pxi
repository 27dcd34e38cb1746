# The backward operations by rows, without a state: a few at a time, by way of local arrays alone.

cdef inline void backward_vectors(int operation, Py_ssize_t n, const real *x, const real *y, real scale, real shift, real least,
                                  real most, real *out) noexcept nogil:
    """n elements, one vector or two."""
    cdef Py_ssize_t j
    cdef real here[2 * MOST_LANES]
    for j in range(n):
        if operation == LOG_SOFTMAX_BACKWARD:
            here[j] = x[j] - exp_scaled(y[j], shift, least, most) * scale
        else:
            here[j] = y[j] * (x[j] - scale)
    memcpy(out, here, n * sizeof(real))


cdef inline void backward_row(int operation, Py_ssize_t whole, const real *x, const real *y, Py_ssize_t classes, real scale,
                              real shift, real least, real most, real *out, Py_ssize_t y_ahead,
                              Py_ssize_t out_ahead) noexcept nogil:
    """One row. Exps of double wait for long: they are taken four vectors at a time. Otherwise a line is, up to two
    vectors."""
    cdef Py_ssize_t i, at, lanes = lanes_of(x), pair = 2 * lanes
    cdef Py_ssize_t many = 1 if CYLSM_VECTOR_BYTES == LINE_BYTES else 2
    cdef real last[MOST_LANES]
    if real is double and operation == LOG_SOFTMAX_BACKWARD:
        many = 4
    if classes % lanes != 0:
        # It overlaps the one before. Out may be an input: it is computed before anything is stored.
        backward_vectors(operation, lanes, x + classes - lanes, y + classes - lanes, scale, shift, least, most, last)
    for i in range(whole // many):
        at = i * many * lanes
        if operation == LOG_SOFTMAX_BACKWARD:
            ask_for(y + at + y_ahead, many * lanes)
        ask_for(out + at + out_ahead, many * lanes)
        backward_vectors(operation, min(many, <Py_ssize_t> 2) * lanes, x + at, y + at, scale, shift, least, most, out + at)
        if many == 4:
            backward_vectors(operation, pair, x + at + pair, y + at + pair, scale, shift, least, most, out + at + pair)
    for i in range(whole // many * many, whole):
        at = i * lanes
        if operation == LOG_SOFTMAX_BACKWARD:
            ask_for(y + at + y_ahead, lanes)
        ask_for(out + at + out_ahead, lanes)
        backward_vectors(operation, lanes, x + at, y + at, scale, shift, least, most, out + at)
    if classes % lanes != 0:
        memcpy(out + classes - lanes, last, lanes * sizeof(real))


cdef inline void backward_batch(int operation, Py_ssize_t whole, const real *x, Py_ssize_t x_step, const real *y,
                                Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, real *out, Py_ssize_t out_step,
                                Py_ssize_t ahead, Py_ssize_t own, Py_ssize_t readable) noexcept nogil:
    """Up to GROUP rows. `own` rows of out are this thread's, and `readable` ones of x and y may be asked for."""
    cdef Py_ssize_t r, step = max(x_step, y_step)
    cdef Py_ssize_t in_ahead = ahead_within(ahead, classes, (readable - rows) * step + classes)
    cdef Py_ssize_t out_ahead = ahead_within(ahead, classes, (own - rows) * out_step + classes)
    cdef real most
    cdef real scale[GROUP]
    cdef real shift[GROUP]
    cdef real least[GROUP]
    row_totals(operation, whole, x, x_step, y, y_step, rows, classes, in_ahead, scale)
    for r in range(rows):
        if operation == LOG_SOFTMAX_BACKWARD:
            scale[r] = set_factor(scale[r], &shift[r], &least[r])
        else:
            shift[r] = least[r] = 0
    most = most_shifted(shift[0])
    for r in range(rows):
        backward_row(operation, whole, x + r * x_step, y + r * y_step, classes, scale[r], shift[r], least[r], most,
                     out + r * out_step, in_ahead, out_ahead)


cdef void backward_few(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, real *out, Py_ssize_t out_step, Py_ssize_t own,
                       Py_ssize_t readable) noexcept nogil:
    """Rows of up to four vectors: of a number that the compiler knows, and of a known distance, the shortest takes a fifth
    less. Not inline, nor the next: together they run out of registers."""
    cdef Py_ssize_t whole = classes // lanes_of(x), ahead = PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real)
    if operation == LOG_SOFTMAX_BACKWARD:
        if is_whole(whole, 1, SHORTEST_ROW, x):
            backward_batch(LOG_SOFTMAX_BACKWARD, 1, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        elif is_whole(whole, 2, SHORTEST_ROW, x):
            backward_batch(LOG_SOFTMAX_BACKWARD, 2, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        elif is_whole(whole, 3, SHORTEST_ROW, x):
            backward_batch(LOG_SOFTMAX_BACKWARD, 3, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        else:
            backward_batch(LOG_SOFTMAX_BACKWARD, 4, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
    else:
        if is_whole(whole, 1, SHORTEST_ROW, x):
            backward_batch(SOFTMAX_BACKWARD, 1, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        elif is_whole(whole, 2, SHORTEST_ROW, x):
            backward_batch(SOFTMAX_BACKWARD, 2, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        elif is_whole(whole, 3, SHORTEST_ROW, x):
            backward_batch(SOFTMAX_BACKWARD, 3, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
        else:
            backward_batch(SOFTMAX_BACKWARD, 4, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)


cdef void backward_many(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, real *out, Py_ssize_t out_step, bint far, Py_ssize_t own,
                        Py_ssize_t readable) noexcept nogil:
    cdef Py_ssize_t whole = classes // lanes_of(x), ahead = ahead_of(far, x)
    if operation == LOG_SOFTMAX_BACKWARD:
        backward_batch(LOG_SOFTMAX_BACKWARD, whole, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)
    else:
        backward_batch(SOFTMAX_BACKWARD, whole, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own, readable)


cdef inline void backward_streamed(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                   Py_ssize_t rows, Py_ssize_t classes, real *out, Py_ssize_t out_step) noexcept nogil:
    """The same around the caches."""
    cdef Py_ssize_t b, r, first, n, lanes = lanes_of(x)
    cdef Py_ssize_t batch = max(<Py_ssize_t> 1, min(<Py_ssize_t> BATCH, STREAMED_BYTES // (classes * <Py_ssize_t> sizeof(real))))
    cdef real of[(LOW + 1) * BATCH]
    cdef Tail tail
    tail.held = 0
    for b in range((rows + batch - 1) // batch):
        first = b * batch
        n = min(rows - first, batch)
        row_totals(operation, classes // lanes, x + first * x_step, x_step, y + first * y_step, y_step, n, classes,
                   ahead_of(True, x), of + LOW * BATCH)
        for r in range(n if operation == LOG_SOFTMAX_BACKWARD else 0):
            of[LOW * BATCH + r] = set_factor(of[LOW * BATCH + r], &of[SHIFT * BATCH + r], &of[LEAST * BATCH + r])
        for r in range(n):
            tail.more = out_step == classes and first + r < rows - 1
            apply_row(operation, False, True, x + (first + r) * x_step, y + (first + r) * y_step, classes, of + r,
                      out + (first + r) * out_step, 0, &tail)


cdef void backward_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, real *out, Py_ssize_t out_step, bint far, bint stream) noexcept nogil:
    cdef Py_ssize_t b, r, n, own, readable
    cdef Py_ssize_t batch = max(<Py_ssize_t> 1, min(<Py_ssize_t> GROUP, BATCH_BYTES // (classes * <Py_ssize_t> sizeof(real))))
    cylsm_require(classes >= SHORTEST_ROW)
    if stream:
        if operation == LOG_SOFTMAX_BACKWARD:
            backward_streamed(LOG_SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, out, out_step)
        else:
            backward_streamed(SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, out, out_step)
        return
    for b in range((rows + batch - 1) // batch):
        r = b * batch
        n = min(rows - r, batch)
        own = rows - r
        # Of far arrays the next block too, wherever it begins: so many rows are as many elements at least.
        readable = own + FAR_AHEAD_BYTES if far else own
        if classes < 5 * lanes_of(x):
            backward_few(operation, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, out + r * out_step, out_step,
                         own, readable)
        else:
            backward_many(operation, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, out + r * out_step, out_step,
                          far, own, readable)
