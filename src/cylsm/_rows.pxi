# Rows whose classes lie side by side: reduced to a state, a few at a time, and written from it.

cdef inline void transpose(const real *x, Py_ssize_t x_step, real *out, Py_ssize_t out_step) noexcept nogil:
    """Four rows of four."""
    if real is float:
        gather_float_1(x, x_step, out, out_step)
    else:
        gather_double_1(x, x_step, out, out_step)


cdef inline bint is_whole(Py_ssize_t whole, Py_ssize_t n, Py_ssize_t shortest, const real *x) noexcept nogil:
    """Whether a row has n whole vectors. Where `shortest` has more, nothing is compiled for that."""
    return whole == n and (n + 1) * lanes_of(x) > shortest


cdef inline real joined(bint largest, real a, real b) noexcept nogil:
    return larger(a, b) if largest else a + b


cdef inline void halve(bint largest, real *lanes, Py_ssize_t each, Py_ssize_t half, Py_ssize_t rows) noexcept nogil:
    """lanes[j] joins lanes[half + j], for j < half, in every row."""
    cdef Py_ssize_t r, j
    for r in range(rows):
        turn_by_turn()
        for j in range(half):
            lanes[r * each + j] = joined(largest, lanes[r * each + half + j], lanes[r * each + j])


cdef inline void take_four(real *lanes, Py_ssize_t each, Py_ssize_t r, Py_ssize_t rows, real *columns) noexcept nogil:
    """columns[4 * i + j] = lane i, of four, of row r + j; those of rows that are not there become 0."""
    cdef Py_ssize_t i
    for i in range(rows * each, (r + 4) * each):
        lanes[i] = 0
    transpose(lanes + r * each, each, columns, 4)


cdef inline void fold(bint largest, real *lanes, Py_ssize_t each, Py_ssize_t rows) noexcept nogil:
    """The largest, or the sum, of row r's lanes becomes lanes[r]. There is room for a multiple of four rows, the last of
    which are overwritten."""
    cdef Py_ssize_t r, j
    cdef real columns[16]
    if each > 8:
        halve(largest, lanes, each, 8, rows)
    if each > 4:
        halve(largest, lanes, each, 4, rows)
    for r in range(0, rows, 4):
        take_four(lanes, each, r, rows, columns)
        for j in range(4):
            lanes[r + j] = joined(largest, joined(largest, columns[12 + j], columns[8 + j]),
                                  joined(largest, columns[4 + j], columns[j]))


cdef inline void to_four(bint largest, real *lanes, Py_ssize_t each, real *four) noexcept nogil:
    """Joins one row's until there are four."""
    cdef Py_ssize_t j
    if each > 8:
        halve(largest, lanes, each, 8, 1)
    if each > 4:
        halve(largest, lanes, each, 4, 1)
    for j in range(4):
        four[j] = lanes[j]


cdef inline void halve_sum(real *total, real *carry, Py_ssize_t each, Py_ssize_t half, Py_ssize_t rows) noexcept nogil:
    """The same with compensated sums."""
    cdef Py_ssize_t r, j
    cdef real s
    for r in range(rows):
        turn_by_turn()
        for j in range(half):
            s = total[r * each + j] + total[r * each + half + j]
            carry[r * each + j] = (carry[r * each + j] + carry[r * each + half + j]
                                   + lost_in_sum(total[r * each + j], total[r * each + half + j], s))
            total[r * each + j] = s


cdef inline void fold_sum(real *total, real *carry, Py_ssize_t each, Py_ssize_t rows) noexcept nogil:
    """The same with compensated sums; carry is 0 beside one that is not finite. Those of float are added in double."""
    cdef Py_ssize_t r, i, j
    cdef real s
    cdef double wide[BATCH * MOST_LANES]
    cdef real columns[16]
    cdef real lost_columns[16]
    cdef real four[4]
    cdef real lost[4]
    if real is float:
        for j in range(rows * each):
            wide[j] = <double> total[j] + carry[j]
        fold(False, wide, each, rows)
        for r in range(rows):
            total[r] = <float> wide[r]
            carry[r] = finite(<float> (wide[r] - total[r]))
    else:
        if each > 4:
            halve_sum(total, carry, each, 4, rows)
        for r in range(0, rows, 4):
            take_four(total, each, r, rows, columns)
            take_four(carry, each, r, rows, lost_columns)
            for j in range(4):
                four[j] = columns[j]
                lost[j] = lost_columns[j]
            for i in range(1, 4):
                for j in range(4):
                    s = four[j] + columns[4 * i + j]
                    lost[j] += lost_columns[4 * i + j] + lost_in_sum(four[j], columns[4 * i + j], s)
                    four[j] = s
            for j in range(4):
                total[r + j] = four[j]
                carry[r + j] = finite(lost[j])


