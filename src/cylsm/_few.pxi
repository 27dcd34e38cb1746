# Few classes: reduced, finished and written at once. Rows are the lanes, as they lie or transposed.

# ---- few classes: reduced, finished and written in one go ----------------------------------------------------------

cdef inline void sums_at_once(int operation, bint keep, int n, Py_ssize_t width, const real *x, Py_ssize_t x_step, real *top,
                              real *ties, real *total, real *carry, real *exps, Py_ssize_t exps_step) noexcept nogil:
    """Lanes of two to four classes, all in registers: the largest, how many equal it, and the sum of the others' exps; of a
    gradient the sum alone."""
    cdef Py_ssize_t j
    cdef real v0, v1, v2, v3, e0, e1, e2, e3, highest, tied, sum_here, lost
    cdef bint backward = is_backward(operation)
    v2 = v3 = e2 = e3 = highest = 0
    for j in range(width):
        e0 = v0 = x[j]
        e1 = v1 = x[x_step + j]
        if n > 2:
            e2 = v2 = x[2 * x_step + j]
        if n > 3:
            e3 = v3 = x[3 * x_step + j]
        if not backward:
            # larger(x, top) skips a nan in x, so every element is compared with what is none.
            highest = larger(v1, larger(v0, lowest(x)))
            if n > 2:
                highest = larger(v2, highest)
            if n > 3:
                highest = larger(v3, highest)
            e0 = exp_near(v0, highest)
            e1 = exp_near(v1, highest)
            tied = counted(counted(<real> 0.0, same_bits(v0, highest)), same_bits(v1, highest))
            if n > 2:
                e2 = exp_near(v2, highest)
                tied = counted(tied, same_bits(v2, highest))
            if n > 3:
                e3 = exp_near(v3, highest)
                tied = counted(tied, same_bits(v3, highest))
            top[j] = highest
            ties[j] = ties_among(n, tied)
        if keep:
            exps[j] = e0
            exps[exps_step + j] = e1
            if n > 2:
                exps[2 * exps_step + j] = e2
            if n > 3:
                exps[3 * exps_step + j] = e3
        sum_here = term_of(operation, v0, v0, highest, e0)
        lost = 0
        add_term(backward, term_of(operation, v1, v1, highest, e1), &sum_here, &lost)
        if n > 2:
            add_term(backward, term_of(operation, v2, v2, highest, e2), &sum_here, &lost)
        if n > 3:
            add_term(backward, term_of(operation, v3, v3, highest, e3), &sum_here, &lost)
        total[j] = sum_here if backward else sum_here * exp_unit(x)
        carry[j] = lost if backward else lost * exp_unit(x)


cdef inline void sums_of_parts(int operation, bint keep, int n, Py_ssize_t parts, Py_ssize_t part, const real *x, Py_ssize_t x_part,
                               Py_ssize_t x_step, real *top, real *ties, real *total, real *carry, real *exps,
                               Py_ssize_t exps_step) noexcept nogil:
    """The same of parts that lie apart in x, and side by side in what is written."""
    cdef Py_ssize_t i, at
    for i in range(parts):
        at = i * part
        sums_at_once(operation, keep, n, part, x + i * x_part, x_step, top + at, ties + at, total + at, carry + at, exps + at,
                     exps_step)


cdef void write_far(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const real *top,
                    const real *log_sum, const real *exps, const real *scale, const real *again, real *out,
                    Py_ssize_t out_step, const Soon *soon, bint stream) noexcept nogil:
    """How at_once writes what no cache holds. Not inline, for the registers."""
    cdef Py_ssize_t c, j
    cdef real line[AT_ONCE]
    for c in range(classes):
        ask_meanwhile(soon, c, 1, width * <Py_ssize_t> sizeof(real))
        if operation == LOG_SOFTMAX:
            for j in range(width):
                line[j] = (x[c * x_step + j] - top[j]) - log_sum[j]
        else:
            for j in range(width):
                line[j] = exps[c * width + j] * scale[j] * again[j]
        if stream:
            store_around(line, width, out + c * out_step)
        else:
            memcpy(out + c * out_step, line, width * sizeof(real))


