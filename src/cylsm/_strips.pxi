# Rows that lie side by side, of any number of classes.

cdef inline void reduce_lanes(int operation, bint keep, bint few, int origin, Py_ssize_t width, const real *x, Py_ssize_t x_step,
                              const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state,
                              Py_ssize_t first, real *exps, Py_ssize_t exps_step,
                              const Soon *soon) noexcept nogil:
    """Reduces up to STRIP lanes."""
    cdef Py_ssize_t j
    cdef real of[REFERENCE * STRIP]
    cdef real total[STRIP]
    cdef real carry[STRIP]
    cdef real ties[STRIP]
    cdef real ties_carry[STRIP]
    cdef real beside[STRIP]
    cdef int infinite = 0
    for j in range(width):
        of[TOP * width + j] = lowest(x)
        total[j] = 0
        carry[j] = 0
        ties[j] = 0
        ties_carry[j] = 0
    if not is_backward(operation):
        lanes_max(operation, width, x, x_step, y, y_step, classes, of + TOP * width)
        if origin != NEAR and origin != ROUNDED:
            set_references(width, of)
    if operation == SOFTMAX:
        for j in range(width):
            infinite |= of[TOP * width + j] == <real> INFINITY
        for j in range(width if infinite else 0):
            if of[TOP * width + j] == <real> INFINITY:
                beside[j] = beside_infinity(x + j, x_step, classes)
    lanes_sum(operation, keep, few, origin, width, x, x_step, y, y_step, classes, of, total, carry, ties, ties_carry, exps,
              exps_step, soon)
    for j in range(width if infinite else 0):
        if of[TOP * width + j] == <real> INFINITY:
            total[j] = beside[j]
            carry[j] = 0
    write_state(operation, origin, width, width, of, total, carry, ties, ties_carry, state, first)