cdef inline void raise_lanes(int operation, const real *x, const real *y, real *top) noexcept nogil:
    """Raises a vector's lanes to x, the operand that may come from memory. So a nan replaces what was before it and is
    replaced by what follows; weighted, it is skipped. The row is nan whatever its top."""
    cdef Py_ssize_t j
    for j in range(lanes_of(x)):
        if operation == LOGSUMEXP_WEIGHTED:
            top[j] = larger(seen(operation, x[j], y[j]), top[j])
        else:
            top[j] = larger(top[j], x[j])


cdef inline void raise_group(int operation, const real *x, const real *y, real *tops) noexcept nogil:
    """The same of four vectors, each with lanes of its own."""
    cdef Py_ssize_t i, lanes = lanes_of(x)
    for i in range(4):
        raise_lanes(operation, x + i * lanes, y + i * lanes, tops + i * lanes)


cdef inline void row_max(int operation, const real *x, const real *y, Py_ssize_t classes, real *top) noexcept nogil:
    """The lanes of one row's maximum. The last vectors overlap: a maximum may see an element twice. row_sum takes it in the
    same order, on which the sign of a largest zero depends."""
    cdef Py_ssize_t i, j, at, lanes = lanes_of(x), group = 4 * lanes, groups = classes // group
    cdef real first[MOST_LANES]
    cdef real second[MOST_LANES]
    cdef real third[MOST_LANES]
    cdef real fourth[MOST_LANES]
    for j in range(lanes):
        first[j] = second[j] = third[j] = fourth[j] = lowest(x)
    for i in range(groups):
        raise_lanes(operation, x + i * group, y + i * group, first)
        raise_lanes(operation, x + i * group + lanes, y + i * group + lanes, second)
        raise_lanes(operation, x + i * group + 2 * lanes, y + i * group + 2 * lanes, third)
        raise_lanes(operation, x + i * group + 3 * lanes, y + i * group + 3 * lanes, fourth)
    i = groups * group
    while i < classes:
        at = min(i, classes - lanes)
        raise_lanes(operation, x + at, y + at, first)
        i += lanes
    for j in range(lanes):
        top[j] = larger(larger(second[j], first[j]), larger(fourth[j], third[j]))


cdef inline real backward_term(int operation, real x, real y) noexcept nogil:
    return rounded_product(x, y) if operation == SOFTMAX_BACKWARD else x


cdef inline void widen(const float *x, double *out) noexcept nogil:
    """out[j] = x[j] of a vector."""
    cdef Py_ssize_t half = lanes_of(x) // 2
    widen_half(x, out)
    widen_half(x + half, out + half)


cdef inline void add_exactly(int operation, int known, const float *x, const float *y, double *total) noexcept nogil:
    """Adds the terms of a vector, but for the first `known`, to their lanes."""
    cdef int j, lanes = <int> lanes_of(x)
    cdef double wide_x[MOST_LANES]
    cdef double wide_y[MOST_LANES]
    widen(x, wide_x)
    if operation == SOFTMAX_BACKWARD:
        widen(y, wide_y)
    for j in range(lanes):
        total[j] += (wide_x[j] * wide_y[j] if operation == SOFTMAX_BACKWARD else wide_x[j]) if j >= known else 0.0


cdef inline void add_vectors(int operation, int n, int known, const real *x, const real *y, double *total,
                             real *carry) noexcept nogil:
    """The same of n vectors, one or two; of double with compensation."""
    cdef int i, j, lanes = <int> lanes_of(x)
    cdef real term, s
    if real is float:
        for i in range(n):
            add_exactly(operation, known, x + i * lanes, y + i * lanes, total)
    else:
        for j in range(lanes):
            term = backward_term(operation, x[j], y[j]) if j >= known else 0.0
            if n > 1:
                term = term + backward_term(operation, x[lanes + j], y[lanes + j])
            s = total[j] + term
            carry[j] += lost_in_sum(<real> total[j], term, s)
            total[j] = s


cdef inline Py_ssize_t ahead_of(bint far, const real *any) noexcept nogil:
    """How far ahead, in elements, is asked for."""
    return (FAR_AHEAD_BYTES if far else AHEAD_BYTES) // <Py_ssize_t> sizeof(real)