cdef inline void at_once(int operation, bint spread, Py_ssize_t lines, const Apart *apart, const real *x, Py_ssize_t x_step,
                         const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                         const real *factor, real *out, Py_ssize_t out_step, const Soon *soon, bint stream) noexcept nogil:
    """Reduces, finishes and writes `lines` times MOST_LANES lanes, up to AT_ONCE, of up to NEAR_CLASSES classes or, of a
    gradient, SHORT_CLASSES, by way of local arrays alone. Each loop is so short that a processor sees the next few vectors:
    with all of it in one loop, log_softmax of 2 classes takes 17 % longer. Where there is a `soon`, the lanes that follow
    are asked for meanwhile. The lines lie side by side or, where they are `spread`, `apart`."""
    cdef Py_ssize_t c, i, at, j, width = lines * MOST_LANES
    cdef Py_ssize_t parts = lines if spread else 1, part = MOST_LANES if spread else width
    cdef Py_ssize_t x_part = apart.x if spread else MOST_LANES, y_part = apart.y if spread else MOST_LANES
    cdef Py_ssize_t out_part = apart.out if spread else MOST_LANES, state_part = apart.state if spread else MOST_LANES
    cdef bint softmax = operation == SOFTMAX or operation == SOFTMAX_GRADIENT, backward = is_backward(operation), small
    cdef bint products = operation == SOFTMAX_BACKWARD
    cdef int summed = operation if backward else LOGSUMEXP
    cdef real low, most = 0, bound = least_normal(x) / exp_unit(x)
    cdef real top[AT_ONCE]
    cdef real ties[AT_ONCE]
    cdef real total[AT_ONCE]
    cdef real carry[AT_ONCE]
    cdef real log_sum[AT_ONCE]
    cdef real log_low[AT_ONCE]
    cdef real scale[AT_ONCE]
    cdef real again[AT_ONCE]
    cdef real shift[AT_ONCE]
    cdef real least[AT_ONCE]
    cdef real line[AT_ONCE]
    cdef real exps[NEAR_CLASSES * AT_ONCE]
    cylsm_require(width <= AT_ONCE and classes <= (SHORT_CLASSES if backward else NEAR_CLASSES))
    if classes == 2 and not products:
        sums_of_parts(summed, softmax, 2, parts, part, x, x_part, x_step, top, ties, total, carry, exps, width)
    elif classes == 3 and not products:
        sums_of_parts(summed, softmax, 3, parts, part, x, x_part, x_step, top, ties, total, carry, exps, width)
    elif classes == 4 and not products:
        sums_of_parts(summed, softmax, 4, parts, part, x, x_part, x_step, top, ties, total, carry, exps, width)
    else:
        for j in range(width):
            top[j] = lowest(x)
            total[j] = carry[j] = ties[j] = 0
        for i in range(parts):
            at = i * part
            if not backward:
                lanes_max(summed, part, x + i * x_part, x_step, x, 0, classes, top + at)
            if classes <= NEAR_CLASSES and not products:
                lanes_sum(summed, softmax, True, NEAR, part, x + i * x_part, x_step, x, 0, classes, top + at, total + at, carry + at,
                          ties + at, ties + at, exps + at, width, NULL)
            elif backward:
                lanes_sum(operation, False, False, NEAR, part, x + i * x_part, x_step, y + i * y_part, y_step, classes, top + at,
                          total + at, carry + at, ties + at, ties + at, exps + at, width, NULL)
        for j in range(0 if backward else width):
            total[j] = total[j] * exp_unit(x)
            carry[j] = carry[j] * exp_unit(x)
    if products:
        for j in range(width):
            scale[j] = total[j] + carry[j]
    elif backward:
        for j in range(width):
            scale[j] = set_factor(total[j] + carry[j], &shift[j], &least[j])
        most = most_shifted(shift[0])
    elif operation != SOFTMAX:
        for j in range(width):
            low = log_of_sum(ties[j], total[j], carry[j], &log_low[j])
            log_sum[j] = <real> -INFINITY if ties[j] + total[j] == 0 else low
    if softmax:
        for j in range(width):
            line[j] = <real> 1.0
        for i in range(parts if factor != NULL else 0):
            memcpy(line + i * part, factor + i * state_part, part * sizeof(real))
        for j in range(width):
            scale[j] = share(line[j], ties[j], total[j], carry[j])
    if operation == SOFTMAX_GRADIENT:
        for j in range(width):
            line[j] = share_of_others(line[j], ties[j], total[j], carry[j])
        for i in range(parts):
            memcpy(<real *> state.scale + first + i * state_part, scale + i * part, part * sizeof(real))
            memcpy(<real *> state.others + first + i * state_part, line + i * part, part * sizeof(real))
    if operation == LOGSUMEXP or operation == SOFTMAX_GRADIENT:
        for j in range(width):
            log_low[j] = finite(log_low[j])
        for i in range(parts):
            memcpy(<real *> state.top + first + i * state_part, top + i * part, part * sizeof(real))
            memcpy(<real *> state.log_sum + first + i * state_part, log_sum + i * part, part * sizeof(real))
            memcpy(<real *> state.log_low + first + i * state_part, log_low + i * part, part * sizeof(real))
    for j in range(width if softmax else 0):
        # The unit goes into the scale, unless that would become subnormal.
        small = -bound < scale[j] < bound
        again[j] = exp_unit(x) if small else <real> 1.0
        scale[j] = scale[j] if small else scale[j] * exp_unit(x)
    if (stream or soon != NULL) and not backward and operation != LOGSUMEXP:
        write_far(operation, width, x, x_step, classes, top, log_sum, exps, scale, again, out, out_step, soon, stream)
        return
    # An output may be an input, which the compiler cannot know: it is computed apart.
    for c in range(0 if operation == LOGSUMEXP or backward else classes):
        for i in range(parts):
            at = i * part
            for j in range(part):
                if operation == LOG_SOFTMAX:
                    line[j] = (x[c * x_step + i * x_part + j] - top[at + j]) - log_sum[at + j]
                else:
                    line[j] = exps[c * width + at + j] * scale[at + j] * again[at + j]
            for j in range(part):
                out[c * out_step + i * out_part + j] = line[j]
    # Of a gradient the next lanes are asked for meanwhile: three times as many arrays as classes are too many for the
    # processor to foresee. Of 4 x 3 x 256 x 256 float64 that are in no cache it takes 300 us on two threads so, and 480.
    for c in range(classes if backward else 0):
        for i in range(lines):
            at = i * MOST_LANES
            if soon != NULL:
                ask_for(x + c * x_step + width + at, MOST_LANES)
                ask_for(y + c * y_step + width + at, MOST_LANES)
                ask_for(out + c * out_step + width + at, MOST_LANES)
            for j in range(MOST_LANES):
                if products:
                    line[j] = y[c * y_step + i * y_part + j] * (x[c * x_step + i * x_part + j] - scale[at + j])
                else:
                    line[j] = (x[c * x_step + i * x_part + j]
                               - exp_scaled(y[c * y_step + i * y_part + j], shift[at + j], least[at + j],
                                            most) * scale[at + j])
            for j in range(MOST_LANES):
                out[c * out_step + i * out_part + j] = line[j]