cdef inline void cost_lanes(Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                            Py_ssize_t classes, const RowState *state, Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t j
    cdef real top[STRIP]
    cdef real mass[STRIP]
    cdef real mass_carry[STRIP]
    cdef real cost[STRIP]
    cdef real cost_carry[STRIP]
    for j in range(width):
        top[j] = (<const real *> state.top)[first + j]
        mass[j] = mass_carry[j] = cost[j] = cost_carry[j] = 0
    lanes_cost(width, x, x_step, y, y_step, classes, top, mass, mass_carry, cost, cost_carry)
    for j in range(width):
        (<real *> state.mass)[first + j] = mass[j]
        (<real *> state.mass_carry)[first + j] = mass_carry[j]
        (<real *> state.cost)[first + j] = cost[j]
        (<real *> state.carry)[first + j] = cost_carry[j]


cdef inline void apply_state(int operation, bint kept, bint stream, Py_ssize_t width, Py_ssize_t n, const real *x,
                             Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state,
                             Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step, Py_ssize_t ahead,
                             const Soon *soon) noexcept nogil:
    """apply_lanes with what it needs of the state, for up to STRIP lanes, n of which are there."""
    cdef Py_ssize_t c, j
    cdef real of[PARAMETERS * STRIP]
    cdef bint again = read_state(operation, width, n, state, first, factor, of)
    if out == y and out != x:
        apply_lanes_to_y(operation, width, x, x_step, classes, of, out, out_step)
    else:
        apply_lanes(operation, kept, streamed(operation, stream), width, x, x_step, y, y_step, classes, of, out, out_step, ahead,
                    soon)
    if again:
        for c in range(classes):
            for j in range(width):
                out[c * out_step + j] = out[c * out_step + j] * of[AGAIN * width + j]


cdef inline void reduce_width(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                              Py_ssize_t y_step, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                              real *exps, Py_ssize_t exps_step, const Soon *soon) noexcept nogil:
    """reduce_lanes of the operation at hand; where width is a constant, so is the trip count of every loop."""
    if (operation == SOFTMAX or operation == SOFTMAX_GRADIENT) and classes <= NEAR_CLASSES:
        reduce_lanes(LOGSUMEXP, True, True, NEAR, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif operation == SOFTMAX and classes <= ONE_BY_ONE:
        reduce_lanes(SOFTMAX, True, True, ROUNDED, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif operation == SOFTMAX:
        reduce_lanes(SOFTMAX, True, False, ROUNDED, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif operation == SOFTMAX_GRADIENT and classes <= ONE_BY_ONE:
        reduce_lanes(LOGSUMEXP, True, True, NEAR, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif operation == SOFTMAX_GRADIENT:
        reduce_lanes(LOGSUMEXP, True, False, NEAR, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif operation == LOG_SOFTMAX_BACKWARD and classes <= NEAR_CLASSES:
        reduce_lanes(LOG_SOFTMAX_BACKWARD, False, True, CENTRED, width, x, x_step, x, 0, classes, state, first, exps,
                     exps_step, soon)
    elif operation == LOG_SOFTMAX_BACKWARD:
        reduce_lanes(LOG_SOFTMAX_BACKWARD, False, False, CENTRED, width, x, x_step, x, 0, classes, state, first, exps,
                     exps_step, soon)
    elif operation == SOFTMAX_BACKWARD:
        reduce_lanes(SOFTMAX_BACKWARD, False, False, CENTRED, width, x, x_step, y, y_step, classes, state, first, exps,
                     exps_step, soon)
    elif operation == LOGSUMEXP_WEIGHTED:
        reduce_lanes(LOGSUMEXP_WEIGHTED, False, False, CENTRED, width, x, x_step, y, y_step, classes, state, first, exps,
                     exps_step, soon)
    elif operation == MIXTURE_COST:
        cost_lanes(width, x, x_step, y, y_step, classes, state, first)
    elif classes <= NEAR_CLASSES:
        reduce_lanes(LOGSUMEXP, False, True, NEAR, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    elif classes <= ONE_BY_ONE:
        reduce_lanes(LOGSUMEXP, False, True, CENTRED, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    else:
        reduce_lanes(LOGSUMEXP, False, False, CENTRED, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)


cdef inline void apply_width(int operation, bint kept, bint stream, Py_ssize_t width, Py_ssize_t n, const real *x,
                             Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state,
                             Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step, Py_ssize_t ahead,
                             const Soon *soon) noexcept nogil:
    if operation == LOG_SOFTMAX:
        apply_state(LOG_SOFTMAX, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead,
                    soon)
    elif (operation == SOFTMAX or operation == SOFTMAX_GRADIENT) and kept:
        apply_state(SOFTMAX, True, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif operation == SOFTMAX:
        apply_state(SOFTMAX, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif operation == SOFTMAX_GRADIENT:
        apply_state(SOFTMAX_GRADIENT, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead,
                    soon)
    elif operation == LOG_SOFTMAX_BACKWARD:
        apply_state(LOG_SOFTMAX_BACKWARD, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out,
                    out_step, ahead, soon)
    elif operation == SOFTMAX_BACKWARD:
        apply_state(SOFTMAX_BACKWARD, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out,
                    out_step, ahead, soon)
    else:
        apply_state(MIXTURE, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out, out_step, ahead,
                    soon)


# What follows is asked for where exps are stored: the other operations wait less, and would take a tenth longer. A function for
# each operation, as in _rows.pxi. Few classes that lie near each other are few_strip's.

cdef inline void set_soon(Soon *soon, int following, Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes,
                          const real *exps, Py_ssize_t exps_step) noexcept nogil:
    soon.one = x + (classes * x_step if following == TILE_BELOW else width)
    soon.other = exps + (classes * exps_step if following == TILE_BELOW else width)
    soon.one_step = x_step * sizeof(real)
    soon.other_step = exps_step * sizeof(real)


cdef inline bint fills_vector(const real *x, Py_ssize_t width) noexcept nogil:
    """Whether `width` lanes are a vector that is taken by itself, on AVX-512: of narrower ones logsumexp of 62 x 19 x 16 float32
    along the second axis takes 14 us so on AVX2, and otherwise 12."""
    return CYLSM_VECTOR_BYTES == LINE_BYTES and width == lanes_of(x)


cdef inline bint is_short_run(const real *x, Py_ssize_t x_step) noexcept nogil:
    """Whether lanes are taken a vector at a time. By its classes' distance: a block of a long run may have few lanes too, whose
    classes each lie on a page of their own."""
    return CYLSM_VECTOR_BYTES == LINE_BYTES and -FEW_VECTORS * lanes_of(x) < x_step < FEW_VECTORS * lanes_of(x)


cdef inline void strip_sums(int operation, bint keep, int origin, Py_ssize_t width, const real *x, Py_ssize_t x_step,
                            Py_ssize_t classes, const RowState *state, Py_ssize_t first, real *exps, Py_ssize_t exps_step,
                            const Soon *soon) noexcept nogil:
    """reduce_lanes of one array. A single vector's lanes all stay in registers."""
    if fills_vector(x, width) and soon == NULL:
        if classes <= ONE_BY_ONE:
            reduce_lanes(operation, keep, True, origin, lanes_of(x), x, x_step, x, 0, classes, state, first, exps, exps_step, NULL)
        else:
            reduce_lanes(operation, keep, False, origin, lanes_of(x), x, x_step, x, 0, classes, state, first, exps, exps_step, NULL)
    elif classes <= ONE_BY_ONE:
        reduce_lanes(operation, keep, True, origin, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)
    else:
        reduce_lanes(operation, keep, False, origin, width, x, x_step, x, 0, classes, state, first, exps, exps_step, soon)


cdef void strip_softmax(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                        Py_ssize_t first, real *exps, Py_ssize_t exps_step, int following) noexcept nogil:
    cdef Soon there
    cdef const Soon *soon = &there if following != NOTHING else NULL
    set_soon(&there, following, width, x, x_step, classes, exps, exps_step)
    strip_sums(SOFTMAX, True, ROUNDED, width, x, x_step, classes, state, first, exps, exps_step, soon)


cdef void strip_gradient(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                         Py_ssize_t first, real *exps, Py_ssize_t exps_step, int following) noexcept nogil:
    cdef Soon there
    cdef const Soon *soon = &there if following != NOTHING else NULL
    set_soon(&there, following, width, x, x_step, classes, exps, exps_step)
    strip_sums(LOGSUMEXP, True, NEAR, width, x, x_step, classes, state, first, exps, exps_step, soon)


cdef void strip_logsumexp(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                          Py_ssize_t first) noexcept nogil:
    strip_sums(LOGSUMEXP, False, CENTRED, width, x, x_step, classes, state, first, NULL, 0, NULL)


cdef inline Py_ssize_t next_lanes(const real *x, Py_ssize_t rows, bint singly, bint overlap, Py_ssize_t *j) noexcept nogil:
    """How many lanes from j on are taken: `singly` one vector, otherwise STRIP, or what is left. If they may be taken twice,
    and more than one fills no vector, which would be computed one by one, whole vectors: j goes back for the last of them, and of
    a single strip half is taken first, since one vector takes as long as two or three. logsumexp of 1053 x 124 float32 along the
    first axis takes a quarter less so."""
    cdef Py_ssize_t lanes = lanes_of(x), n = min(rows - j[0], <Py_ssize_t> STRIP), whole = (n + lanes - 1) // lanes * lanes
    if singly:
        n = min(n, lanes)
        whole = lanes
    if not overlap or rows < lanes or n % lanes == 0 or (n % lanes == 1 and n > lanes):
        return n
    if whole > rows:
        return whole // lanes // 2 * lanes
    j[0] = rows - whole
    return whole


cdef void reduce_strip(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                       Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, real *exps,
                       Py_ssize_t exps_step, int following) noexcept nogil:
    cdef Py_ssize_t n, j = 0
    # Weighted sums not: of another width the compiler may fuse other multiplications.
    cdef bint overlap = exps != x and operation != LOGSUMEXP_WEIGHTED
    cdef bint singly = is_short_run(x, x_step) and following == NOTHING and not reads_y(operation) and operation != MIXTURE_COST
    cylsm_require(classes > NEAR_CLASSES or operation == LOGSUMEXP_WEIGHTED)
    while j < rows:
        n = next_lanes(x, rows, singly, overlap, &j)
        if operation == SOFTMAX:
            strip_softmax(n, x + j, x_step, classes, state, first + j, exps + j, exps_step, following)
        elif operation == SOFTMAX_GRADIENT:
            strip_gradient(n, x + j, x_step, classes, state, first + j, exps + j, exps_step, following)
        elif operation == LOGSUMEXP:
            strip_logsumexp(n, x + j, x_step, classes, state, first + j)
        elif operation == LOGSUMEXP_WEIGHTED:
            reduce_lanes(LOGSUMEXP_WEIGHTED, False, False, CENTRED, n, x + j, x_step, y + j, y_step, classes, state, first + j,
                         NULL, 0, NULL)
        elif operation == LOG_SOFTMAX_BACKWARD and fills_vector(x, n):
            reduce_lanes(LOG_SOFTMAX_BACKWARD, False, False, CENTRED, lanes_of(x), x + j, x_step, x, 0, classes, state, first + j,
                         NULL, 0, NULL)
        elif operation == LOG_SOFTMAX_BACKWARD:
            reduce_lanes(LOG_SOFTMAX_BACKWARD, False, False, CENTRED, n, x + j, x_step, x, 0, classes, state, first + j, NULL, 0,
                         NULL)
        elif operation == SOFTMAX_BACKWARD:
            reduce_lanes(SOFTMAX_BACKWARD, False, False, CENTRED, n, x + j, x_step, y + j, y_step, classes, state, first + j,
                         NULL, 0, NULL)
        else:
            cost_lanes(n, x + j, x_step, y + j, y_step, classes, state, first + j)
        j += n


cdef void apply_strip(int operation, bint kept, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                      const real *factor, real *out, Py_ssize_t out_step, bint ask, bint stream) noexcept nogil:
    cdef Py_ssize_t n, ahead, j = 0
    cdef bint overlap = out != x and out != y and not stream
    cdef bint singly = is_short_run(x, x_step) and not stream and not ask and operation != MIXTURE
    while j < rows:
        n = next_lanes(x, rows, singly, overlap, &j)
        ahead = (STRIP_AHEAD_BYTES // <Py_ssize_t> sizeof(real) + n - 1) // n if ask else 0
        if fills_vector(x, n) and not stream and ahead == 0 and operation != MIXTURE:
            apply_width(operation, kept, False, lanes_of(x), n, x + j, x_step, y + j, y_step, classes, state, first + j,
                        factor, out + j, out_step, 0, NULL)
        else:
            apply_width(operation, kept, stream, n, n, x + j, x_step, y + j, y_step, classes, state, first + j,
                        factor + j if operation == MIXTURE else factor, out + j, out_step, ahead, NULL)
        j += n
