# softmax, its gradient and log_softmax: while a batch of rows is added up, the next is compared and the last written. Of rows of
# several tiles a batch is a tile, the next one is compared, and that of the row before is written. Only the gradient leaves a state.

cdef inline bint set_parameters(int operation, Py_ssize_t rows, real *of, real *total, real *carry, const real *ties,
                                const RowState *state, Py_ssize_t first, const real *factor) noexcept nogil:
    """What `applied` needs, of a batch's sums. True where results are still to be multiplied by AGAIN."""
    cdef Py_ssize_t r
    cdef real log_sum[BATCH]
    if operation == SOFTMAX_GRADIENT:
        write_state(operation, NEAR, BATCH, rows, of, total, carry, ties, ties, state, first)
        finish(operation, state, first, rows, factor)
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


cdef void write_sums(int operation, const real *of, real *total, real *carry, const real *ties, const RowState *state,
                     Py_ssize_t t) noexcept nogil:
    """The state of a row's tile."""
    write_state(operation, origin_of(operation), BATCH, 1, of, total, carry, ties, ties, state, t)


cdef bint merge_parameters(int operation, Py_ssize_t tiles, const RowState *state, Py_ssize_t row, const real *factor,
                           real *of) noexcept nogil:
    """What `applied` needs, of a row's tiles, in whose states its sums are; its own becomes entry `row`."""
    cdef Py_ssize_t t
    merge(operation, state, <real *> state.top, 1, tiles, row)
    finish(operation, state, row, 1, factor)
    if operation == LOG_SOFTMAX:
        read_state(LOG_SOFTMAX, BATCH, 1, state, row, NULL, of)
        for t in range(tiles):
            of[TOP * BATCH + t] = of[TOP * BATCH]
            of[LOW * BATCH + t] = of[LOW * BATCH]
        return False
    # Exps count from their tile's own top.
    spread(state, <real *> state.top, 1, tiles, row)
    return read_state(SOFTMAX, BATCH, tiles, state, 0, NULL, of)


cdef inline void forward_batch(int operation, int also, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                               const real *later, Py_ssize_t more, const real *of, const real *of_earlier,
                               const real *exps_earlier, real *out, Py_ssize_t out_step, real *exps, Py_ssize_t exps_step,
                               Py_ssize_t ahead, bint far, Py_ssize_t own, Py_ssize_t out_own, Py_ssize_t x_own, real *tops,
                               real *total, real *carry, real *ties, Tail *tail) noexcept nogil:
    """Adds up a batch's rows, and compares the `more` rows that follow. Beside row r, row r of the batch before is written, to
    out; if there are more of those, the caller writes them. What lies `ahead` is asked for. `own` elements from exps on, `out_own`
    from out on, and `x_own` from x on, are this thread's."""
    cdef Py_ssize_t r, lanes = lanes_of(x), gap
    cdef Meanwhile meanwhile
    meanwhile.tail = tail
    for r in range(rows):
        # Without another row its own is compared once more.
        gap = later - x if r < more else 0
        meanwhile.later = x + r * x_step + gap
        meanwhile.later_top = tops + r * lanes
        meanwhile.out = out + r * out_step
        meanwhile.earlier = exps_earlier + r * exps_step
        meanwhile.parameters = of_earlier + r
        meanwhile.out_ahead = ahead_within(ahead, classes, out_own - r * out_step)
        row_sum(operation, operation != LOG_SOFTMAX, also, origin_of(operation), x + r * x_step, x, classes, of + r,
                total + r * lanes, carry + r * lanes, ties + r * lanes, ties, exps + r * exps_step,
                ahead_within(ahead, classes, own - r * exps_step) if far and also != STREAMING else 0,
                ahead_within(gap + ahead, classes, x_own - r * x_step), 0, NULL, &meanwhile)


cdef void rest_of_tile(const real *end, Py_ssize_t classes, Py_ssize_t longer, real *rest) noexcept nogil:
    """The lanes of the maximum of what makes a tile so much `longer` than the `classes` before `end`, or, if it is shorter, of what is
    not in it; of so many elements, or lanes."""
    cdef Py_ssize_t n = max(longer, -longer, lanes_of(end))
    row_max(SOFTMAX, end + longer - n if longer > 0 else end - classes, end, n, rest)