cdef void lanes_at_once(int operation, Py_ssize_t lines, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                        Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                        Py_ssize_t out_step, const Soon *soon, bint stream) noexcept nogil:
    if operation == LOGSUMEXP:
        at_once(LOGSUMEXP, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step, soon,
                stream)
    elif operation == LOG_SOFTMAX:
        at_once(LOG_SOFTMAX, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step, soon,
                stream)
    elif operation == LOG_SOFTMAX_BACKWARD:
        at_once(LOG_SOFTMAX_BACKWARD, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                soon, stream)
    elif operation == SOFTMAX_BACKWARD:
        at_once(SOFTMAX_BACKWARD, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                soon, stream)
    elif operation == SOFTMAX:
        at_once(SOFTMAX, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step, soon, stream)
    else:
        at_once(SOFTMAX_GRADIENT, False, lines, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                soon, stream)


cdef void spread_at_once(int operation, Py_ssize_t lines, const Apart *apart, const real *x, Py_ssize_t x_step, const real *y,
                         Py_ssize_t y_step, Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor,
                         real *out, Py_ssize_t out_step) noexcept nogil:
    if operation == LOGSUMEXP:
        at_once(LOGSUMEXP, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step, NULL,
                False)
    elif operation == LOG_SOFTMAX:
        at_once(LOG_SOFTMAX, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step, NULL,
                False)
    elif operation == LOG_SOFTMAX_BACKWARD:
        at_once(LOG_SOFTMAX_BACKWARD, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                NULL, False)
    elif operation == SOFTMAX_BACKWARD:
        at_once(SOFTMAX_BACKWARD, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                NULL, False)
    elif operation == SOFTMAX:
        at_once(SOFTMAX, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step, NULL, False)
    else:
        at_once(SOFTMAX_GRADIENT, True, lines, apart, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                NULL, False)


