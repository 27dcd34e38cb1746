# Between reduce and apply: tiles are merged, and sums become what apply needs.

cdef inline void add_double(double term, double *total, double *carry) noexcept nogil:
    cdef double s = total[0] + term
    cdef double lost = lost_in_sum(total[0], term, s)
    carry[0] += finite(lost)
    total[0] = s


cdef inline real low_part(double total, double carry, real high) noexcept nogil:
    """What is left of total + carry beside `high`, the total rounded; nothing beside one that is not finite."""
    cdef double low = total - high
    return <real> (low + carry) if low - low == 0 else <real> 0.0


cdef inline void merge_sums(int operation, Py_ssize_t n, const RowState *state, real *tops, Py_ssize_t rows, Py_ssize_t tiles,
                            Py_ssize_t at, Py_ssize_t to) noexcept nogil:
    """merge of up to GROUP rows from `at` on, a tile at a time: the smaller of two tops is brought to multiples of the
    larger one's exp."""
    cdef Py_ssize_t t, j, i
    cdef double other_top, other_ties, other_rest, other_carry, shrink, kept
    cdef bint same, higher
    cdef double top[GROUP]
    cdef double ties[GROUP]
    cdef double rest[GROUP]
    cdef double carry[GROUP]
    for j in range(n):
        top[j] = lowest(tops)
        ties[j] = rest[j] = carry[j] = 0
    for t in range(tiles):
        i = t * rows + at
        for j in range(n):
            other_rest = (<const real *> state.rest)[i + j]
            other_carry = (<const real *> state.carry)[i + j]
            if not is_backward(operation):
                other_top = tops[i + j]
                other_ties = (<const real *> state.ties)[i + j]
                same = other_top == top[j]
                higher = other_top > top[j]
                shrink = exp_near(top[j] if higher else other_top, other_top if higher else top[j]) * exp_unit(&shrink)
                kept = other_rest if higher else rest[j]
                other_rest = other_rest if same else shrink * (ties[j] + rest[j] if higher else other_ties + other_rest)
                rest[j] = kept
                kept = other_carry if higher else carry[j]
                other_carry = other_carry if same else shrink * (carry[j] if higher else other_carry)
                carry[j] = kept
                ties[j] = ties[j] + other_ties if same else (other_ties if higher else ties[j])
                top[j] = other_top if higher else top[j]
            add_double(other_rest, &rest[j], &carry[j])
            carry[j] += other_carry
    for j in range(0 if is_backward(operation) else n):
        tops[to + j] = <real> top[j]
    for j in range(0 if is_backward(operation) else n):
        (<real *> state.ties)[to + j] = <real> ties[j]
    for j in range(n):
        (<real *> state.rest)[to + j] = <real> rest[j]
    for j in range(n):
        (<real *> state.carry)[to + j] = low_part(rest[j], carry[j], <real> rest[j])


cdef inline void merge_cost(const real *any, const RowState *state, Py_ssize_t rows, Py_ssize_t tiles, Py_ssize_t at,
                            Py_ssize_t to) noexcept nogil:
    cdef Py_ssize_t t, i
    cdef double cost = 0, carry = 0, mass = 0, mass_carry = 0
    for t in range(tiles):
        i = t * rows + at
        add_double((<const real *> state.cost)[i], &cost, &carry)
        carry += (<const real *> state.carry)[i]
        add_double((<const real *> state.mass)[i], &mass, &mass_carry)
        mass_carry += (<const real *> state.mass_carry)[i]
    (<real *> state.cost)[to] = <real> cost
    (<real *> state.carry)[to] = low_part(cost, carry, <real> cost)
    (<real *> state.mass)[to] = <real> mass
    (<real *> state.mass_carry)[to] = low_part(mass, mass_carry, <real> mass)