cdef void correct_top(const real *end, Py_ssize_t classes, Py_ssize_t longer, real *rest, real *top) noexcept nogil:
    """Makes the lanes of the maximum of the `classes` before `end` those of the tile's, which is compared again where its top is not
    above the rest's."""
    cdef Py_ssize_t j, lanes = lanes_of(end)
    cdef real folded[4 * MOST_LANES]
    if longer > 0:
        for j in range(lanes):
            top[j] = larger(rest[j], top[j])
        return
    memcpy(folded, top, lanes * sizeof(real))
    fold(True, folded, lanes, 1)
    fold(True, rest, lanes, 1)
    if not folded[0] > rest[0]:
        row_max(SOFTMAX, end - classes - longer, end, classes + longer, top)


cdef inline Py_ssize_t near_batch(int operation, Py_ssize_t row_bytes) noexcept nogil:
    """So many rows stay in L1; 0 where they are too few. A gradient's batch costs more, by its state, than L1 saves:
    cross_entropy_with_grad of 20000 x 257 float64 takes 4.9 ms so, and otherwise 5.2."""
    cdef Py_ssize_t rows = min(NEAR_FORWARD_BYTES // row_bytes, <Py_ssize_t> BATCH)
    return 0 if operation == SOFTMAX_GRADIENT or (operation == LOG_SOFTMAX and rows < NEAR_LOG_SOFTMAX_ROWS) else rows


cdef inline void forward(int operation, bint stream, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                         Py_ssize_t tile, const RowState *state, const real *factor, real *out, Py_ssize_t out_step,
                         real *apart, bint far) noexcept nogil:
    """Exps wait in out or, where that is streamed, `apart`: two batches' in turn."""
    cdef Py_ssize_t turn, r, c, t, n, at, before, left, length, later_at, later_t, longer, more
    cdef Py_ssize_t lanes = lanes_of(x), tiles = (classes - 1) // tile + 1, own = rows * out_step
    cdef bint keep = operation != LOG_SOFTMAX, found, again = False
    cdef Py_ssize_t line_step = (classes + line_of(x) - 1) // line_of(x) * line_of(x)
    cdef Py_ssize_t exps_step = x_step if not keep else line_step if stream else out_step
    cdef Py_ssize_t row_bytes = classes * <Py_ssize_t> sizeof(real), batch = near_batch(operation, row_bytes)
    cdef Py_ssize_t ahead = ahead_of(far and batch == 0, x)
    cdef const real *here
    cdef const real *later
    cdef const real *earlier
    cdef real *exps
    cdef real *to
    cdef real parameters[2 * (AGAIN + 1) * BATCH]
    cdef real *of = parameters
    cdef real *of_earlier = parameters + (AGAIN + 1) * BATCH
    cdef real infinite[BATCH]
    cdef real rest[4 * MOST_LANES]
    cdef real tops[BATCH * MOST_LANES]
    cdef real total[BATCH * MOST_LANES]
    cdef real carry[BATCH * MOST_LANES]
    cdef real ties[BATCH * MOST_LANES]
    cdef Tail tail
    if batch == 0:
        batch = max(<Py_ssize_t> 1, min(FORWARD_BYTES // row_bytes, <Py_ssize_t> BATCH))
    cylsm_require(tiles == 1 or (batch == 1 and tiles <= BATCH))
    cylsm_require(not (stream and keep) or 2 * batch * exps_step * <Py_ssize_t> sizeof(real) <= forward_scratch(row_bytes))
    tail.held = 0
    for r in range(min(rows, batch)):
        row_max(operation, x + r * x_step, x, min(tile, classes), tops + r * lanes)
    for turn in range((rows + batch - 1) // batch + 1):
        at = turn * batch
        before = at - batch
        n = max(<Py_ssize_t> 0, min(rows - at, batch))
        for t in range(tiles):
            length = min(tile, classes - t * tile)
            later_t = t + 1 if t + 1 < tiles else 0
            later_at = at if later_t > 0 else at + batch
            more = min(rows - later_at, batch)
            longer = min(tile, classes - later_t * tile) - length
            here = x + at * x_step + t * tile
            later = x + later_at * x_step + later_t * tile + min(<Py_ssize_t> 0, longer)
            to = out + before * out_step + t * tile
            left = own - at * out_step - t * tile
            exps = apart + turn % 2 * batch * exps_step + t * tile if stream else to + batch * out_step
            earlier = here - batch * x_step
            if keep:
                earlier = apart + (turn + 1) % 2 * batch * exps_step + t * tile if stream else to
            if longer != 0 and more > 0:
                # The next tile is compared as if it were as long as this: a shorter one begins in this, whose exps may soon take
                # the place of what is too much.
                rest_of_tile(later + length, length, longer, rest)
            found = n > 0 and take_tops(operation, keep, here, x_step, n, length, tops, of, infinite)
            tail.more = (t + 1 < tiles or out_step == classes) and not again
            if turn == 0:
                forward_batch(operation, RAISING, here, x_step, n, length, later, more, of, of_earlier, earlier, to, out_step,
                              exps, exps_step, ahead, far, left, left, rows * x_step - (here - x), tops, total, carry, ties,
                              &tail)
            elif stream:
                forward_batch(operation, STREAMING, here, x_step, n, length, later, more, of, of_earlier + t, earlier, to,
                              out_step, exps, exps_step, ahead, far, left, left + batch * out_step,
                              rows * x_step - (here - x), tops, total, carry, ties, &tail)
            else:
                forward_batch(operation, WRITING, here, x_step, n, length, later, more, of, of_earlier + t, earlier, to,
                              out_step, exps, exps_step, ahead, far, left, left + batch * out_step,
                              rows * x_step - (here - x), tops, total, carry, ties, &tail)
            for r in range(n if turn > 0 else batch, min(rows - before, batch)):
                tail.more = (t + 1 < tiles or (out_step == classes and before + r < rows - 1)) and not again
                if stream:
                    apply_row(operation, keep, True, earlier + r * exps_step, x, length, of_earlier + t + r, to + r * out_step,
                              0, &tail)
                else:
                    apply_row(operation, keep, False, earlier + r * exps_step, x, length, of_earlier + t + r,
                              to + r * out_step, ahead_within(ahead, length, left + (batch - r) * out_step), &tail)
            if again:
                for r in range(min(rows - before, batch)):
                    for c in range(length):
                        to[r * out_step + c] = to[r * out_step + c] * of_earlier[AGAIN * BATCH + t + r]
            if n > 0:
                take_sums(operation, n, of, found, infinite, total, carry, ties, ties)
                if tiles > 1:
                    write_sums(operation, of, total, carry, ties, state, t)
            if longer != 0 and more > 0:
                correct_top(later + length, length, longer, rest, tops)
        if n > 0:
            if tiles > 1:
                again = merge_parameters(operation, tiles, state, tiles + at, factor + at if factor != NULL else NULL, of)
            else:
                again = set_parameters(operation, n, of, total, carry, ties, state, at, factor + at if factor != NULL else NULL)
            of, of_earlier = of_earlier, of


# Apart from each other for the registers, as softmax_sums in _rows.pxi; log_softmax apart takes 7 % longer on AVX2.

cdef void forward_softmax(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t tile,
                          const RowState *state, real *out, Py_ssize_t out_step, real *exps, bint far, bint stream) noexcept nogil:
    forward(SOFTMAX, streamed(SOFTMAX, stream), x, x_step, rows, classes, tile, state, NULL, out, out_step, exps, far)


cdef void forward_gradient(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t tile,
                           const RowState *state, const real *factor, real *out, Py_ssize_t out_step, real *exps, bint far,
                           bint stream) noexcept nogil:
    forward(SOFTMAX_GRADIENT, stream, x, x_step, rows, classes, tile, state, factor, out, out_step, exps, far)


cdef void forward_rows(int operation, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t tile,
                       const RowState *state, const real *factor, real *out, Py_ssize_t out_step, real *exps, bint far,
                       bint stream) noexcept nogil:
    cylsm_require(classes >= SHORTEST_ROW)
    if operation == SOFTMAX:
        forward_softmax(x, x_step, rows, classes, tile, state, out, out_step, exps, far, stream)
    elif operation == LOG_SOFTMAX:
        forward(LOG_SOFTMAX, stream, x, x_step, rows, classes, tile, state, NULL, out, out_step, exps, far)
    else:
        cylsm_require(operation == SOFTMAX_GRADIENT and CYLSM_VECTOR_BYTES == LINE_BYTES)
        if CYLSM_VECTOR_BYTES == LINE_BYTES:
            forward_gradient(x, x_step, rows, classes, tile, state, factor, out, out_step, exps, far, stream)
