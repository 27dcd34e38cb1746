# Lanes: rows side by side, taken a class after the other; what is said here of one lane holds for all of a vector's.

cdef inline Py_ssize_t lanes_of(const real *x) noexcept nogil:
    """A vector's, but four at least: loops over two would be unrolled into scalars before they are vectorised."""
    return max(<Py_ssize_t> 4, CYLSM_VECTOR_BYTES // <Py_ssize_t> sizeof(real))


cdef inline Py_ssize_t line_of(const real *x) noexcept nogil:
    return LINE_BYTES // <Py_ssize_t> sizeof(real)


cdef inline real lowest(const real *x) noexcept nogil:
    """Where a maximum starts: finite, so that -inf less the top of a row (or tile) of -inf is -inf, not nan."""
    if real is float:
        return <real> -FLT_MAX
    else:
        return <real> -DBL_MAX


cdef inline real least_normal(const real *any) noexcept nogil:
    if real is float:
        return <real> FLT_MIN
    else:
        return <real> DBL_MIN


cdef inline real larger(real x, real top) noexcept nogil:
    """The larger one; top where x is nan."""
    return x if x > top else top


cdef inline bint same_bits(real x, real y) noexcept nogil:
    """x == y for numbers, but perhaps zeros of unlike sign, in an operation that no multiplication waits for. SSE2, which
    is without FMA, has none for 64 bits."""
    if real is float:
        return bits_of_float(x) == bits_of_float(y)
    elif CYLSM_FMA:
        return bits_of_double(x) == bits_of_double(y)
    else:
        return x == y


cdef inline real counted(real count, bint tie) noexcept nogil:
    """Ties are counted in the bits of a real, by the comparison that the sum needs too: in the masks of AVX-512, what does not
    tie. logsumexp of 1024 x 1000 float32 takes 286 us on one thread so, and 293; on AVX2 and baseline it would take longer."""
    cdef bint one = not tie if CYLSM_VECTOR_BYTES == LINE_BYTES else tie
    if real is float:
        return float_of_bits(bits_of_float(count) + <uint32_t> one)
    elif CYLSM_FMA:
        return double_of_bits(bits_of_double(count) + <uint64_t> one)
    else:
        return count + (1.0 if one else 0.0)


cdef inline real ties_among(Py_ssize_t n, real count) noexcept nogil:
    """How many of n elements, up to 2**23, tie."""
    cdef real counts
    if real is float:
        counts = <real> <int32_t> bits_of_float(count)
    elif not CYLSM_FMA:
        counts = count
    else:
        counts = double_of_bits(bits_of_double(count) + <uint64_t> 0x4330000000000000) - 4503599627370496.0
    return <real> n - counts if CYLSM_VECTOR_BYTES == LINE_BYTES else counts


cdef inline void add_term(bint guarded, real term, real *total, real *carry) noexcept nogil:
    """Addition that keeps what it loses (Dekker's Fast2Sum). Guarded, for terms of both signs and any order: Knuth's, and
    an infinite sum stays infinite."""
    cdef real s, lost
    if guarded:
        s = total[0] + term
        lost = lost_in_sum(total[0], term, s)
        carry[0] += finite(lost)
    else:
        s = total[0] + term
        carry[0] += term - (s - total[0])
    total[0] = s


cdef inline void add_sum(int operation, real term, real *total, real *carry) noexcept nogil:
    """The same of a sum of terms. Of float the larger one comes first where a logarithm follows: a class that has nearly all of the
    sum may come late, and would cost half an ulp of it: log_softmax would be off by up to 2.6 ulp, not 2.0. Of 30 x 1000 float32
    it takes 11.3 us so, and otherwise 11.0, and logsumexp 9.4 and 9.0."""
    cdef real s, high, low
    if real is float and counts_ties(operation):
        s = total[0] + term
        high = larger(term, total[0])
        low = total[0] if term > total[0] else term
        carry[0] += low - (s - high)
        total[0] = s
    else:
        add_term(is_backward(operation), term, total, carry)


cdef inline real term_of(int operation, real x, real y, real top, real e) noexcept nogil:
    """What one element adds to `rest`."""
    if operation == LOG_SOFTMAX_BACKWARD:
        return x
    elif operation == SOFTMAX_BACKWARD:
        return rounded_product(x, y)
    elif operation == LOGSUMEXP_WEIGHTED:
        # Infinities of both signs make nan, whatever their weights add up to.
        return (y * x if x == <real> INFINITY else <real> 0.0) if x == top else rounded_product(e, y)
    elif operation == SOFTMAX:
        return e
    else:
        return <real> 0.0 if same_bits(x, top) else e


cdef inline bint counts_ties(int operation) noexcept nogil:
    return not is_backward(operation) and operation != SOFTMAX


cdef inline real beside_infinity(const real *x, Py_ssize_t step, Py_ssize_t classes) noexcept nogil:
    """What the sum becomes for SOFTMAX of a row whose top is +inf: the others' probability is 0, unless there is a nan. An
    integer remembers it: gcc 12 makes a maximum of a choice between 1 and nan, and that skips nan."""
    cdef Py_ssize_t c
    cdef int found = 0
    for c in range(classes):
        found |= x[c * step] != x[c * step]
    return <real> NAN if found else <real> 1.0


cdef inline void set_references(Py_ssize_t width, real *of) noexcept nogil:
    """From the tops."""
    cdef Py_ssize_t j
    for j in range(width):
        set_reference(of[TOP * width + j], &of[CENTRE * width + j], &of[SHIFT * width + j], &of[LEAST * width + j])


cdef inline real exp_of_lane(int origin, real x, const real *of, Py_ssize_t step, Py_ssize_t i) noexcept nogil:
    if origin == NEAR:
        return exp_near(x, of[TOP * step + i])
    if origin == ROUNDED:
        return exp_from(True, False, x, of[TOP * step + i], rounder(&x) + exp_bias(&x),
                        -exp_bias(&x) * <real> 0.6931471805599453)
    return exp_from(True, origin == PLAIN, x, of[CENTRE * step + i], of[SHIFT * step + i], of[LEAST * step + i])


cdef inline void add_weighted(real x, real w, real top, real e, real *ties, real *ties_carry, real *total,
                              real *carry) noexcept nogil:
    """One element of a weighted sum, with what its roundings lose."""
    cdef real tie = w if x == top else <real> 0.0
    add_term(True, tie, ties, ties_carry)
    add_term(True, term_of(LOGSUMEXP_WEIGHTED, x, w, top, e), total, carry)
    carry[0] += <real> 0.0 if x == top else finite(lost_in_product(e, w, rounded_product(e, w)))


cdef inline real seen(int operation, real x, real y) noexcept nogil:
    """The element as reduce sees it: without weight it counts as -inf, whatever it holds."""
    if operation == LOGSUMEXP_WEIGHTED:
        return <real> -INFINITY if y == 0 else x
    return x


cdef inline bint is_backward(int operation) noexcept nogil:
    return operation == LOG_SOFTMAX_BACKWARD or operation == SOFTMAX_BACKWARD


cdef inline bint reads_y(int operation) noexcept nogil:
    return operation == SOFTMAX_BACKWARD or operation == LOGSUMEXP_WEIGHTED


cdef inline bint streamed(int operation, bint stream) noexcept nogil:
    """`stream`, but for softmax and its gradient of narrower vectors, which the driver does not stream: nothing is compiled for
    that."""
    return stream and (CYLSM_VECTOR_BYTES == LINE_BYTES or (operation != SOFTMAX and operation != SOFTMAX_GRADIENT))


cdef inline bint has_two(int operation) noexcept nogil:
    """Whether y is an array of its own, which a reduction may do without."""
    return operation != LOGSUMEXP and operation != LOG_SOFTMAX and operation != SOFTMAX and operation != SOFTMAX_GRADIENT


cdef inline bint writes(int operation) noexcept nogil:
    return operation != LOGSUMEXP and operation != LOGSUMEXP_WEIGHTED and operation != MIXTURE_COST


cdef inline void ask_for(const real *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, line = LINE_BYTES // <Py_ssize_t> sizeof(real)
    for i in range((n + line - 1) // line):
        prefetch_line(x + i * line)


cdef inline void ask_part(const void *array, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0 if array == NULL else (n + LINE_BYTES - 1) // LINE_BYTES):
        prefetch_line(<const char *> array + first + i * LINE_BYTES)


cdef void ask_runs(const Soon *soon, Py_ssize_t c, Py_ssize_t classes, Py_ssize_t n) noexcept nogil:
    """Not inline: a strip's sums need all registers, and take a tenth longer beside it."""
    cdef Py_ssize_t i
    keep_call()
    for i in range(c, c + classes):
        ask_part(soon.one, i * soon.one_step, n)
        ask_part(soon.other, i * soon.other_step, n)


cdef inline void ask_meanwhile(const Soon *soon, Py_ssize_t c, Py_ssize_t classes, Py_ssize_t n) noexcept nogil:
    """Asks for n bytes of both beside each of some classes from c on."""
    if soon != NULL and soon.one_step == 0:
        ask_part(soon.one, c * n, classes * n)
        ask_part(soon.other, c * n, classes * n)
    elif soon != NULL:
        ask_runs(soon, c, classes, n)


cdef inline void max_of_classes(int operation, int n, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                                Py_ssize_t y_step, real *top) noexcept nogil:
    """Raises top[j] to the largest of x[c * x_step + j] of n classes, up to four."""
    cdef Py_ssize_t j
    cdef real v0, v1, v2, v3, w0 = 0, w1 = 0, w2 = 0, w3 = 0
    for j in range(width):
        if operation == LOGSUMEXP_WEIGHTED:
            w0 = y[j]
            w1 = y[y_step + j] if n > 1 else w0
            w2 = y[2 * y_step + j] if n > 2 else w0
            w3 = y[3 * y_step + j] if n > 3 else w0
        # larger(x, top) skips a nan in x, so every element is compared with what is none.
        v0 = larger(seen(operation, x[j], w0), top[j])
        v1 = larger(seen(operation, x[x_step + j], w1), top[j]) if n > 1 else v0
        v2 = larger(seen(operation, x[2 * x_step + j], w2), v0) if n > 2 else v0
        v3 = larger(seen(operation, x[3 * x_step + j], w3), v1) if n > 3 else v1
        top[j] = larger(v3, v2)


cdef inline void lanes_max(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                           Py_ssize_t y_step, Py_ssize_t classes, real *top) noexcept nogil:
    """The same for any number of classes, four a sweep."""
    cdef Py_ssize_t c, whole = classes - classes % 4
    for c in range(0, whole, 4):
        max_of_classes(operation, 4, width, x + c * x_step, x_step, y + c * y_step, y_step, top)
    x = x + whole * x_step
    y = y + whole * y_step
    if classes - whole == 3:
        max_of_classes(operation, 3, width, x, x_step, y, y_step, top)
    elif classes - whole == 2:
        max_of_classes(operation, 2, width, x, x_step, y, y_step, top)
    elif classes - whole == 1:
        max_of_classes(operation, 1, width, x, x_step, y, y_step, top)


cdef inline void sum_of_classes(int operation, int n, int known, bint keep, bint apart, bint few, int origin,
                                Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                                const real *of, Py_ssize_t of_step, Py_ssize_t of_lane, real *total, real *carry,
                                real *ties, real *ties_carry, real *exps, Py_ssize_t exps_step) noexcept nogil:
    """Adds the terms of n classes, up to four, to their lanes' (each of `few` terms, or sums of two or four, with
    compensation), and counts the ties; of a single class all but the first `known` lanes. What lane j counts from stands at
    of[j * of_lane]. Exps are stored as they come where the steps are constants, so that the compiler can tell x and exps
    apart, and otherwise by way of an array `apart`."""
    cdef Py_ssize_t j, i
    cdef double exact
    cdef real v0, v1, v2, v3, e0, e1, e2, e3, w0, w1, w2, w3, top, sum_here, lost, tied, tied_lost
    cdef real kept[4 * STRIP]
    cdef bint backward = is_backward(operation), fresh
    w0 = w1 = w2 = w3 = 0
    for j in range(width):
        i = j * of_lane
        sum_here = total[j]
        lost = carry[j]
        tied = ties[j]
        tied_lost = ties_carry[j] if operation == LOGSUMEXP_WEIGHTED else <real> 0.0
        top = of[TOP * of_step + i]
        v1 = v2 = v3 = e0 = e1 = e2 = e3 = 0
        if reads_y(operation):
            w0 = y[j]
            w1 = y[y_step + j] if n > 1 else <real> 0.0
            w2 = y[2 * y_step + j] if n > 2 else <real> 0.0
            w3 = y[3 * y_step + j] if n > 3 else <real> 0.0
        v0 = seen(operation, x[j], w0)
        if n > 1:
            v1 = seen(operation, x[x_step + j], w1)
        if n > 2:
            v2 = seen(operation, x[2 * x_step + j], w2)
        if n > 3:
            v3 = seen(operation, x[3 * x_step + j], w3)
        if not backward:
            e0 = exp_of_lane(origin, v0, of, of_step, i)
            if n > 1:
                e1 = exp_of_lane(origin, v1, of, of_step, i)
            if n > 2:
                e2 = exp_of_lane(origin, v2, of, of_step, i)
            if n > 3:
                e3 = exp_of_lane(origin, v3, of, of_step, i)
        if keep and apart:
            kept[j] = e0
            if n > 1:
                kept[width + j] = e1
            if n > 2:
                kept[2 * width + j] = e2
            if n > 3:
                kept[3 * width + j] = e3
        elif keep:
            exps[j] = e0
            if n > 1:
                exps[exps_step + j] = e1
            if n > 2:
                exps[2 * exps_step + j] = e2
            if n > 3:
                exps[3 * exps_step + j] = e3
        if known > 0:
            # After the exp, which is kept of every lane. n is 1.
            fresh = <int> j >= known
            v0 = v0 if fresh else <real> -INFINITY
            w0 = w0 if fresh else <real> 0.0
            e0 = e0 if fresh else <real> 0.0
        if operation == LOGSUMEXP_WEIGHTED:
            add_weighted(v0, w0, top, e0, &tied, &tied_lost, &sum_here, &lost)
            if n > 1:
                add_weighted(v1, w1, top, e1, &tied, &tied_lost, &sum_here, &lost)
            if n > 2:
                add_weighted(v2, w2, top, e2, &tied, &tied_lost, &sum_here, &lost)
            if n > 3:
                add_weighted(v3, w3, top, e3, &tied, &tied_lost, &sum_here, &lost)
        else:
            if counts_ties(operation):
                tied = counted(tied, same_bits(v0, top))
                if n > 1:
                    tied = counted(tied, same_bits(v1, top))
                if n > 2:
                    tied = counted(tied, same_bits(v2, top))
                if n > 3:
                    tied = counted(tied, same_bits(v3, top))
            e0 = term_of(operation, v0, w0, top, e0)
            if n > 1:
                e1 = term_of(operation, v1, w1, top, e1)
            if n > 2:
                e2 = term_of(operation, v2, w2, top, e2)
            if n > 3:
                e3 = term_of(operation, v3, w3, top, e3)
            if operation == SOFTMAX_BACKWARD and real is float:
                exact = (<double> v0 * w0 + <double> v1 * w1) + (<double> v2 * w2 + <double> v3 * w3)
                e0 = <real> exact
                e1 = <real> (exact - e0)
                lost += finite(e1)
                add_term(True, e0, &sum_here, &lost)
            elif few:
                add_term(backward, e0, &sum_here, &lost)
                if n > 1:
                    add_term(backward, e1, &sum_here, &lost)
                if n > 2:
                    add_term(backward, e2, &sum_here, &lost)
                if n > 3:
                    add_term(backward, e3, &sum_here, &lost)
            else:
                if n > 1:
                    e0 = e0 + e1
                if n > 3:
                    e2 = e2 + e3
                if n > 2 and (real is float or operation == SOFTMAX_BACKWARD or operation == SOFTMAX):
                    # One addition less without compensation: where a class nearly ties, each may cost an ulp of the result,
                    # and softmax's sum holds the largest exp itself. softmax_backward's products have been rounded before.
                    add_sum(operation, e0, &sum_here, &lost)
                    e0 = e2
                elif n > 2:
                    e0 = e0 + e2
                add_sum(operation, e0, &sum_here, &lost)
        total[j] = sum_here
        carry[j] = lost
        if counts_ties(operation):
            ties[j] = tied
        if operation == LOGSUMEXP_WEIGHTED:
            ties_carry[j] = tied_lost
    if keep and apart:
        for j in range(width):
            exps[j] = kept[j]
        for j in range(width if n > 1 else 0):
            exps[exps_step + j] = kept[width + j]
        for j in range(width if n > 2 else 0):
            exps[2 * exps_step + j] = kept[2 * width + j]
        for j in range(width if n > 3 else 0):
            exps[3 * exps_step + j] = kept[3 * width + j]


cdef inline void lanes_sum(int operation, bint keep, bint few, int origin, Py_ssize_t width, const real *x,
                           Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t classes, const real *of,
                           real *total, real *carry, real *ties, real *ties_carry, real *exps,
                           Py_ssize_t exps_step, const Soon *soon) noexcept nogil:
    """The same for any number of classes, four a sweep."""
    cdef Py_ssize_t c, j, whole = classes - classes % 4
    for c in range(0, whole, 4):
        ask_meanwhile(soon, c, 4, width * <Py_ssize_t> sizeof(real))
        sum_of_classes(operation, 4, 0, keep, True, few, origin, width, x + c * x_step, x_step, y + c * y_step, y_step, of,
                       width, 1, total, carry, ties, ties_carry, exps + c * exps_step if keep else exps, exps_step)
    ask_meanwhile(soon, whole, classes - whole, width * <Py_ssize_t> sizeof(real))
    x = x + whole * x_step
    y = y + whole * y_step
    exps = exps + whole * exps_step if keep else exps
    if classes - whole == 3:
        sum_of_classes(operation, 3, 0, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    elif classes - whole == 2:
        sum_of_classes(operation, 2, 0, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    elif classes - whole == 1:
        sum_of_classes(operation, 1, 0, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    if counts_ties(operation) and operation != LOGSUMEXP_WEIGHTED:
        for j in range(width):
            ties[j] = ties_among(classes, ties[j])


cdef inline void write_state(int operation, int origin, Py_ssize_t width, Py_ssize_t rows, const real *of, real *total, real *carry,
                             const real *ties, const real *ties_carry, const RowState *state,
                             Py_ssize_t first) noexcept nogil:
    """What a reduction leaves: top, ties, and the rest with its carry, as multiples of exp(top)."""
    cdef Py_ssize_t j
    if not is_backward(operation):
        if origin == NEAR or origin == ROUNDED:
            for j in range(width):
                total[j] = total[j] * exp_unit(of)
            for j in range(width):
                carry[j] = carry[j] * exp_unit(of)
        for j in range(0 if origin == NEAR or origin == ROUNDED else width):
            lift_sum(of[TOP * width + j], of[CENTRE * width + j], of[SHIFT * width + j], &total[j], &carry[j])
        if operation == LOGSUMEXP_WEIGHTED:
            for j in range(width):
                carry[j] = carry[j] + ties_carry[j]
        for j in range(rows):
            (<real *> state.top)[first + j] = of[TOP * width + j]
        for j in range(rows):
            (<real *> state.ties)[first + j] = ties[j]
    for j in range(rows):
        (<real *> state.rest)[first + j] = total[j]
    for j in range(rows):
        (<real *> state.carry)[first + j] = carry[j]


cdef inline void lanes_cost(Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                            Py_ssize_t classes, const real *top, real *mass, real *mass_carry, real *cost,
                            real *cost_carry) noexcept nogil:
    """Adds y to its lane's mass and y * (top - x) to its cost; a class of probability 0 adds 0 where x is -inf."""
    cdef Py_ssize_t c, j
    cdef real p, product
    cdef double gap, exact
    for c in range(classes):
        for j in range(width):
            p = y[c * y_step + j]
            gap = <double> top[j] - x[c * x_step + j]
            exact = 0.0 if p == 0 and gap == INFINITY else p * gap
            product = <real> exact
            exact = exact - product
            add_term(True, p, &mass[j], &mass_carry[j])
            add_term(True, product, &cost[j], &cost_carry[j])
            cost_carry[j] = cost_carry[j] + <real> finite(exact)


cdef inline real applied(int operation, bint kept, real x, real y, const real *of, Py_ssize_t width,
                         Py_ssize_t j) noexcept nogil:
    """One element of the result. `kept`: x is its exp."""
    cdef real e, top = of[TOP * width + j], low = of[LOW * width + j], others
    cdef double p
    if operation == LOG_SOFTMAX:
        return (x + top) + low  # both negated
    elif operation == SOFTMAX or operation == SOFTMAX_GRADIENT:
        return (x if kept else exp_of_lane(ROUNDED if operation == SOFTMAX else NEAR, x, of, width, j)) * low
    elif operation == LOG_SOFTMAX_BACKWARD:
        return x - exp_scaled(y, of[SHIFT * width + j], of[LEAST * width + j], most_shifted(of[SHIFT * width])) * low
    elif operation == SOFTMAX_BACKWARD:
        return y * (x - low)
    else:
        # mass * p - y without what cancels in it, and 1 - p without cancellation where p is near 1.
        e = exp_near(x, top)
        p = (<double> e * exp_unit(of)) * low
        others = of[OTHERS * width + j]
        return <real> (of[FACTOR * width + j] * (p * ((<double> of[MASS * width + j] - y) + of[MASS_CARRY * width + j])
                                                 - y * (others if x == top else 1 - p)))


cdef inline bint read_state(int operation, Py_ssize_t width, Py_ssize_t n, const RowState *state,
                            Py_ssize_t first, const real *factor, real *of) noexcept nogil:
    """What `applied` needs of the state, of which n entries are rows that are there. True where results are still to be
    multiplied by AGAIN."""
    cdef Py_ssize_t j
    cdef real low, bound = least_normal(of) / exp_unit(of)
    cdef int small = 0
    for j in range(width):
        of[TOP * width + j] = (<const real *> state.top)[first + j]
    if operation == LOG_SOFTMAX:
        # Both are negated: an addition takes an element from memory where a subtraction would have to load it.
        for j in range(width):
            of[TOP * width + j] = -of[TOP * width + j]
        for j in range(width):
            of[LOW * width + j] = -(<const real *> state.log_sum)[first + j]
    else:
        for j in range(width):
            of[LOW * width + j] = (<const real *> state.scale)[first + j]
    if operation == LOG_SOFTMAX_BACKWARD:
        for j in range(width):
            of[LOW * width + j] = set_factor(of[LOW * width + j], &of[SHIFT * width + j], &of[LEAST * width + j])
    if operation == SOFTMAX or operation == SOFTMAX_GRADIENT:
        # The unit goes into the scale, unless that would become subnormal.
        for j in range(n):
            low = of[LOW * width + j]
            small |= (low != 0) & (-bound < low) & (low < bound)
        for j in range(width if small else 0):
            low = of[LOW * width + j]
            of[AGAIN * width + j] = exp_unit(of) if -bound < low < bound else <real> 1.0
            of[LOW * width + j] = low if -bound < low < bound else low * exp_unit(of)
        for j in range(0 if small else width):
            of[LOW * width + j] = of[LOW * width + j] * exp_unit(of)
    if operation == MIXTURE:
        for j in range(width):
            of[MASS * width + j] = (<const real *> state.mass)[first + j]
        for j in range(width):
            of[MASS_CARRY * width + j] = (<const real *> state.mass_carry)[first + j]
        for j in range(width):
            of[OTHERS * width + j] = (<const real *> state.others)[first + j]
        for j in range(width):
            of[FACTOR * width + j] = factor[j]
    return small


cdef void store_around(const real *line, Py_ssize_t n, real *out) noexcept nogil:
    """Whole lines go around the caches. Not inline, as ask_runs."""
    cdef Py_ssize_t head = min(n, -(<Py_ssize_t> out // <Py_ssize_t> sizeof(real)) & (line_of(out) - 1))
    cdef Py_ssize_t whole = (n - head) // line_of(out) * line_of(out)
    memcpy(out, line, head * sizeof(real))
    stream_lines(out + head, line + head, whole // line_of(out))
    memcpy(out + head + whole, line + head + whole, (n - head - whole) * sizeof(real))


cdef inline void apply_lanes(int operation, bint kept, bint stream, Py_ssize_t width, const real *x, Py_ssize_t x_step,
                             const real *y, Py_ssize_t y_step, Py_ssize_t classes, const real *of, real *out,
                             Py_ssize_t out_step, Py_ssize_t ahead, const Soon *soon) noexcept nogil:
    """`out` is x, with the same step, or overlaps neither x nor y; streamed, it overlaps neither. What lies `ahead` classes
    is asked for. Of a gradient's strip y has not been read before: asked for a class ahead at least, log_softmax_backward of
    8 x 21 x 128 x 128 float64 takes 3.4 ms on one thread, and 4.3 without."""
    cdef Py_ssize_t c, j
    cdef bint two = has_two(operation)
    cdef real line[STRIP]
    for c in range(classes):
        ask_meanwhile(soon, c, 1, width * <Py_ssize_t> sizeof(real))
        if ahead > 0 and not kept:
            ask_for(x + (c + ahead) * x_step, width)
        if (ahead > 0 and two) or (operation == LOG_SOFTMAX_BACKWARD and soon == NULL):
            ask_for(y + (c + max(ahead, <Py_ssize_t> 1)) * y_step, width)
        if ahead > 0 and not stream:
            ask_for(out + (c + ahead) * out_step, width)
        if stream:
            for j in range(width):
                line[j] = applied(operation, kept, x[c * x_step + j], y[c * y_step + j] if two else <real> 0.0, of, width, j)
            store_around(line, width, out + c * out_step)
        elif CYLSM_VECTOR_BYTES == LINE_BYTES and width == lanes_of(x):
            for j in range(width):
                line[j] = applied(operation, kept, x[c * x_step + j], y[c * y_step + j] if two else <real> 0.0, of, width, j)
            memcpy(out + c * out_step, line, width * sizeof(real))
        elif out == x:
            # The same pointer: the compiler sees that an element is read before it is written.
            for j in range(width):
                out[c * out_step + j] = applied(operation, kept, out[c * out_step + j],
                                                y[c * y_step + j] if two else <real> 0.0, of, width, j)
        else:
            for j in range(width):
                out[c * out_step + j] = applied(operation, kept, x[c * x_step + j],
                                                y[c * y_step + j] if two else <real> 0.0, of, width, j)


cdef inline void apply_lanes_to_y(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes,
                                  const real *of, real *out, Py_ssize_t out_step) noexcept nogil:
    """The same where `out` is y: a class at a time is computed apart."""
    cdef Py_ssize_t c
    cdef real line[STRIP]
    for c in range(classes):
        apply_lanes(operation, False, False, width, x + c * x_step, 0, out + c * out_step, out_step, 1, of, line, 0, 0, NULL)
        memcpy(out + c * out_step, line, width * sizeof(real))