cdef void merge(int operation, const RowState *state, real *tops, Py_ssize_t rows, Py_ssize_t tiles,
                Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t r, b
    if operation == MIXTURE_COST:
        for r in range(rows):
            merge_cost(tops, state, rows, tiles, r, first + r)
        return
    for b in range((rows + GROUP - 1) // GROUP):
        r = b * GROUP
        if is_backward(operation):
            merge_sums(LOG_SOFTMAX_BACKWARD, min(rows - r, <Py_ssize_t> GROUP), state, tops, rows, tiles, r, first + r)
        else:
            merge_sums(LOGSUMEXP, min(rows - r, <Py_ssize_t> GROUP), state, tops, rows, tiles, r, first + r)


cdef inline double signed_log(double ties, double rest, double carry, double *low, double *sign) noexcept nogil:
    """log of |ties + rest + carry|, what its rounding lost, and the sum's sign."""
    cdef double total = ties + (rest + carry)
    cdef double half, tail = 0, log_mantissa, log_power, result
    cdef int exponent = 0
    low[0] = 0
    if fabs(total) < INFINITY:
        half = ties + rest
        tail = lost_in_sum(ties, rest, half) + carry
        total = half + tail
        tail = lost_in_sum(half, tail, total)
    sign[0] = <double> (total > 0) - <double> (total < 0) if total == total else total
    if not (0 < fabs(total) < INFINITY):
        return libm_log(fabs(total))
    if fabs(total) < 0.75:
        # log_of_sum takes none so small.
        frexp(total, &exponent)
        exponent -= 1
    log_mantissa = log_of_sum(ldexp(sign[0] * total, -exponent), ldexp(sign[0] * tail, -exponent), 0.0, low)
    log_power = exponent * 6.93147180369123816490e-01
    result = log_mantissa + log_power
    low[0] = low[0] + lost_in_sum(log_mantissa, log_power, result) + exponent * 1.90821492927058770002e-10
    return result


cdef inline void finish_block(int operation, Py_ssize_t n, const RowState *state, Py_ssize_t first,
                              const real *factor) noexcept nogil:
    """n rows, in local arrays of up to GROUP entries, so that a vector of logarithms is taken at once."""
    cdef Py_ssize_t j
    cdef real ties[GROUP]
    cdef real rest[GROUP]
    cdef real carry[GROUP]
    cdef real log_sum[GROUP]
    cdef real log_low[GROUP]
    cdef real factors[GROUP]
    cdef double magnitude, magnitude_low, sign
    for j in range(n):
        rest[j] = (<const real *> state.rest)[first + j]
    for j in range(n):
        carry[j] = (<const real *> state.carry)[first + j]
    if is_backward(operation):
        for j in range(n):
            (<real *> state.scale)[first + j] = rest[j] + carry[j]
        return
    for j in range(n):
        ties[j] = (<const real *> state.ties)[first + j]
    if operation == LOGSUMEXP_WEIGHTED:
        for j in range(n):
            magnitude = signed_log(ties[j], rest[j], carry[j], &magnitude_low, &sign)
            (<real *> state.log_sum)[first + j] = <real> magnitude
            magnitude_low = (magnitude - <real> magnitude) + magnitude_low
            (<real *> state.log_low)[first + j] = <real> finite(magnitude_low)
            (<real *> state.scale)[first + j] = <real> sign
        return
    if operation != SOFTMAX:
        for j in range(n):
            log_sum[j] = log_of_sum(ties[j], rest[j], carry[j], &log_low[j])
        for j in range(n):
            (<real *> state.log_sum)[first + j] = <real> -INFINITY if ties[j] + rest[j] == 0 else log_sum[j]
        for j in range(n):
            (<real *> state.log_low)[first + j] = finite(log_low[j])
    if operation != SOFTMAX and operation != SOFTMAX_GRADIENT and operation != MIXTURE:
        return
    for j in range(n):
        factors[j] = 1
    if operation != MIXTURE and factor != NULL:
        for j in range(n):
            factors[j] = factor[j]
    if operation != SOFTMAX:
        for j in range(n):
            (<real *> state.others)[first + j] = share_of_others(factors[j], ties[j], rest[j], carry[j])
    for j in range(n):
        (<real *> state.scale)[first + j] = share(factors[j], ties[j], rest[j], carry[j])


cdef void finish(int operation, const RowState *state, Py_ssize_t first, Py_ssize_t rows, const real *factor) noexcept nogil:
    cdef Py_ssize_t b, j
    cdef const real *factor_here = factor
    for b in range((rows + GROUP - 1) // GROUP):
        j = b * GROUP
        if factor != NULL:
            factor_here = factor + j
        finish_block(operation, min(rows - j, <Py_ssize_t> GROUP), state, first + j, factor_here)


cdef void spread(const RowState *state, const real *tops, Py_ssize_t rows, Py_ssize_t tiles,
                 Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t r, t
    cdef double top, here, part
    cdef bint near
    for t in range(tiles):
        for r in range(rows):
            top = tops[first + r]
            here = tops[t * rows + r]
            # Far from the top in two steps: that of a large factor need not be as small as the exp.
            near = here > top - 500
            part = exp_near(here if near else 0.5 * here, top if near else 0.5 * top) * exp_unit(&part)
            part = 1.0 if here == top else part
            (<real *> state.scale)[t * rows + r] = <real> ((<const real *> state.scale)[first + r] * part * (1.0 if near else part))
