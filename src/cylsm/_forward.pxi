# softmax, its gradient and log_softmax of rows of one tile: while a batch is added up, the next is compared and the last
# written. Only the gradient leaves a state.

cdef inline bint set_parameters(int operation, Py_ssize_t rows, real *of, real *total, real *carry, const real *ties,
                                const RowState *state, Py_ssize_t first, const real *factor) noexcept nogil:
    """What `applied` needs, of a batch's sums. True where results are still to be multiplied by AGAIN."""
    cdef Py_ssize_t r
    cdef real log_sum[BATCH]
    if operation == SOFTMAX_GRADIENT:
        write_state(operation, NEAR, BATCH, rows, of, total, carry, ties, ties, state, first)
        finish(operation, state, first, rows, factor + first if factor != NULL else NULL)
        return read_state(operation, BATCH, rows, state, first, NULL, of)
    if operation == SOFTMAX:
        for r in range(BATCH):
            of[LOW * BATCH + r] = share(<real> 1.0, ties[r], total[r], carry[r])
        return False
    for r in range(BATCH):
        lift_sum(of[TOP * BATCH + r], of[CENTRE * BATCH + r], of[SHIFT * BATCH + r], &total[r], &carry[r])
    for r in range(BATCH):
        log_sum[r] = log_of_sum(ties[r], total[r], carry[r], &carry[r])
    for r in range(BATCH):
        of[LOW * BATCH + r] = <real> INFINITY if ties[r] + total[r] == 0 else -log_sum[r]
    for r in range(BATCH):
        of[TOP * BATCH + r] = -of[TOP * BATCH + r]
    return False


cdef inline int origin_of(int operation) noexcept nogil:
    return ROUNDED if operation == SOFTMAX else NEAR if operation == SOFTMAX_GRADIENT else CENTRED


cdef inline void forward_batch(int operation, int also, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t more,
                               Py_ssize_t batch, Py_ssize_t classes, const real *of, const real *of_earlier, real *out,
                               Py_ssize_t out_step, real *exps, const real *exps_earlier, Py_ssize_t exps_step,
                               Py_ssize_t ahead, bint far, Py_ssize_t own, Py_ssize_t x_own, real *tops, real *total,
                               real *carry, real *ties, Tail *tail) noexcept nogil:
    """Adds up a batch's rows, and compares the `more` rows that follow. Beside row r, row r of the batch before is written;
    if there are more of those, the caller writes them. What lies `ahead` is asked for. `own` elements from out on are this
    thread's, and `x_own` from x on."""
    cdef Py_ssize_t r, lanes = lanes_of(x), later
    cdef bint keep = operation != LOG_SOFTMAX
    cdef Meanwhile meanwhile
    meanwhile.tail = tail
    for r in range(rows):
        # Without another row its own is compared once more.
        later = r + batch if r < more else r
        meanwhile.later = x + later * x_step
        meanwhile.later_top = tops + r * lanes
        meanwhile.out = out + (r - batch) * out_step
        meanwhile.earlier = exps_earlier + r * exps_step if keep else x + (r - batch) * x_step
        meanwhile.parameters = of_earlier + r
        meanwhile.out_ahead = ahead_within(ahead, classes, own - (r - batch) * out_step)
        row_sum(operation, keep, also, origin_of(operation), x + r * x_step, x, classes, of + r, total + r * lanes,
                carry + r * lanes, ties + r * lanes, ties, exps + r * exps_step,
                ahead_within(ahead, classes, own - r * out_step) if far and also != STREAMING else 0,
                ahead_within((later - r) * x_step + ahead, classes, x_own - r * x_step), NULL, &meanwhile)