cdef inline Py_ssize_t ahead_within(Py_ssize_t ahead, Py_ssize_t classes, Py_ssize_t own) noexcept nogil:
    """The same of a row of an array. `own` elements from its beginning are this thread's: what lies behind them another may be
    writing, the result that lies behind x too, and waits for it where it is asked for. softmax of 128 x 1000 float32 takes
    12 us so, and otherwise 23."""
    return ahead if classes + ahead <= own else 0


cdef inline void ask_for_terms(int operation, const real *x, const real *y, Py_ssize_t n) noexcept nogil:
    ask_for(x, n)
    if operation == SOFTMAX_BACKWARD:
        ask_for(y, n)


cdef inline void row_to_four(int operation, Py_ssize_t whole, const real *x, const real *y, Py_ssize_t classes,
                             Py_ssize_t ahead, double *four, real *four_carry) noexcept nogil:
    """Four lanes of a backward operation's sum over one row, of `whole` vectors and perhaps the beginning of one more: of float
    in double, of double compensated."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef Py_ssize_t paired = whole // 2 * 2 if real is double or CYLSM_VECTOR_BYTES < LINE_BYTES else 0
    cdef double total[MOST_LANES]
    cdef real carry[MOST_LANES]
    for j in range(lanes):
        total[j] = 0
    for j in range(0 if real is float else lanes):
        carry[j] = 0
    for i in range(0, paired, 2):
        ask_for_terms(operation, x + i * lanes + ahead, y + i * lanes + ahead, 2 * lanes)
        add_vectors(operation, 2, 0, x + i * lanes, y + i * lanes, total, carry)
    for i in range(paired, whole):
        ask_for_terms(operation, x + i * lanes + ahead, y + i * lanes + ahead, lanes)
        add_vectors(operation, 1, 0, x + i * lanes, y + i * lanes, total, carry)
    if classes % lanes != 0:
        # It overlaps what has been added.
        add_vectors(operation, 1, <int> (lanes - classes % lanes), x + classes - lanes, y + classes - lanes, total, carry)
    if real is float:
        to_four(False, total, lanes, four)
    else:
        if lanes > 4:
            halve_sum(total, carry, lanes, 4, 1)
        for j in range(4):
            four[j] = total[j]
            four_carry[j] = carry[j]


cdef inline void row_totals(int operation, Py_ssize_t whole, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                            Py_ssize_t rows, Py_ssize_t classes, Py_ssize_t ahead, real *totals) noexcept nogil:
    """Whole sums of up to GROUP rows, whose lanes are folded together: log_softmax_backward of 500 x 16 float64 takes 8.2 us on one
    thread so, and 11 row by row."""
    cdef Py_ssize_t r
    cdef double four[4 * GROUP]
    cdef real carry[4 * GROUP]
    for r in range(rows):
        row_to_four(operation, whole, x + r * x_step, y + r * y_step, classes, ahead, four + 4 * r, carry + 4 * r)
    if real is float:
        fold(False, four, 4, rows)
        for r in range(rows):
            totals[r] = <float> four[r]
    else:
        fold_sum(four, carry, 4, rows)
        for r in range(rows):
            totals[r] = four[r] + carry[r]


cdef inline void apply_span(int operation, bint kept, Py_ssize_t n, const real *x, const real *y, const real *row,
                            real *out) noexcept nogil:
    """n elements: one vector, two, or a line."""
    cdef Py_ssize_t j
    cdef real span[2 * MOST_LANES]
    for j in range(n):
        span[j] = applied(operation, kept, x[j], y[j], row, BATCH, 0)
    for j in range(n):
        out[j] = span[j]


cdef inline Py_ssize_t apply_ends(int operation, bint kept, const real *x, const real *y, Py_ssize_t classes, const real *row,
                                  const real *out, bint stream, real *ends) noexcept nogil:
    """Where the groups of four vectors begin that a row is written in: with a line of out, since a vector across two takes
    longer to store, unless that would make a group less. What overlaps them, the row's first line and its last, goes to
    `ends`: out may be an input, so it is computed before anything is stored."""
    cdef Py_ssize_t line = line_of(x), at = -(<Py_ssize_t> out // <Py_ssize_t> sizeof(real)) & (line - 1)
    if not stream and at > classes % (4 * lanes_of(x)):
        at = 0
    if stream or at > 0:
        apply_span(operation, kept, line, x, y, row, ends)
    if stream or (classes - at) % line > 0:
        apply_span(operation, kept, line, x + classes - line, y + classes - line, row, ends + MOST_LANES)
    return at


cdef inline void apply_group(int operation, bint kept, bint stream, const real *x, const real *y, const real *row, real *out,
                             Py_ssize_t out_ahead) noexcept nogil:
    """Four vectors."""
    cdef Py_ssize_t pair = 2 * lanes_of(x)
    cdef real here[4 * MOST_LANES]
    if operation == LOG_SOFTMAX_BACKWARD:
        ask_for(y + PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real), 2 * pair)
    if stream:
        apply_span(operation, kept, pair, x, y, row, here)
        apply_span(operation, kept, pair, x + pair, y + pair, row, here + pair)
        stream_lines(out, here, 2 * pair * <Py_ssize_t> sizeof(real) // LINE_BYTES)
    else:
        if not kept:
            ask_for(out + out_ahead, 2 * pair)
        apply_span(operation, kept, pair, x, y, row, out)
        apply_span(operation, kept, pair, x + pair, y + pair, row, out + pair)


cdef inline void apply_rest(int operation, bint kept, bint stream, const real *x, const real *y, Py_ssize_t classes,
                            const real *row, real *out, const real *ends, Py_ssize_t at, Py_ssize_t i,
                            Tail *tail) noexcept nogil:
    """What the groups have left, which lie from `at` to i. No line is both stored and streamed: it would have to be
    fetched again."""
    cdef Py_ssize_t line = line_of(x)
    cdef real here[MOST_LANES]
    while i + line <= classes:
        if stream:
            apply_span(operation, kept, line, x + i, y + i, row, here)
            stream_lines(out + i, here, 1)
        else:
            apply_span(operation, kept, line, x + i, y + i, row, out + i)
        i += line
    if stream:
        if tail.held > 0:
            cylsm_require(tail.held + at * <Py_ssize_t> sizeof(real) == LINE_BYTES)
            memcpy(tail.room + LINE_BYTES + tail.held, ends, LINE_BYTES)
            stream_lines(<char *> out - tail.held, tail.room + LINE_BYTES, 1)
        else:
            memcpy(out, ends, at * sizeof(real))
        tail.held = 0
        if tail.more:
            tail.held = (classes - i) * sizeof(real)
            memcpy(tail.room + tail.held, ends + MOST_LANES, LINE_BYTES)
        else:
            memcpy(out + i, ends + MOST_LANES + line - (classes - i), (classes - i) * sizeof(real))
    else:
        if at > 0:
            memcpy(out, ends, line * sizeof(real))
        if i < classes:
            memcpy(out + classes - line, ends + MOST_LANES, line * sizeof(real))


cdef inline void apply_row(int operation, bint kept, bint stream, const real *x, const real *y, Py_ssize_t classes,
                           const real *row, real *out, Py_ssize_t out_ahead, Tail *tail) noexcept nogil:
    """One row of the result; streamed, its whole lines go around the caches. What lies `out_ahead` is asked for."""
    cdef real ends[2 * MOST_LANES]
    cdef Py_ssize_t at = apply_ends(operation, kept, x, y, classes, row, out, stream, ends)
    cdef Py_ssize_t i = at, group = 4 * lanes_of(x)
    while i + group <= classes:
        apply_group(operation, kept, stream, x + i, y + i, row, out + i, out_ahead)
        i += group
    apply_rest(operation, kept, stream, x, y, classes, row, out, ends, at, i, tail)


cdef inline void row_sum(int operation, bint keep, int also, int origin, const real *x, const real *y, Py_ssize_t classes,
                         const real *row, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                         Py_ssize_t exps_ahead, Py_ssize_t ahead, Py_ssize_t apart, const real *soon,
                         const Meanwhile *meanwhile) noexcept nogil:
    """The lanes of one row's sums; `row` holds its top and reference. Four vectors are added at a time, then single ones,
    then what is left, in a vector that ends with the row and counts what is new in it. The elements `ahead` of x, of a row that
    is ALONE in lines so far `apart`, `exps_ahead` of exps, and those of `soon`, are asked for meanwhile. Exps wait for no
    memory, so other rows may be compared and written meanwhile too."""
    cdef Py_ssize_t i = 0, j, at = 0, start = 0, lanes = lanes_of(x), group = 4 * lanes, together = 0, lines = group // line_of(x)
    cdef int known = <int> (lanes - classes % lanes)
    cdef bint stream = also == STREAMING
    cdef real sums[MOST_LANES]
    cdef real lost[MOST_LANES]
    cdef real tied[MOST_LANES]
    cdef real tied_lost[MOST_LANES]
    cdef real end[MOST_LANES]
    cdef real last[MOST_LANES]
    cdef real tops[4 * MOST_LANES]
    cdef real ends[2 * MOST_LANES]
    cdef real parameters[(LOW + 1) * BATCH]
    cdef real reference[REFERENCE * BATCH]
    cdef const real *later = x
    cdef const real *earlier = x
    cdef real *out = exps
    cdef Py_ssize_t out_ahead = 0
    if also != ALONE and CYLSM_CLANG:
        # Copied, as the parameters: clang would otherwise not vectorise, and take ten times as long. gcc takes 5 % longer so.
        for j in range(REFERENCE):
            reference[j * BATCH] = row[j * BATCH]
        row = reference
    if also != ALONE:
        later = <const real *> meanwhile.later
        for j in range(4 * lanes):
            tops[j] = lowest(x)
    if also == WRITING or stream:
        earlier = <const real *> meanwhile.earlier
        out = <real *> meanwhile.out
        out_ahead = meanwhile.out_ahead
        # Copied: a store to out might otherwise change them.
        parameters[TOP * BATCH] = (<const real *> meanwhile.parameters)[TOP * BATCH]
        parameters[LOW * BATCH] = (<const real *> meanwhile.parameters)[LOW * BATCH]
        at = start = apply_ends(operation, keep, earlier, earlier, classes, parameters, out, stream, ends)
        together = (classes - at) // group
    for j in range(lanes):
        sums[j] = lost[j] = tied[j] = tied_lost[j] = 0
    # Before anything is stored: exps may be x.
    for j in range(lanes):
        end[j] = x[classes - lanes + j]
    for j in range(together):
        ask_for(x + i + ahead, group)
        if keep:
            ask_for(exps + i + exps_ahead, group)
        raise_group(operation, later + i, later + i, tops)
        apply_group(operation, keep, stream, earlier + at, earlier + at, parameters, out + at, out_ahead)
        sum_of_classes(operation, 4, 0, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += group
        at += group
    while i + group <= classes:
        for j in range(lines if also == ALONE else 0):
            ask_for(x + ahead + i // lines + j * apart, line_of(x))
            if operation == LOGSUMEXP_WEIGHTED:
                ask_for(y + ahead + i // lines + j * apart, line_of(x))
        if also != ALONE:
            ask_for(x + i + ahead, group)
        if keep:
            ask_for(exps + i + exps_ahead, group)
        if soon != NULL:
            ask_for(soon + i, group)
        if also != ALONE:
            raise_group(operation, later + i, later + i, tops)
        sum_of_classes(operation, 4, 0, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += group
    while i + lanes <= classes:
        if also != ALONE:
            raise_lanes(operation, later + i, later + i, tops)
        sum_of_classes(operation, 1, 0, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += lanes
    if i < classes:
        # Some of its exps have just been stored: to read them back would take longer than to compute them.
        sum_of_classes(operation, 1, known, keep, False, False, origin, lanes, end, lanes, y + classes - lanes, lanes, row, BATCH,
                       0, sums, lost, tied, tied_lost, last, lanes)
        if keep:
            memcpy(exps + classes - lanes, last, lanes * sizeof(real))
    if also != ALONE:
        if classes % lanes != 0:
            raise_lanes(operation, later + classes - lanes, later + classes - lanes, tops)
        for j in range(lanes):
            (<real *> meanwhile.later_top)[j] = larger(larger(tops[lanes + j], tops[j]),
                                                       larger(tops[3 * lanes + j], tops[2 * lanes + j]))
    if also == WRITING or stream:
        apply_rest(operation, keep, stream, earlier, earlier, classes, parameters, out, ends, start, at,
                   meanwhile.tail)
    for j in range(lanes):
        total[j] = sums[j]
    for j in range(lanes):
        carry[j] = lost[j]
    if counts_ties(operation):
        for j in range(lanes):
            ties[j] = tied[j] if operation == LOGSUMEXP_WEIGHTED else ties_among((classes + lanes - 1) // lanes, tied[j])
    if operation == LOGSUMEXP_WEIGHTED:
        for j in range(lanes):
            ties_carry[j] = tied_lost[j]


cdef inline void sum_rows(int operation, bint keep, int origin, const real *x, Py_ssize_t x_step, const real *y,
                          Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const real *of, real *total,
                          real *carry, real *ties, real *ties_carry, real *exps, Py_ssize_t exps_step,
                          Py_ssize_t ahead) noexcept nogil:
    """What follows is asked for in parts of several rows, or of one, at a time: the processor fetches from each page a few lines ahead
    of what is read. logsumexp of 4000 x 32000 float32 takes 22.6 ms so, and 27 in one part."""
    cdef Py_ssize_t r, part, lanes = lanes_of(x), parts = 4 * lanes // line_of(x)
    cdef Py_ssize_t length = classes // (parts * line_of(x)) * line_of(x)
    cdef bint across
    for r in range(rows):
        part = r % parts
        across = ahead > 0 and r - part + parts <= rows
        row_sum(operation, keep, ALONE, origin, x + r * x_step, y + r * y_step, classes, of + r, total + r * lanes,
                carry + r * lanes, ties + r * lanes, ties_carry + r * lanes, exps + r * exps_step,
                ahead_within(ahead_of(False, x), classes, (rows - 1 - r) * exps_step + classes),
                ahead + part * (length - x_step) if across else ahead, x_step if across else length,
                exps + r * exps_step if not keep and exps != NULL else NULL, NULL)


# A function for each operation, here and in other files: side by side in one, the loops run out of registers. Apart, softmax of
# 65536 x 10 float64 takes a tenth less, and log_softmax of 4 x 21 x 128 x 128.

cdef void softmax_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                       Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    sum_rows(SOFTMAX, True, ROUNDED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)


cdef void gradient_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                        Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    sum_rows(LOGSUMEXP, True, NEAR, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)


cdef void plain_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                     Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                     Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    sum_rows(LOGSUMEXP, False, PLAIN, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)


cdef void centred_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                       Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    sum_rows(LOGSUMEXP, False, CENTRED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)


cdef void weighted_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                        Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    sum_rows(LOGSUMEXP_WEIGHTED, False, CENTRED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps,
             exps_step, ahead)


cdef inline bint take_tops(int operation, bint near, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                           real *tops, real *of, real *infinite) noexcept nogil:
    """What up to BATCH rows' exps count from, `near` their tops, from the lanes of their maxima. Whether one is +inf, and
    then what its sum becomes, in `infinite`."""
    cdef Py_ssize_t r
    cdef int found = 0
    for r in range(BATCH):
        of[TOP * BATCH + r] = 0
    fold(True, tops, lanes_of(x), rows)
    for r in range(rows):
        of[TOP * BATCH + r] = tops[r]
    if not near:
        set_references(BATCH, of)
    if operation == SOFTMAX:
        for r in range(BATCH):
            found |= of[TOP * BATCH + r] == <real> INFINITY
        for r in range(rows if found else 0):
            if of[TOP * BATCH + r] == <real> INFINITY:
                infinite[r] = beside_infinity(x + r * x_step, 1, classes)
    return found


cdef inline void take_sums(int operation, Py_ssize_t rows, const real *of, bint found, const real *infinite, real *total,
                           real *carry, real *ties, real *ties_carry) noexcept nogil:
    """Folds the lanes of up to BATCH rows' sums; those of rows that are not there become 0."""
    cdef Py_ssize_t r
    fold_sum(total, carry, lanes_of(total), rows)
    if operation == LOGSUMEXP_WEIGHTED:
        fold_sum(ties, ties_carry, lanes_of(total), rows)
    elif operation == SOFTMAX:
        for r in range(rows):
            ties[r] = 0
    else:
        fold(False, ties, lanes_of(total), rows)
    for r in range(rows if found else 0):
        if of[TOP * BATCH + r] == <real> INFINITY:
            total[r] = infinite[r]
            carry[r] = ties[r] = 0
    for r in range(rows, BATCH):
        total[r] = carry[r] = ties[r] = 0