cdef inline bint fits_at_once(int operation, Py_ssize_t classes) noexcept nogil:
    """Whether at_once takes the operation. Exps of more classes than NEAR_CLASSES may count from references, which it has not."""
    return (2 <= classes <= (SHORT_CLASSES if is_backward(operation) else NEAR_CLASSES)
            and operation != LOGSUMEXP_WEIGHTED and operation != MIXTURE_COST and operation != MIXTURE)


cdef inline void lanes_group(int operation, bint write, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                             Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                             Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step, const Soon *in_reduce,
                             const Soon *in_apply) noexcept nogil:
    """Reduces, finishes and, if asked to, writes `width` lanes, `rows` of which are rows that are there. The state has room
    for as many from `first`."""
    cdef bint softmax, mixture = operation == MIXTURE or operation == MIXTURE_COST
    # Gradients of more classes not: log_softmax_backward of 4096 x 12 float32 would take a tenth longer.
    if width == GROUP and classes <= NEAR_CLASSES and fits_at_once(operation, classes):
        ask_meanwhile(in_reduce, 0, classes, width * <Py_ssize_t> sizeof(real))
        ask_meanwhile(in_apply, 0, classes, width * <Py_ssize_t> sizeof(real))
        at_once(operation, False, GROUP // MOST_LANES, NULL, x, x_step, y, y_step, classes, state, first, factor, out, out_step,
                NULL, False)
        return
    reduce_width(LOGSUMEXP if mixture else operation, width, x, x_step, y, y_step, classes, state, first, out, out_step,
                 in_reduce)
    finish_block(operation, width, state, first, factor)
    if mixture:
        reduce_width(MIXTURE_COST, width, x, x_step, y, y_step, classes, state, first, out, out_step, NULL)
    if write and writes(operation):
        softmax = operation == SOFTMAX or operation == SOFTMAX_GRADIENT
        apply_width(operation, True, False, width, rows, out if softmax else x, out_step if softmax else x_step, y, y_step,
                    classes, state, first, factor, out, out_step, 0, in_apply)


# A function for each operation, as in _rows.pxi: lanes as they lie and transposed rows share them.