cdef inline Py_ssize_t near_batch(int operation, Py_ssize_t row_bytes) noexcept nogil:
    """So many rows stay in L1; 0 where they are too few. A gradient's batch costs more, by its state, than L1 saves:
    cross_entropy_with_grad of 20000 x 257 float64 takes 4.9 ms so, and otherwise 5.2."""
    cdef Py_ssize_t rows = min(NEAR_FORWARD_BYTES // row_bytes, <Py_ssize_t> BATCH)
    return 0 if operation == SOFTMAX_GRADIENT or (operation == LOG_SOFTMAX and rows < NEAR_LOG_SOFTMAX_ROWS) else rows


cdef inline void forward(int operation, bint stream, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                         const RowState *state, const real *factor, real *out, Py_ssize_t out_step, real *apart,
                         bint far) noexcept nogil:
    """Exps wait in out or, where that is streamed, `apart`: two batches' in turn."""
    cdef Py_ssize_t b, r, c, at, n = 0, lanes = lanes_of(x), own = rows * out_step
    cdef Py_ssize_t exps_step = (classes + line_of(x) - 1) // line_of(x) * line_of(x) if stream else out_step
    cdef Py_ssize_t row_bytes = classes * <Py_ssize_t> sizeof(real), batch = near_batch(operation, row_bytes)
    cdef Py_ssize_t ahead = ahead_of(far and batch == 0, x)
    cdef bint keep = operation != LOG_SOFTMAX, found, again = False
    cdef real *exps = out
    cdef real *exps_earlier = out
    cdef const real *earlier
    cdef real parameters[2 * (AGAIN + 1) * BATCH]
    cdef real *of = parameters
    cdef real *of_earlier = parameters + (AGAIN + 1) * BATCH
    cdef real infinite[BATCH]
    cdef real tops[BATCH * MOST_LANES]
    cdef real total[BATCH * MOST_LANES]
    cdef real carry[BATCH * MOST_LANES]
    cdef real ties[BATCH * MOST_LANES]
    cdef Tail tail
    if batch == 0:
        batch = max(<Py_ssize_t> 1, min(FORWARD_BYTES // row_bytes, <Py_ssize_t> BATCH))
    cylsm_require(not (stream and keep) or 2 * batch * exps_step * <Py_ssize_t> sizeof(real) <= FORWARD_SCRATCH)
    tail.held = 0
    for r in range(min(rows, batch)):
        row_max(operation, x + r * x_step, x, classes, tops + r * lanes)
    for b in range((rows + batch - 1) // batch + 1):
        at = b * batch
        n = max(<Py_ssize_t> 0, min(rows - at, batch))
        found = n > 0 and take_tops(operation, keep, x + at * x_step, x_step, n, classes, tops, of, infinite)
        exps_earlier = exps
        tail.more = out_step == classes and not again
        if keep:
            exps = apart + b % 2 * batch * exps_step if stream else out + at * out_step
        if b == 0:
            forward_batch(operation, RAISING, x, x_step, n, min(rows - n, batch), batch, classes, of, of_earlier, out,
                          out_step, exps, exps, exps_step, ahead, far, own, rows * x_step, tops, total, carry, ties, &tail)
        elif stream:
            forward_batch(operation, STREAMING, x + at * x_step, x_step, n, min(rows - at - n, batch), batch, classes, of,
                          of_earlier, out + at * out_step, out_step, exps, exps_earlier, exps_step, ahead, far,
                          own - at * out_step, (rows - at) * x_step, tops, total, carry, ties, &tail)
        else:
            forward_batch(operation, WRITING, x + at * x_step, x_step, n, min(rows - at - n, batch), batch, classes, of,
                          of_earlier, out + at * out_step, out_step, exps, exps_earlier, exps_step, ahead, far,
                          own - at * out_step, (rows - at) * x_step, tops, total, carry, ties, &tail)
        for r in range(at - batch + n if b > 0 else at, min(rows, at)):
            tail.more = out_step == classes and r < rows - 1 and not again
            earlier = exps_earlier + (r - (at - batch)) * exps_step if keep else x + r * x_step
            if stream:
                apply_row(operation, keep, True, earlier, x, classes, of_earlier + r - (at - batch), out + r * out_step, 0, &tail)
            else:
                apply_row(operation, keep, False, earlier, x, classes, of_earlier + r - (at - batch), out + r * out_step,
                          ahead_within(ahead, classes, own - r * out_step), &tail)
        if again:
            for r in range(at - batch, min(rows, at)):
                for c in range(classes):
                    out[r * out_step + c] = out[r * out_step + c] * of_earlier[AGAIN * BATCH + r - (at - batch)]
        if n > 0:
            take_sums(operation, n, of, found, infinite, total, carry, ties, ties)
            again = set_parameters(operation, n, of, total, carry, ties, state, at, factor)
            of, of_earlier = of_earlier, of


# Apart from each other for the registers, as softmax_sums in _rows.pxi; log_softmax apart takes 7 % longer on AVX2.

cdef void forward_softmax(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, real *out, Py_ssize_t out_step,
                          real *exps, bint far, bint stream) noexcept nogil:
    forward(SOFTMAX, streamed(SOFTMAX, stream), x, x_step, rows, classes, NULL, NULL, out, out_step, exps, far)


cdef void forward_gradient(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                           const real *factor, real *out, Py_ssize_t out_step, real *exps, bint far, bint stream) noexcept nogil:
    forward(SOFTMAX_GRADIENT, stream, x, x_step, rows, classes, state, factor, out, out_step, exps, far)


cdef void forward_rows(int operation, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                       const RowState *state, const real *factor, real *out, Py_ssize_t out_step, real *exps, bint far,
                       bint stream) noexcept nogil:
    cylsm_require(classes >= SHORTEST_ROW)
    if operation == SOFTMAX:
        forward_softmax(x, x_step, rows, classes, out, out_step, exps, far, stream)
    elif operation == LOG_SOFTMAX:
        forward(LOG_SOFTMAX, stream, x, x_step, rows, classes, NULL, NULL, out, out_step, exps, far)
    else:
        cylsm_require(operation == SOFTMAX_GRADIENT and CYLSM_VECTOR_BYTES == LINE_BYTES)
        if CYLSM_VECTOR_BYTES == LINE_BYTES:
            forward_gradient(x, x_step, rows, classes, state, factor, out, out_step, exps, far, stream)