cdef inline void reduce_batch(int operation, bint keep, const real *x, Py_ssize_t x_step, const real *y,
                              Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                              Py_ssize_t first, real *exps, Py_ssize_t exps_step, Py_ssize_t ahead) noexcept nogil:
    """Where what follows lies so far `ahead`, it is asked for."""
    cdef Py_ssize_t r, lanes = lanes_of(x)
    cdef int centred = 0
    cdef bint found
    cdef real of[REFERENCE * BATCH]
    cdef real infinite[BATCH]
    cdef real tops[BATCH * MOST_LANES]
    cdef real total[BATCH * MOST_LANES]
    cdef real carry[BATCH * MOST_LANES]
    cdef real ties[BATCH * MOST_LANES]
    cdef real ties_carry[BATCH * MOST_LANES]
    for r in range(rows):
        row_max(operation, x + r * x_step, y + r * y_step, classes, tops + r * lanes)
    found = take_tops(operation, keep, x, x_step, rows, classes, tops, of, infinite)
    if not keep:
        # Rows that are not there have top 0.
        for r in range(BATCH):
            centred |= of[CENTRE * BATCH + r] != 0
    if operation == SOFTMAX:
        softmax_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)
    elif keep:
        gradient_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)
    elif operation == LOGSUMEXP_WEIGHTED:
        weighted_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)
    elif not centred:
        plain_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)
    else:
        centred_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step, ahead)
    take_sums(operation, rows, of, found, infinite, total, carry, ties, ties_carry)
    write_state(operation, NEAR if keep else CENTRED, BATCH, rows, of, total, carry, ties, ties_carry, state, first)