cdef void group_logsumexp(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                          Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                          Py_ssize_t out_step, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    lanes_group(LOGSUMEXP, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                in_apply)


cdef void group_log_softmax(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                            Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                            Py_ssize_t out_step, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    lanes_group(LOG_SOFTMAX, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step,
                in_reduce, in_apply)


cdef void group_softmax(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                        Py_ssize_t out_step, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    lanes_group(SOFTMAX, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                in_apply)


cdef void group_softmax_gradient(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                 Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                                 const real *factor, real *out, Py_ssize_t out_step, const Soon *in_reduce,
                                 const Soon *in_apply) noexcept nogil:
    lanes_group(SOFTMAX_GRADIENT, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step,
                in_reduce, in_apply)


cdef void group_log_softmax_backward(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                     Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                                     const real *factor, real *out, Py_ssize_t out_step, const Soon *in_reduce,
                                     const Soon *in_apply) noexcept nogil:
    lanes_group(LOG_SOFTMAX_BACKWARD, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step,
                in_reduce, in_apply)


cdef void group_softmax_backward(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                 Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                                 const real *factor, real *out, Py_ssize_t out_step, const Soon *in_reduce,
                                 const Soon *in_apply) noexcept nogil:
    lanes_group(SOFTMAX_BACKWARD, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step,
                in_reduce, in_apply)


cdef void group_mixture(bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                        Py_ssize_t out_step, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    lanes_group(MIXTURE, write, GROUP, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                in_apply)


cdef inline void whole_group(int operation, bint write, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                             Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor,
                             real *out, Py_ssize_t out_step, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    cylsm_require(operation != LOGSUMEXP_WEIGHTED)
    if operation == LOGSUMEXP:
        group_logsumexp(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce, in_apply)
    elif operation == LOG_SOFTMAX:
        group_log_softmax(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce, in_apply)
    elif operation == SOFTMAX:
        group_softmax(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce, in_apply)
    elif operation == SOFTMAX_GRADIENT:
        group_softmax_gradient(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                               in_apply)
    elif operation == LOG_SOFTMAX_BACKWARD:
        group_log_softmax_backward(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                                   in_apply)
    elif operation == SOFTMAX_BACKWARD:
        group_softmax_backward(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce,
                               in_apply)
    else:
        group_mixture(write, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, in_reduce, in_apply)


cdef inline void copy_lanes(const real *x, Py_ssize_t x_step, Py_ssize_t n, Py_ssize_t classes, Py_ssize_t width,
                            real *out) noexcept nogil:
    """n lanes, `width` elements from class to class; those that are not there become 0."""
    cdef Py_ssize_t c
    for c in range(width * classes):
        out[c] = 0
    for c in range(classes):
        memcpy(out + c * width, x + c * x_step, n * sizeof(real))


cdef inline Py_ssize_t lanes_together(const real *x, Py_ssize_t classes) noexcept nogil:
    """How many lanes at_once takes at a time."""
    if real is float:
        return AT_ONCE
    else:
        return AT_ONCE if classes <= REGISTER_CLASSES else AT_ONCE // 2


cdef inline void few_strip_in(bint fits, int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                              Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor,
                              real *out, Py_ssize_t out_step, real *scratch, bint far, bint stream) noexcept nogil:
    """In whole units: of at_once, which `fits`, or groups. The last few lanes are computed with those before once more or, where
    these have been overwritten or are too few, copied to where a whole unit can be read and written."""
    cdef bint copied
    cdef Py_ssize_t unit = MOST_LANES if fits else GROUP, most = GROUP
    cdef Py_ssize_t c, left, lacking, n, width, x_here_step, y_here_step, out_here_step, r = 0
    cdef real *x_lanes = scratch
    cdef real *y_lanes = scratch + SCRATCH
    cdef const real *x_here
    cdef const real *y_here
    cdef real *out_here
    cdef const real *factor_here = factor
    cdef Soon soon
    if fits:
        most = lanes_together(x, classes)
    soon.one_step = x_step * sizeof(real)
    soon.other_step = out_step * sizeof(real)
    while r < rows:
        left = rows - r
        lacking = -left & (unit - 1)
        if most < left < 2 * most:
            left = (left // 2 + unit - 1) // unit * unit
        elif lacking > 0 and left <= most and out != x and out != y:
            # What has not been overwritten may be computed twice.
            if r >= lacking:
                r -= lacking
                left += lacking
            elif left > unit:
                left = (left // 2 + unit - 1) // unit * unit
        n = width = min(left, most) // unit * unit
        copied = width == 0
        x_here, y_here, out_here = x + r, y + r, out + r
        x_here_step, y_here_step, out_here_step = x_step, y_step, out_step
        if factor != NULL:
            factor_here = factor + r
        if copied:
            n, width = left, unit
            copy_lanes(x_here, x_step, n, classes, unit, x_lanes)
            if has_two(operation):
                copy_lanes(y_here, y_step, n, classes, unit, y_lanes)
            x_here, y_here, out_here = x_lanes, y_lanes, x_lanes
            x_here_step = y_here_step = out_here_step = unit
        if fits:
            soon.one = x_here + width
            soon.other = out_here + width if not stream else NULL
            lanes_at_once(operation, width // MOST_LANES, x_here, x_here_step, y_here, y_here_step, classes, state, first + r,
                          factor_here, out_here, out_here_step,
                          &soon if not copied and (far or is_backward(operation)) and r + n < rows else NULL,
                          stream and not copied)
        else:
            whole_group(operation, writes(operation), x_here, x_here_step, y_here, y_here_step, n, classes, state, first + r,
                        factor_here, out_here, out_here_step, NULL, NULL)
        for c in range(classes if copied and out != NULL else 0):
            memcpy(out + r + c * out_step, x_lanes + c * unit, n * sizeof(real))
        r += n


cdef inline void lines_of_runs(int operation, const real *x, Py_ssize_t x_step, Py_ssize_t x_run, const real *y, Py_ssize_t y_step,
                               Py_ssize_t y_run, Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t classes, const RowState *state,
                               const real *factor, real *out, Py_ssize_t out_step, Py_ssize_t out_run) noexcept nogil:
    """Runs of a few whole lines. A line of each is taken at a time: by itself, one would take as long as several."""
    cdef Py_ssize_t i, b, at, r, n, most = lanes_together(x, classes) // MOST_LANES
    cdef Apart apart
    apart.x, apart.y, apart.out, apart.state = x_run, y_run, out_run, rows
    for i in range(rows // MOST_LANES):
        at = i * MOST_LANES
        for b in range((runs + most - 1) // most):
            r = b * most
            n = min(most, runs - r)
            spread_at_once(operation, n, &apart, x + at + r * x_run, x_step, y + at + r * y_run, y_step, classes, state,
                           r * rows + at, factor + r * rows + at if factor != NULL else NULL, out + at + r * out_run, out_step)


cdef void few_strip(int operation, const real *x, Py_ssize_t x_step, Py_ssize_t x_run, const real *y, Py_ssize_t y_step,
                    Py_ssize_t y_run, Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t classes, const RowState *state,
                    const real *factor, real *out, Py_ssize_t out_step, Py_ssize_t out_run, real *scratch, bint far,
                    bint stream) noexcept nogil:
    """Lanes of up to SHORT_CLASSES classes."""
    cdef Py_ssize_t r
    cdef const real *factor_here = NULL
    cylsm_require(classes <= SHORT_CLASSES)
    if (CYLSM_VECTOR_BYTES == LINE_BYTES and fits_at_once(operation, classes) and runs > 1 and rows % MOST_LANES == 0
            and rows < GROUP and not stream):
        lines_of_runs(operation, x, x_step, x_run, y, y_step, y_run, rows, runs, classes, state, factor, out, out_step, out_run)
        return
    # In order: what is copied sets entries of the state behind its own.
    for r in range(runs):
        if factor != NULL:
            factor_here = factor + r * rows
        if fits_at_once(operation, classes):
            few_strip_in(True, operation, x + r * x_run, x_step, y + r * y_run, y_step, rows, classes, state, r * rows, factor_here,
                         out + r * out_run, out_step, scratch, far, stream)
        else:
            few_strip_in(False, operation, x + r * x_run, x_step, y + r * y_run, y_step, rows, classes, state, r * rows,
                         factor_here, out + r * out_run, out_step, scratch, far, stream)


# ---- few classes: rows are the lanes -------------------------------------------------------------------------------

cdef inline void shuffle(const real *x, real *out, Py_ssize_t quarter) noexcept nogil:
    """Interleaves the four quarters of x; log_4(GROUP) times, this transposes GROUP rows side by side."""
    cdef Py_ssize_t i
    for i in range(quarter):
        out[4 * i] = x[i]
        out[4 * i + 1] = x[i + quarter]
        out[4 * i + 2] = x[i + 2 * quarter]
        out[4 * i + 3] = x[i + 3 * quarter]


cdef inline void unshuffle(const real *x, real *out, Py_ssize_t quarter) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(quarter):
        out[i] = x[4 * i]
        out[i + quarter] = x[4 * i + 1]
        out[i + 2 * quarter] = x[4 * i + 2]
        out[i + 3 * quarter] = x[4 * i + 3]


cdef inline void gather(Py_ssize_t rows, const real *x, Py_ssize_t x_step, Py_ssize_t classes, real *lanes,
                        Py_ssize_t width) noexcept nogil:
    """Transposes four rows, or as many as fill a vector, of at least four classes. The last four overlap others."""
    cdef Py_ssize_t i, c
    for i in range((classes + 3) // 4):
        c = min(4 * i, classes - 4)
        if rows == 4:
            transpose(x + c, x_step, lanes + c * width, width)
        elif real is float:
            gather_float(x + c, x_step, lanes + c * width, width)
        else:
            gather_double(x + c, x_step, lanes + c * width, width)


cdef inline void scatter(Py_ssize_t rows, const real *lanes, Py_ssize_t width, Py_ssize_t classes, real *out,
                         Py_ssize_t out_step) noexcept nogil:
    """The way back."""
    cdef Py_ssize_t i, c
    for i in range((classes + 3) // 4):
        c = min(4 * i, classes - 4)
        if rows == 4:
            transpose(lanes + c * width, width, out + c, out_step)
        elif real is float:
            scatter_float(lanes + c * width, width, out + c, out_step)
        else:
            scatter_double(lanes + c * width, width, out + c, out_step)


cdef inline Py_ssize_t gathered_rows(const real *x) noexcept nogil:
    """How many rows fill a vector."""
    return <Py_ssize_t> 4 * (CYLSM_FLOAT_QUADS if real is float else CYLSM_DOUBLE_QUADS)


cdef void lanes_from_rows(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                          real *lanes, real *scratch) noexcept nogil:
    """lanes[c * width + r] = x[r * x_step + c]; lanes of rows that are not there become 0. Not inline: among other loops
    these run out of registers."""
    cdef Py_ssize_t r = 0, c, group = gathered_rows(x)
    if rows < width:
        for c in range(width * classes):
            lanes[c] = 0
    if classes < 4 and rows == GROUP and x_step == classes:
        shuffle(x, lanes, GROUP // 4 * classes)
        shuffle(lanes, scratch, GROUP // 4 * classes)
        shuffle(scratch, lanes, GROUP // 4 * classes)
        return
    while classes >= 4 and r + group <= rows:
        gather(group, x + r * x_step, x_step, classes, lanes + r, width)
        r += group
    while classes >= 4 and r + 4 <= rows:
        gather(4, x + r * x_step, x_step, classes, lanes + r, width)
        r += 4
    while r < rows:
        for c in range(classes):
            lanes[c * width + r] = x[r * x_step + c]
        r += 1


cdef void rows_from_lanes(Py_ssize_t width, real *lanes, Py_ssize_t rows, Py_ssize_t classes, real *out,
                          Py_ssize_t out_step, real *scratch) noexcept nogil:
    cdef Py_ssize_t r = 0, c, group = gathered_rows(lanes)
    if classes < 4 and rows == GROUP and out_step == classes:
        unshuffle(lanes, scratch, GROUP // 4 * classes)
        unshuffle(scratch, lanes, GROUP // 4 * classes)
        unshuffle(lanes, out, GROUP // 4 * classes)
        return
    while classes >= 4 and r + group <= rows:
        scatter(group, lanes + r, width, classes, out + r * out_step, out_step)
        r += group
    while classes >= 4 and r + 4 <= rows:
        scatter(4, lanes + r, width, classes, out + r * out_step, out_step)
        r += 4
    while r < rows:
        for c in range(classes):
            out[r * out_step + c] = lanes[c * width + r]
        r += 1


cdef inline bint written_by_rows(int operation, Py_ssize_t classes) noexcept nogil:
    """Nothing is transposed back then: log_softmax of 4096 x 64 float32 takes 40 us on two threads so, and 49 otherwise."""
    return operation == LOG_SOFTMAX and classes >= SHORTEST_ROW


cdef inline void few_group(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                           Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                           Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step,
                           real *scratch, const Soon *in_reduce, const Soon *in_apply) noexcept nogil:
    """Reduces, finishes and writes up to `width` rows. The state has room for `width` entries from `first`."""
    cdef real *x_lanes = scratch
    cdef real *y_lanes = scratch + SCRATCH
    cdef real *other = scratch + 2 * SCRATCH
    cdef bint by_rows = written_by_rows(operation, classes)
    lanes_from_rows(width, x, x_step, rows, classes, x_lanes, other)
    if has_two(operation):
        lanes_from_rows(width, y, y_step, rows, classes, y_lanes, other)
    if width == GROUP:
        whole_group(operation, out != NULL and not by_rows, x_lanes, GROUP, y_lanes, GROUP, rows, classes, state, first, factor,
                    x_lanes, GROUP, in_reduce, in_apply)
    else:
        lanes_group(operation, out != NULL and not by_rows, width, x_lanes, width, y_lanes, width, rows, classes, state, first,
                    factor, x_lanes, width, in_reduce, in_apply)
    if by_rows:
        apply_rows(operation, False, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, False, False)
    elif writes(operation) and out != NULL:
        rows_from_lanes(width, x_lanes, rows, classes, out, out_step, other)


cdef inline void few_groups(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                            Py_ssize_t classes, const RowState *state, const real *factor, real *out, Py_ssize_t out_step,
                            real *scratch) noexcept nogil:
    cdef Py_ssize_t g, r, n, group = LONG_GROUP
    cdef Soon in_reduce, in_apply
    cdef const real *factor_here
    cylsm_require(classes * <Py_ssize_t> sizeof(real) <= FEW_BYTES)
    # Weighted sums never: of two sizes of group the compiler makes code that fuses other multiplications.
    if classes * <Py_ssize_t> sizeof(real) <= LINE_BYTES and operation != LOGSUMEXP_WEIGHTED:
        group = GROUP
    in_reduce.one_step = in_apply.one_step = 0
    for g in range((rows + group - 1) // group):
        r = g * group
        n = min(rows - r, group)
        factor_here = factor
        if factor != NULL:
            factor_here = factor + r
        # Spread over the loops, where they are long: asked for at once, a group of three arrays would be waited for.
        in_reduce.one = x + (r + (2 if group == LONG_GROUP else 1) * group) * x_step
        in_reduce.other = in_apply.one = in_apply.other = NULL
        if is_backward(operation):
            in_apply.one = y + (r + group) * y_step
        elif y != x:
            in_reduce.other = y + (r + group) * y_step
        # Not the output behind this block's: another thread may be writing it.
        if out != NULL and r + group < rows and y != x:
            in_apply.other = out + (r + group) * out_step
        elif out != NULL and r + group < rows and y == x and out != x:
            in_reduce.other = out + (r + group) * out_step
        if n > LONG_GROUP:
            few_group(operation, GROUP, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, r,
                      factor_here, out + r * out_step, out_step, scratch, &in_reduce, &in_apply)
        else:
            few_group(operation, LONG_GROUP, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, r,
                      factor_here, out + r * out_step, out_step, scratch, &in_reduce, &in_apply)


# Apart from each other for the registers, as softmax_sums in _rows.pxi.

cdef void few_logsumexp(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                        Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                        Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(LOGSUMEXP, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_logsumexp_weighted(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                 Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                                 Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(LOGSUMEXP_WEIGHTED, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_log_softmax(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                          Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                          Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(LOG_SOFTMAX, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_softmax(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                      Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(SOFTMAX, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_softmax_gradient(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                               Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                               Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(SOFTMAX_GRADIENT, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_log_softmax_backward(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                   Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                                   Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(LOG_SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_softmax_backward(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                               Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                               Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_mixture(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, const real *factor, real *out,
                      Py_ssize_t out_step, real *scratch) noexcept nogil:
    few_groups(MIXTURE, x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)


cdef void few_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                   Py_ssize_t classes, const RowState *state, const real *factor, real *out, Py_ssize_t out_step,
                   real *scratch) noexcept nogil:
    if operation == LOGSUMEXP:
        few_logsumexp(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == LOGSUMEXP_WEIGHTED:
        few_logsumexp_weighted(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == LOG_SOFTMAX:
        few_log_softmax(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == SOFTMAX:
        few_softmax(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == SOFTMAX_GRADIENT:
        few_softmax_gradient(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == LOG_SOFTMAX_BACKWARD:
        few_log_softmax_backward(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    elif operation == SOFTMAX_BACKWARD:
        few_softmax_backward(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
    else:
        few_mixture(x, x_step, y, y_step, rows, classes, state, factor, out, out_step, scratch)