cdef inline void add_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                          Py_ssize_t classes, const RowState *state, Py_ssize_t first) noexcept nogil:
    """The sums of a backward operation."""
    cdef Py_ssize_t r
    row_totals(operation, classes // lanes_of(x), x, x_step, y, y_step, rows, classes,
               PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real), <real *> state.rest + first)
    for r in range(rows):
        (<real *> state.carry)[first + r] = 0


cdef inline void cost_batch(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                            Py_ssize_t classes, const RowState *state, Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t r, j, lanes = lanes_of(x)
    cdef Py_ssize_t whole = classes - classes % lanes, known = lanes - classes % lanes
    cdef real tops[MOST_LANES]
    cdef real last_x[MOST_LANES]
    cdef real last_y[MOST_LANES]
    cdef real mass[BATCH * MOST_LANES]
    cdef real mass_carry[BATCH * MOST_LANES]
    cdef real cost[BATCH * MOST_LANES]
    cdef real cost_carry[BATCH * MOST_LANES]
    for j in range(rows * lanes):
        mass[j] = mass_carry[j] = cost[j] = cost_carry[j] = 0
    for r in range(rows):
        for j in range(lanes):
            tops[j] = (<const real *> state.top)[first + r]
            last_x[j] = tops[j] if j < known else x[r * x_step + classes - lanes + j]
            last_y[j] = <real> 0.0 if j < known else y[r * y_step + classes - lanes + j]
        lanes_cost(lanes, x + r * x_step, lanes, y + r * y_step, lanes, whole // lanes, tops, mass + r * lanes,
                   mass_carry + r * lanes, cost + r * lanes, cost_carry + r * lanes)
        if whole < classes:
            lanes_cost(lanes, last_x, lanes, last_y, lanes, 1, tops, mass + r * lanes, mass_carry + r * lanes,
                       cost + r * lanes, cost_carry + r * lanes)
    fold_sum(mass, mass_carry, lanes, rows)
    fold_sum(cost, cost_carry, lanes, rows)
    for r in range(rows):
        (<real *> state.mass)[first + r] = mass[r]
        (<real *> state.mass_carry)[first + r] = mass_carry[r]
        (<real *> state.cost)[first + r] = cost[r]
        (<real *> state.carry)[first + r] = cost_carry[r]


cdef void reduce_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, real *exps,
                      Py_ssize_t exps_step, int following) noexcept nogil:
    cdef Py_ssize_t b, r, n, ahead, four = 4 * classes * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t batch = 4 * max(<Py_ssize_t> 1, min(<Py_ssize_t> BATCH // 4, REDUCED_BYTES // four))
    cylsm_require(classes >= SHORTEST_ROW)
    for b in range((rows + batch - 1) // batch):
        r = b * batch
        n = min(rows - r, batch)
        ahead = 0
        # A shorter batch behind this one is not asked for: behind it may lie what another thread writes.
        if r + 2 * n <= rows or following != NOTHING:
            ahead = classes if rows == 1 else n * x_step
        if operation == SOFTMAX:
            reduce_batch(SOFTMAX, True, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step, ahead)
        elif operation == SOFTMAX_GRADIENT:
            reduce_batch(LOGSUMEXP, True, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step, ahead)
        elif operation == LOG_SOFTMAX_BACKWARD:
            add_rows(LOG_SOFTMAX_BACKWARD, x + r * x_step, x_step, x, 0, n, classes, state, first + r)
        elif operation == SOFTMAX_BACKWARD:
            add_rows(SOFTMAX_BACKWARD, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, first + r)
        elif operation == LOGSUMEXP_WEIGHTED:
            reduce_batch(LOGSUMEXP_WEIGHTED, False, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state,
                         first + r, exps + r * exps_step, exps_step, ahead)
        elif operation == MIXTURE_COST:
            cost_batch(x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, first + r)
        else:
            reduce_batch(LOGSUMEXP, False, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step, ahead)


cdef inline void apply_short_row(int operation, bint kept, const real *x, const real *y, Py_ssize_t classes, const real *row,
                                 real *out) noexcept nogil:
    """One of less than SHORTEST_ALIGNED elements."""
    cdef Py_ssize_t i, lanes = lanes_of(x), whole = classes // lanes
    cdef real last[MOST_LANES]
    if classes % lanes > 0:
        # Out may be an input: it is computed before anything is stored.
        apply_span(operation, kept, lanes, x + classes - lanes, y + classes - lanes, row, last)
    for i in range(whole):
        turn_by_turn()
        apply_span(operation, kept, lanes, x + i * lanes, y + i * lanes, row, out + i * lanes)
    if classes % lanes > 0:
        memcpy(out + classes - lanes, last, lanes * sizeof(real))


cdef inline void apply_each(int operation, bint kept, bint brief, const real *x, Py_ssize_t x_step, const real *y,
                            Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                            Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step,
                            bint stream) noexcept nogil:
    cdef Py_ssize_t b, r, i, j, n, ahead = PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real)
    cdef bint again
    cdef real of[PARAMETERS * BATCH]
    cdef Tail tail
    tail.held = 0
    for b in range((rows + BATCH - 1) // BATCH):
        n = min(rows - b * BATCH, <Py_ssize_t> BATCH)
        again = read_state(operation, BATCH, n, state, first + b * BATCH,
                           factor + b * BATCH if operation == MIXTURE else factor, of)
        for r in range(n):
            i = b * BATCH + r
            if brief:
                apply_short_row(operation, kept, x + i * x_step, y + i * y_step, classes, of + r, out + i * out_step)
            else:
                tail.more = out_step == classes and i < rows - 1 and not again
                apply_row(operation, kept, streamed(operation, stream), x + i * x_step, y + i * y_step, classes, of + r,
                          out + i * out_step, ahead_within(ahead, classes, (rows - 1 - i) * out_step + classes), &tail)
            if again:
                for j in range(classes):
                    out[i * out_step + j] = out[i * out_step + j] * of[AGAIN * BATCH + r]


cdef void apply_rows(int operation, bint kept, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                     Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                     const real *factor, real *out, Py_ssize_t out_step, bint ask, bint stream) noexcept nogil:
    cylsm_require(classes >= SHORTEST_ROW)
    if operation == LOG_SOFTMAX and classes < SHORTEST_ALIGNED and not stream:
        apply_each(LOG_SOFTMAX, False, True, x, x_step, x, x_step, rows, classes, state, first, factor, out, out_step, False)
    elif operation == LOG_SOFTMAX:
        apply_each(LOG_SOFTMAX, False, False, x, x_step, x, x_step, rows, classes, state, first, factor, out, out_step, stream)
    elif (operation == SOFTMAX or operation == SOFTMAX_GRADIENT) and kept:
        apply_each(SOFTMAX, True, False, x, x_step, x, x_step, rows, classes, state, first, factor, out, out_step, stream)
    elif operation == SOFTMAX_GRADIENT:
        apply_each(SOFTMAX_GRADIENT, False, False, x, x_step, x, x_step, rows, classes, state, first, factor, out, out_step, stream)
    elif operation == SOFTMAX:
        apply_each(SOFTMAX, False, False, x, x_step, x, x_step, rows, classes, state, first, factor, out, out_step, stream)
    elif operation == LOG_SOFTMAX_BACKWARD:
        apply_each(LOG_SOFTMAX_BACKWARD, False, False, x, x_step, y, y_step, rows, classes, state, first, factor, out,
                   out_step, stream)
    elif operation == SOFTMAX_BACKWARD:
        apply_each(SOFTMAX_BACKWARD, False, False, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step,
                   stream)
    else:
        apply_each(MIXTURE, False, False, x, x_step, y, y_step, rows, classes, state, first, factor, out, out_step, stream)
