# The kernels, one body each, fused over float and double and compiled once per instruction set.
#
# (a) The compiler vectorises; the loops are written for it. A sum or a maximum over a row is kept in lane arrays (one
#     vector's worth, so that they stay in registers), since a scalar reduction may not be reordered and so is not
#     vectorised. Results pass through small local arrays where `out` may be an input: the compiler cannot know that
#     they do not overlap, and keeps such an array in registers too where its length is a constant.
# (b) The largest element is separated: sum = ties + rest, where `ties` counts the elements equal to it. So the loss
#     of a confident row, log1p(rest), keeps all its digits, and no row needs a special case: in a row with +inf the
#     infinities are ties and the others add 0, a row of -inf only has the sum 0, and a nan reaches rest through exp
#     or, where the top itself is nan, through the way to multiples of exp(top).
# (c) exp counts from a multiple of ln 2 near the largest element, not from the element: x of an ordinary row needs no
#     rounded subtraction, and a sum is brought to multiples of exp(top) once, at its end. Of few classes it counts from the
#     largest, and carries what the subtraction lost: that takes less than the way back.
#     Probabilities count from the largest too, whose exp is 1 then; of more classes than those few, without the carry,
#     since their limit grows with the gap as the rounding of x - top does, and without counting ties.
# (d) Sums are compensated: term by term where there are few, in long rows two or four terms at a time.
#     The pair (rest, carry) is used in full by the logarithm. Where only the sum itself is needed, by the backward
#     operations and softmax of short rows, those of float are taken in double.
# (e) The end of a row that is no multiple of its lanes is read as an overlapping vector whose known lanes are masked. It
#     is copied before anything is stored, since `out` may be the input.
# (f) Never x - lse: (x - top) - log_sum, both terms of one sign.
# (g) Exps wait for no memory: forward_rows adds up a batch of rows while it compares the next and writes the last.

from libc.float cimport DBL_MAX, DBL_MIN, FLT_MAX, FLT_MIN
from libc.math cimport INFINITY, NAN, fabs, fma, fmaf, frexp, ldexp, log as libm_log
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cpython.pycapsule cimport PyCapsule_New

from cylsm._kernels cimport (
    BOOL,
    FEW_BYTES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FORWARD_BYTES,
    GROUP,
    INT8,
    INT16,
    INT32,
    INT64,
    LOG_SOFTMAX,
    LOG_SOFTMAX_BACKWARD,
    LOGSUMEXP,
    LOGSUMEXP_WEIGHTED,
    LONG_GROUP,
    LONGEST_SOFTMAX,
    MIXTURE,
    MIXTURE_COST,
    NOTHING,
    SCRATCH,
    SHORT_CLASSES,
    SHORTEST_ROW,
    SHORTEST_SOFTMAX,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    SOFTMAX_GRADIENT,
    TILE_BELOW,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Element,
    KernelTable,
    RowState,
    apply_kernel,
    backward_kernel,
    exp_kernel,
    few_kernel,
    finish_kernel,
    forward_kernel,
    load_kernel,
    merge_kernel,
    pair_kernel,
    reduce_kernel,
    softmax_kernel,
    spread_kernel,
    store_kernel,
)

cdef extern from "_native.h" nogil:
    const bint CYLSM_FMA
    enum: CYLSM_VECTOR_BYTES
    void cylsm_require(bint condition)
    uint32_t bits_of_float(float x)
    uint64_t bits_of_double(double x)
    float float_of_bits(uint32_t bits)
    double double_of_bits(uint64_t bits)
    void prefetch_line(const void *p)
    void keep_call()
    void stream_lines(void *to, const void *source, Py_ssize_t lines)
    enum: CYLSM_FLOAT_QUADS
    enum: CYLSM_DOUBLE_QUADS
    void gather_float(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void gather_double(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)
    void scatter_float(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void scatter_double(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)
    void gather_float_1(const float *x, Py_ssize_t x_step, float *out, Py_ssize_t out_step)
    void gather_double_1(const double *x, Py_ssize_t x_step, double *out, Py_ssize_t out_step)

ctypedef fused real:
    float
    double

cdef enum:
    LINE_BYTES = 64
    MOST_LANES = 16           # of float in the widest vector; stack arrays have room for any
    BATCH = 16                # rows, at most, whose lanes are folded together
    # Elements of a row from which on log_softmax writes it in vectors that begin with a line: 1000 x 16 float32 would take
    # 6.0 us so, and takes 5.4.
    SHORTEST_ALIGNED = 128
    ONE_BY_ONE = 64           # up to so many classes of a lane are added one by one
    # Up to here all exps count from the top, with what that loses: logsumexp of 4 float32 classes takes 1.73 ns an element
    # so, and 1.75 with a reference, of 6, 1.5 and 1.4. Less than SHORTEST_ROW: no tile is so short.
    NEAR_CLASSES = 8
    REGISTER_CLASSES = 4      # up to here all of a lane's classes stay in registers
    AT_ONCE = 4 * GROUP       # lanes of so few classes that are taken at a time; of more, up to NEAR_CLASSES, half as many
    STRIP = 512               # lanes that a strip kernel takes at a time: 2 KB of float from each class
    # Rows that a backward operation, or softmax_rows, adds up before it writes them: few, so that memory is read while exps
    # are taken, and many enough to hide what waits at the end of a sum. log_softmax_backward of 4096 x 64 float32 takes
    # 52 us on one thread so, and 55 with 4 KB; of 50000 x 100, 1.26 ms and 1.15.
    BATCH_BYTES = 8192
    STREAMED_BYTES = 4096     # and so many where they are streamed
    # So far ahead are outputs asked for, and inputs that no maximum has brought into the caches, of arrays in the caches,
    # and of far ones. Not a page: what has just been stored lies as far into another page then, and the
    # processor takes one for the other. softmax of 2048 x 257 float64 takes 246 us on one thread so,
    # 341 with 4096 for both, and 267 with 6144; of 16384 x 1000 log_softmax 6.1 ms with 6144, 6.8 with 4096 and 7.6 with 3072.
    AHEAD_BYTES = 3072
    FAR_AHEAD_BYTES = 6144
    # By kernels that keep a state, and of the shortest rows of a gradient: there a page is best. log_softmax_backward of
    # 64 x 50257 float32 takes 0.40 ms on two threads so, 0.45 with 3072 and 0.48 with 6144.
    PLAIN_AHEAD_BYTES = 4096
    STRIP_AHEAD_BYTES = 4096

# What the exps of a row count from.
cdef enum Origin:
    CENTRED                   # centre + N ln 2
    PLAIN                     # the same where the centre is 0
    NEAR                      # the top; what x - top loses is carried
    ROUNDED                   # the top, and x - top is rounded

# What will be read or written next: asked for while a loop computes, beside every class a run of each. From one to the next
# lead so many bytes, or 0 if they are adjacent.
cdef struct Soon:
    const void *one
    const void *other
    Py_ssize_t one_step
    Py_ssize_t other_step

# A row's last elements that fill no line, and wait for the next row's first: streamed together, neither is fetched. The
# line in the middle is written in whole lines that overlap.
cdef struct Tail:
    bint more                 # the next row begins where this one ends
    Py_ssize_t held           # bytes
    char room[3 * LINE_BYTES]

# What row_sum does beside adding up:
cdef enum Also:
    ALONE                     # nothing,
    RAISING                   # it takes the maximum of a later row,
    WRITING                   # and writes an earlier one,
    STREAMING                 # around the caches

# The later row, where its maximum's lanes go, and the earlier row, its parameters and where it is written.
cdef struct Meanwhile:
    const void *later
    void *later_top
    const void *earlier
    const void *parameters
    void *out
    Py_ssize_t out_ahead
    Tail *tail

# What belongs to a row (or lane): lines of one array, as long as there are rows.
cdef enum:
    TOP
    CENTRE
    SHIFT
    LEAST
    REFERENCE                 # how many lines a reduction needs
    # scale; for LOG_SOFTMAX -log_sum, beside -top; for LOG_SOFTMAX_BACKWARD the mantissa of set_factor, beside its SHIFT, LEAST
    LOW = REFERENCE
    AGAIN                     # what a row is multiplied by once more: 1, but for factors near the smallest numbers
    MASS
    MASS_CARRY
    OTHERS                    # probability of all but one of the ties
    FACTOR
    PARAMETERS                # how many apply needs


# ---- exp and log -----------------------------------------------------------------------------------------------

cdef inline real exp_series(real r) noexcept nogil:
    """(exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2. In Horner's scheme each operation waits for the last, and a processor
    sees too few vectors ahead to fill that time with double's: logsumexp of 257 classes takes 1.17 ns an element so, and
    1.21 in Horner's. Of float's shorter series the fewer registers matter more: 0.44 in Horner's, 0.45 otherwise."""
    cdef real high, low, square
    if real is float:
        high = <float> 0.0013814540579915047 * r + <float> 0.00836874544620514
        high = high * r + <float> 0.04166838899254799
        high = high * r + <float> 0.1666652113199234
        return high * r + <float> 0.4999999403953552
    else:
        # Odd powers, and even ones.
        square = r * r
        high = 2.500001885308334e-08 * square + 2.755758680384707e-06
        high = high * square + 0.00019841269505773806
        high = high * square + 0.008333333333494976
        high = high * square + 0.1666666666666641
        low = 2.7630306255647857e-07 * square + 2.480149294961707e-05
        low = low * square + 0.0013888888943759984
        low = low * square + 0.041666666666529725
        low = low * square + 0.5000000000000011
        return high * r + low


cdef inline real reduced(bint brief, real x, real n) noexcept nogil:
    """x - n ln 2. Of the two parts of ln 2 the first has so few digits that n times it is exact. `brief`, one part will
    do where there is FMA, in float: it is off by 2e-9, which the limits of accuracy, growing with n, allow in a sum."""
    if real is float and CYLSM_FMA:
        if brief:
            return x - n * <float> 0.6931471805599453
    if real is float:
        return (x - n * <float> 0.693145751953125) - n * <float> 1.4286068203094173e-06
    else:
        return (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10


cdef inline real exp_less_one(real r) noexcept nogil:
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    return exp_series(r) * (r * r) + r


cdef inline real rounder(const real *any) noexcept nogil:
    """1.5 * 2**23 or 1.5 * 2**52: adding it rounds to an integer, which then stands in the sum's low bits."""
    if real is float:
        return <real> 12582912.0
    else:
        return <real> 6755399441055744.0


cdef inline real power_of_two(real shifted) noexcept nogil:
    """2**(n - bias) for shifted = rounder + n; 0 where n is 0."""
    if real is float:
        return float_of_bits(bits_of_float(shifted) << 23)
    else:
        return double_of_bits(bits_of_double(shifted) << 52)


cdef inline real exp_unit(const real *any) noexcept nogil:
    """2**-30 or 2**-60: what exp_from counts in, so that sums of subnormals keep their digits."""
    if real is float:
        return <real> 9.313225746154785e-10
    else:
        return <real> 8.673617379884035e-19


cdef inline real exp_bias(const real *any) noexcept nogil:
    """The exponent of a 1 so counted."""
    if real is float:
        return <real> 157.0
    else:
        return <real> 1083.0


cdef inline void set_reference(real top, real *centre, real *shift, real *least) noexcept nogil:
    """What exp_from counts from: centre + N ln 2, at most ln(2) / 2 from top.

    Of an ordinary top the centre is 0: x - centre is exact then, where x - top would be rounded. Of one so large that
    N ln 2 would be rounded it is top: x - top is exact but for gaps so large that their rounding no longer matters.
    `least` is where exp_from becomes 0.
    """
    cdef real distance, n, bias = exp_bias(&top)
    cdef real most = <real> 200.0 if real is float else <real> 1e5
    cdef bint ordinary = -most < top < most
    centre[0] = <real> 0.0 if ordinary else top
    distance = top if ordinary else <real> 0.0
    n = (distance * <real> 1.4426950408889634 + rounder(&top)) - rounder(&top)
    shift[0] = rounder(&top) + (bias - n)
    least[0] = (n - bias) * <real> 0.6931471805599453


cdef inline real exp_from(bint brief, bint plain, real x, real centre, real shift, real least) noexcept nogil:
    """exp(x - centre - N ln 2) / exp_unit for x not above the top that the reference was made of, or nan. `plain`: the
    centre is 0.

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 0.99 / 4.49 / 4.49 (`brief`, at gaps
    of 100), float64 1.03 / 1.06 / 1.06.
    """
    cdef real gap = x if plain else x - centre
    cdef real shifted, power
    gap = least if least > gap else gap
    shifted = gap * <real> 1.4426950408889634 + shift
    power = power_of_two(shifted)
    return exp_less_one(reduced(brief, gap, shifted - shift)) * power + power


cdef inline real exp_near(real x, real top) noexcept nogil:
    """exp(x - top) / exp_unit for x not above top, or nan; what the rounding of x - top loses is carried into exp.

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 1.15 / 4.49 / 4.49 (at gaps of 100), float64 1.03 / 1.06 /
    1.06.
    """
    cdef real bias = exp_bias(&x)
    cdef real least = -bias * <real> 0.6931471805599453
    cdef real gap = x - top
    cdef real lost = lost_in_sum(x, -top, gap)
    cdef real shifted, power
    lost = lost if gap > least else <real> 0.0
    gap = least if least > gap else gap
    shifted = gap * <real> 1.4426950408889634 + (rounder(&x) + bias)
    power = power_of_two(shifted)
    return exp_less_one(reduced(True, gap, shifted - (rounder(&x) + bias)) + lost) * power + power


cdef inline real lift_to(real top, real centre, real shift, real *low) noexcept nogil:
    """exp(centre + N ln 2 - top) as a sum of two: the way from exp_from's reference to top."""
    cdef real n = (rounder(&top) - shift) + exp_bias(&top)
    cdef real r = -reduced(True, <real> 0.0 if centre == top else top, n)
    cdef real high = <real> 1.0 + r
    cdef real tail = ((<real> 1.0 - high) + r) + exp_series(r) * (r * r)
    cdef real lift = high + tail
    low[0] = (high - lift) + tail
    return lift


cdef inline real finite(real x) noexcept nogil:
    """x, or 0 for what is not finite."""
    return x if x - x == 0 else <real> 0.0


cdef inline real lost_in_sum(real a, real b, real s) noexcept nogil:
    """What the rounding of s = a + b lost (Knuth's TwoSum)."""
    cdef real v = s - a
    return (a - (s - v)) + (b - v)


cdef inline double high_half(double x) noexcept nogil:
    """The upper 26 bits of x (Veltkamp's split)."""
    cdef double shifted = 134217729.0 * x
    return shifted - (shifted - x)


cdef inline real lost_in_product(real x, real y, real product) noexcept nogil:
    """What the rounding of x * y lost (without FMA in float64, Dekker's product: nan where x or y is huge)."""
    cdef double x_high, y_high, x_low, y_low
    if CYLSM_FMA:
        if real is float:
            return fmaf(x, y, -product)
        else:
            return fma(x, y, -product)
    if real is float:
        return <real> (<double> x * y - product)
    else:
        x_high = high_half(x)
        y_high = high_half(y)
        x_low = x - x_high
        y_low = y - y_high
        return ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low


cdef inline real rounded_product(real x, real y) noexcept nogil:
    """x * y, which no addition is fused with: that would depend on where in a loop the compiler meets it."""
    if CYLSM_FMA:
        if real is float:
            return fmaf(x, y, <real> 0.0)
        else:
            return fma(x, y, <real> 0.0)
    return x * y


cdef inline void lift_sum(real top, real centre, real shift, real *total, real *carry) noexcept nogil:
    """A sum of exp_from's becomes one of exp(x - top)'s."""
    cdef real low, unit = exp_unit(&top), lift = lift_to(top, centre, shift, &low)
    cdef real product = total[0] * lift
    cdef real lost = (carry[0] * lift + total[0] * low) + lost_in_product(total[0], lift, product)
    total[0] = product * unit
    carry[0] = finite(lost) * unit


cdef inline real set_factor(real factor, real *shift, real *least) noexcept nogil:
    """The factor as mantissa times a power of two: exp_scaled multiplies by the power, which keeps what it returns in
    range, and the caller by the mantissa. That is between sqrt(1/2) and sqrt(2) but for factors whose own power, or its
    inverse, is no normal number: they keep the rest of it."""
    cdef real bias
    cdef uint32_t exponent
    cdef uint64_t wide_exponent
    if real is float:
        exponent = ((bits_of_float(factor) & <uint32_t> 0x7fffffff) + <uint32_t> 0x4afb0d) >> 23
        exponent = <uint32_t> 1 if exponent < 1 else exponent
        exponent = <uint32_t> 253 if exponent > 253 else exponent
        shift[0] = float_of_bits(<uint32_t> 0x4b400000 + exponent)
        factor = factor * float_of_bits((<uint32_t> 254 - exponent) << 23)
    else:
        wide_exponent = ((bits_of_double(factor) & <uint64_t> 0x7fffffffffffffff) + <uint64_t> 0x95f619980c433) >> 52
        wide_exponent = <uint64_t> 1 if wide_exponent < 1 else wide_exponent
        wide_exponent = <uint64_t> 2045 if wide_exponent > 2045 else wide_exponent
        shift[0] = double_of_bits(<uint64_t> 0x4338000000000000 + wide_exponent)
        factor = factor * double_of_bits((<uint64_t> 2046 - wide_exponent) << 52)
    bias = shift[0] - rounder(&factor)
    least[0] = -bias * <real> 0.6931471805599453
    return factor


cdef inline real exp_scaled(real x, real shift, real least) noexcept nogil:
    """exp(x), for any x, times the power of two that set_factor made `shift` and `least` of. Times its mantissa, that is
    exp(x) * factor, where factor is neither subnormal nor within a factor of four of the largest number: 0 below the
    smallest normal number, possibly inf above a third of the largest one.

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 0.99 / 1.02 / 1.02, float64 1.03 / 1.06 / 1.06.
    """
    # rounder + 255 or 2047. Of a constant gcc would make a branch, and of that a comparison and a blend, not a minimum.
    cdef real most = (shift - (shift - rounder(&x))) + (<real> 255.0 if real is float else <real> 2047.0)
    cdef real gap = least if least > x else x
    cdef real shifted = gap * <real> 1.4426950408889634 + shift
    shifted = shifted if shifted < most else most
    # The power may be inf.
    return (exp_less_one(reduced(False, gap, shifted - shift)) + <real> 1.0) * power_of_two(shifted)


cdef inline real share(real factor, real ties, real rest, real carry) noexcept nogil:
    """factor / sum; nan where the sum is 0."""
    cdef real s, inverse, excess
    if real is float and not CYLSM_FMA:
        inverse = <float> (factor / ((<double> ties + rest) + carry))
    else:
        # A step of Newton's, for the digits that s and the division lost.
        s = ties + rest
        inverse = <real> 1.0 / s
        excess = (lost_in_sum(ties, rest, s) + carry) * inverse + lost_in_product(inverse, s, <real> 1.0)
        inverse = factor * (inverse - inverse * excess)
    return <real> NAN if ties + rest == 0 else inverse


cdef inline real share_of_others(real factor, real ties, real rest, real carry) noexcept nogil:
    """factor times the probability of all but one of the ties."""
    cdef real s, c
    if real is float:
        return <float> (factor * ((<double> ties - 1 + rest) + carry) / ((<double> ties + rest) + carry))
    else:
        s = ties + rest
        c = (lost_in_sum(ties, rest, s) + carry) / s
        return factor * ((1.0 - c) * (((ties - 1) + (rest + carry)) / s))


cdef inline real log_of_sum(real a, real b, real carry, real *lost) noexcept nogil:
    """log(a + b + carry) for a sum of at least 1, with full relative accuracy where the sum is close to 1.

    With s = a + b rounded and c what the rounding lost, log(s) + c / s. s = 2**k * (1 + f), and log(1 + f) is
    2 atanh(t) with t = f / (2 + f), as the series t + t**3 * R(t**2). `lost` is what the result's rounding lost.

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 0.87 / 0.76 / 0.76, float64 0.75 / 0.74 / 0.74.
    """
    cdef real s = a + b
    cdef real c = lost_in_sum(a, b, s) + carry
    cdef real k, f, t, z, series, half_square, low, tail, high, rounded
    if real is float:
        k = float_of_bits(((bits_of_float(s) - <uint32_t> 0x3f3504f3) >> 23) + <uint32_t> 0x4b400000) - <float> 12582912.0
        f = float_of_bits(((bits_of_float(s) - <uint32_t> 0x3f3504f3) & <uint32_t> 0x7fffff) + <uint32_t> 0x3f3504f3) - <float> 1.0
    else:
        k = double_of_bits(((bits_of_double(s) - <uint64_t> 0x3fe6a09e667f3bcd) >> 52) + <uint64_t> 0x4338000000000000) - 6755399441055744.0
        f = double_of_bits(((bits_of_double(s) - <uint64_t> 0x3fe6a09e667f3bcd) & <uint64_t> 0xfffffffffffff) + <uint64_t> 0x3fe6a09e667f3bcd) - 1.0
    t = f / (<real> 2.0 + f)
    z = t * t
    if real is float:
        series = <float> 0.298730731010437
        series = series * z + <float> 0.399774968624115
        series = series * z + <float> 0.6666677594184875
        low = k * <float> 1.4286068203094173e-06 + c / s
    else:
        series = 0.1479750793138197
        series = series * z + 0.15313903213156663
        series = series * z + 0.18183569741670932
        series = series * z + 0.22222198475936597
        series = series * z + 0.28571428743263344
        series = series * z + 0.3999999999941109
        series = series * z + 0.6666666666666735
        low = k * 1.90821492927058770002e-10 + c / s
    half_square = <real> 0.5 * f * f
    tail = half_square - (low + t * (half_square + z * series))
    high = f - tail
    if real is float:
        k = k * <float> 0.693145751953125
    else:
        k = k * 6.93147180369123816490e-01
    rounded = k + high
    lost[0] = lost_in_sum(k, high, rounded) + ((f - high) - tail)
    return rounded


# ---- lanes -----------------------------------------------------------------------------------------------------

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


cdef inline real counted(real ties, bint tie) noexcept nogil:
    """Ties are counted in the bits of a real: one operation beside the comparison that the sum needs too."""
    if real is float:
        return float_of_bits(bits_of_float(ties) + <uint32_t> tie)
    elif CYLSM_FMA:
        return double_of_bits(bits_of_double(ties) + <uint64_t> tie)
    else:
        return ties + (1.0 if tie else 0.0)


cdef inline real count_of(real ties) noexcept nogil:
    """The number that `counted` has reached, up to 2**23."""
    if real is float:
        return <real> <int32_t> bits_of_float(ties)
    elif not CYLSM_FMA:
        return ties
    else:
        return double_of_bits(bits_of_double(ties) + <uint64_t> 0x4330000000000000) - 4503599627370496.0


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
        v1 = larger(seen(operation, x[x_step + j], w1), lowest(x)) if n > 1 else v0
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


cdef inline void sum_of_classes(int operation, int n, bint keep, bint apart, bint few, int origin, Py_ssize_t width,
                                const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, const real *of,
                                Py_ssize_t of_step, Py_ssize_t of_lane, real *total, real *carry, real *ties,
                                real *ties_carry, real *exps, Py_ssize_t exps_step) noexcept nogil:
    """Adds the terms of n classes, up to four, to their lanes' (each of `few` terms, or sums of two or four, with Fast2Sum's
    compensation), and counts the ties. What lane j counts from stands at of[j * of_lane]. Exps are stored as they come
    where the steps are constants, so that the compiler can tell x and exps apart, and otherwise by way of an array
    `apart`."""
    cdef Py_ssize_t j, i
    cdef double exact
    cdef real v0, v1, v2, v3, e0, e1, e2, e3, w0, w1, w2, w3, top, sum_here, lost, tied, tied_lost
    cdef real kept[4 * STRIP]
    cdef bint backward = is_backward(operation)
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
                    add_term(backward, e0, &sum_here, &lost)
                    e0 = e2
                elif n > 2:
                    e0 = e0 + e2
                add_term(backward, e0, &sum_here, &lost)
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
        sum_of_classes(operation, 4, keep, True, few, origin, width, x + c * x_step, x_step, y + c * y_step, y_step, of,
                       width, 1, total, carry, ties, ties_carry, exps + c * exps_step if keep else exps, exps_step)
    ask_meanwhile(soon, whole, classes - whole, width * <Py_ssize_t> sizeof(real))
    x = x + whole * x_step
    y = y + whole * y_step
    exps = exps + whole * exps_step if keep else exps
    if classes - whole == 3:
        sum_of_classes(operation, 3, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    elif classes - whole == 2:
        sum_of_classes(operation, 2, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    elif classes - whole == 1:
        sum_of_classes(operation, 1, keep, True, few, origin, width, x, x_step, y, y_step, of, width, 1, total, carry, ties,
                       ties_carry, exps, exps_step)
    if counts_ties(operation) and operation != LOGSUMEXP_WEIGHTED:
        for j in range(width):
            ties[j] = count_of(ties[j])


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
        return x - exp_scaled(y, of[SHIFT * width + j], of[LEAST * width + j]) * low
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


cdef inline void store_around(const real *line, Py_ssize_t n, real *out) noexcept nogil:
    """Whole lines go around the caches."""
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


# ---- rows ------------------------------------------------------------------------------------------------------

cdef inline void transpose(const real *x, Py_ssize_t x_step, real *out, Py_ssize_t out_step) noexcept nogil:
    """Four rows of four."""
    if real is float:
        gather_float_1(x, x_step, out, out_step)
    else:
        gather_double_1(x, x_step, out, out_step)


cdef inline real joined(bint largest, real a, real b) noexcept nogil:
    return larger(a, b) if largest else a + b


cdef inline void halve(bint largest, real *lanes, Py_ssize_t each, Py_ssize_t half, Py_ssize_t rows) noexcept nogil:
    """lanes[j] joins lanes[half + j], for j < half, in every row."""
    cdef Py_ssize_t r, j
    for r in range(rows):
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


cdef inline real folded(bint largest, real *lanes, Py_ssize_t each) noexcept nogil:
    """The same of one row."""
    if each > 8:
        halve(largest, lanes, each, 8, 1)
    if each > 4:
        halve(largest, lanes, each, 4, 1)
    return joined(largest, joined(largest, lanes[0], lanes[2]), joined(largest, lanes[1], lanes[3]))


cdef inline void halve_sum(real *total, real *carry, Py_ssize_t each, Py_ssize_t half, Py_ssize_t rows) noexcept nogil:
    """The same with compensated sums."""
    cdef Py_ssize_t r, j
    cdef real s
    for r in range(rows):
        for j in range(half):
            s = total[r * each + j] + total[r * each + half + j]
            carry[r * each + j] = (carry[r * each + j] + carry[r * each + half + j]
                                   + lost_in_sum(total[r * each + j], total[r * each + half + j], s))
            total[r * each + j] = s


cdef inline void fold_sum(real *total, real *carry, Py_ssize_t rows) noexcept nogil:
    """The same with compensated sums; carry is 0 beside one that is not finite. Those of float are added in double."""
    cdef Py_ssize_t r, i, j, each = lanes_of(total)
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


cdef inline double exact_term(int operation, real x, real y) noexcept nogil:
    """The same of floats."""
    return <double> x * y if operation == SOFTMAX_BACKWARD else x


cdef inline void add_vectors(int operation, int n, int known, const real *x, const real *y, double *total,
                             real *carry) noexcept nogil:
    """Adds the terms of n vectors, one or two, but for the first `known` of one, to their lanes."""
    cdef int j, lanes = <int> lanes_of(x)
    cdef real term, s
    for j in range(lanes):
        if real is float:
            total[j] += exact_term(operation, x[j], y[j]) if j >= known else 0.0
            if n > 1:
                total[j] += exact_term(operation, x[lanes + j], y[lanes + j])
        else:
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
    """The same of a row of out. `own` elements from its beginning are this thread's: what lies behind them another may be
    writing, and waits for it where it is asked for. softmax of 128 x 1000 float32 takes 12 us so, and otherwise 23."""
    return ahead if classes + ahead <= own else 0


cdef inline void ask_for_terms(int operation, const real *x, const real *y, Py_ssize_t n) noexcept nogil:
    ask_for(x, n)
    if operation == SOFTMAX_BACKWARD:
        ask_for(y, n)


cdef inline real row_total(int operation, Py_ssize_t whole, const real *x, const real *y, Py_ssize_t classes,
                           Py_ssize_t ahead) noexcept nogil:
    """A backward operation's sum over one row, of `whole` vectors and perhaps the beginning of one more: of float in
    double, of double compensated."""
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
        return <real> folded(False, total, lanes)
    else:
        if lanes > 4:
            halve_sum(total, carry, lanes, 4, 1)
        halve_sum(total, carry, lanes, 2, 1)
        halve_sum(total, carry, lanes, 1, 1)
        # Beside an infinite sum it is nan.
        return total[0] + finite(carry[0])


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
                         Py_ssize_t exps_ahead, Py_ssize_t ahead, const real *soon, const Meanwhile *meanwhile) noexcept nogil:
    """The lanes of one row's sums; `row` holds its top and reference. Four vectors are added at a time, then single ones,
    then what is left, in a vector that ends with the row and counts what is new in it. The elements `ahead` of x,
    `exps_ahead` of exps, and those of `soon`, are asked for meanwhile. Exps wait for no memory, so other rows may be
    compared and written meanwhile too."""
    cdef Py_ssize_t i = 0, j, at = 0, start = 0, lanes = lanes_of(x), group = 4 * lanes, together = 0
    cdef int lane, known = <int> (lanes - classes % lanes)
    cdef bint stream = also == STREAMING
    cdef real sums[MOST_LANES]
    cdef real lost[MOST_LANES]
    cdef real tied[MOST_LANES]
    cdef real tied_lost[MOST_LANES]
    cdef real end[MOST_LANES]
    cdef real last_x[MOST_LANES]
    cdef real last_y[MOST_LANES]
    cdef real tops[4 * MOST_LANES]
    cdef real ends[2 * MOST_LANES]
    cdef real parameters[(LOW + 1) * BATCH]
    cdef const real *later = x
    cdef const real *earlier = x
    cdef real *out = exps
    cdef Py_ssize_t out_ahead = 0
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
        sum_of_classes(operation, 4, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += group
        at += group
    while i + group <= classes:
        ask_for(x + i + ahead, group)
        if operation == LOGSUMEXP_WEIGHTED:
            ask_for(y + i + ahead, group)
        if keep:
            ask_for(exps + i + exps_ahead, group)
        if soon != NULL:
            ask_for(soon + i, group)
        if also != ALONE:
            raise_group(operation, later + i, later + i, tops)
        sum_of_classes(operation, 4, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += group
    while i + lanes <= classes:
        if also != ALONE:
            raise_lanes(operation, later + i, later + i, tops)
        sum_of_classes(operation, 1, keep, True, False, origin, lanes, x + i, lanes, y + i, lanes, row, BATCH, 0, sums, lost,
                       tied, tied_lost, exps + i if keep else exps, lanes)
        i += lanes
    if i < classes:
        for lane in range(<int> lanes):
            last_x[lane] = end[lane] if lane >= known else <real> -INFINITY
        if operation == LOGSUMEXP_WEIGHTED:
            for lane in range(<int> lanes):
                last_y[lane] = y[classes - lanes + lane] if lane >= known else <real> 0.0
        sum_of_classes(operation, 1, False, False, False, origin, lanes, last_x, lanes, last_y, lanes, row, BATCH, 0, sums,
                       lost, tied, tied_lost, exps, lanes)
        if keep:
            # Some of these have just been stored: to read them back would take longer than to compute them.
            for j in range(lanes):
                last_x[j] = exp_of_lane(origin, end[j], row, BATCH, 0)
            memcpy(exps + classes - lanes, last_x, lanes * sizeof(real))
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
            ties[j] = tied[j] if operation == LOGSUMEXP_WEIGHTED else count_of(tied[j])
    if operation == LOGSUMEXP_WEIGHTED:
        for j in range(lanes):
            ties_carry[j] = tied_lost[j]


cdef inline void sum_rows(int operation, bint keep, int origin, const real *x, Py_ssize_t x_step, const real *y,
                          Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const real *of, real *total,
                          real *carry, real *ties, real *ties_carry, real *exps, Py_ssize_t exps_step) noexcept nogil:
    cdef Py_ssize_t r, lanes = lanes_of(x), ahead = classes if rows == 1 else rows * x_step
    for r in range(rows):
        row_sum(operation, keep, ALONE, origin, x + r * x_step, y + r * y_step, classes, of + r, total + r * lanes,
                carry + r * lanes, ties + r * lanes, ties_carry + r * lanes, exps + r * exps_step,
                ahead_within(ahead_of(False, x), classes, (rows - 1 - r) * exps_step + classes), ahead,
                exps + r * exps_step if not keep and exps != NULL else NULL, NULL)


cdef void softmax_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                       Py_ssize_t exps_step) noexcept nogil:
    sum_rows(SOFTMAX, True, ROUNDED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)


cdef void gradient_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                        Py_ssize_t exps_step) noexcept nogil:
    sum_rows(LOGSUMEXP, True, NEAR, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)


cdef void plain_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                     Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                     Py_ssize_t exps_step) noexcept nogil:
    sum_rows(LOGSUMEXP, False, PLAIN, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)


cdef void centred_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                       Py_ssize_t exps_step) noexcept nogil:
    sum_rows(LOGSUMEXP, False, CENTRED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)


cdef void weighted_sums(const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, const real *of, real *total, real *carry, real *ties, real *ties_carry, real *exps,
                        Py_ssize_t exps_step) noexcept nogil:
    sum_rows(LOGSUMEXP_WEIGHTED, False, CENTRED, x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)


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
    fold_sum(total, carry, rows)
    if operation == LOGSUMEXP_WEIGHTED:
        fold_sum(ties, ties_carry, rows)
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
                              Py_ssize_t first, real *exps, Py_ssize_t exps_step) noexcept nogil:
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
        softmax_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)
    elif keep:
        gradient_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)
    elif operation == LOGSUMEXP_WEIGHTED:
        weighted_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)
    elif not centred:
        plain_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)
    else:
        centred_sums(x, x_step, y, y_step, rows, classes, of, total, carry, ties, ties_carry, exps, exps_step)
    take_sums(operation, rows, of, found, infinite, total, carry, ties, ties_carry)
    write_state(operation, NEAR if keep else CENTRED, BATCH, rows, of, total, carry, ties, ties_carry, state, first)


cdef inline void add_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                          Py_ssize_t classes, const RowState *state, Py_ssize_t first) noexcept nogil:
    """The sums of a backward operation."""
    cdef Py_ssize_t r
    for r in range(rows):
        (<real *> state.rest)[first + r] = row_total(operation, classes // lanes_of(x), x + r * x_step, y + r * y_step, classes,
                                                     PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real))
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
    fold_sum(mass, mass_carry, rows)
    fold_sum(cost, cost_carry, rows)
    for r in range(rows):
        (<real *> state.mass)[first + r] = mass[r]
        (<real *> state.mass_carry)[first + r] = mass_carry[r]
        (<real *> state.cost)[first + r] = cost[r]
        (<real *> state.carry)[first + r] = cost_carry[r]


cdef void reduce_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, real *exps,
                      Py_ssize_t exps_step, int following) noexcept nogil:
    cdef Py_ssize_t b, r, n
    cylsm_require(classes >= SHORTEST_ROW)
    for b in range((rows + BATCH - 1) // BATCH):
        r = b * BATCH
        n = min(rows - r, <Py_ssize_t> BATCH)
        if operation == SOFTMAX:
            reduce_batch(SOFTMAX, True, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step)
        elif operation == SOFTMAX_GRADIENT:
            reduce_batch(LOGSUMEXP, True, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step)
        elif operation == LOG_SOFTMAX_BACKWARD:
            add_rows(LOG_SOFTMAX_BACKWARD, x + r * x_step, x_step, x, 0, n, classes, state, first + r)
        elif operation == SOFTMAX_BACKWARD:
            add_rows(SOFTMAX_BACKWARD, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, first + r)
        elif operation == LOGSUMEXP_WEIGHTED:
            reduce_batch(LOGSUMEXP_WEIGHTED, False, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state,
                         first + r, exps + r * exps_step, exps_step)
        elif operation == MIXTURE_COST:
            cost_batch(x + r * x_step, x_step, y + r * y_step, y_step, n, classes, state, first + r)
        else:
            reduce_batch(LOGSUMEXP, False, x + r * x_step, x_step, x, 0, n, classes, state, first + r,
                         exps + r * exps_step, exps_step)


cdef inline void apply_short_row(int operation, bint kept, const real *x, const real *y, Py_ssize_t classes, const real *row,
                                 real *out) noexcept nogil:
    """One of less than SHORTEST_ALIGNED elements."""
    cdef Py_ssize_t i, lanes = lanes_of(x), whole = classes // lanes
    cdef real last[MOST_LANES]
    if classes % lanes > 0:
        # Out may be an input: it is computed before anything is stored.
        apply_span(operation, kept, lanes, x + classes - lanes, y + classes - lanes, row, last)
    for i in range(whole):
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
                apply_row(operation, kept, stream, x + i * x_step, y + i * y_step, classes, of + r, out + i * out_step,
                          ahead_within(ahead, classes, (rows - 1 - i) * out_step + classes), &tail)
            if again:
                for j in range(classes):
                    out[i * out_step + j] = out[i * out_step + j] * of[AGAIN * BATCH + r]


cdef void apply_rows(int operation, bint kept, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                     Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                     const real *factor, real *out, Py_ssize_t out_step, bint far, bint stream) noexcept nogil:
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


# ---- softmax and log_softmax by rows: while a batch is added up, the next is compared and the last written -----------

cdef inline void set_parameters(int operation, real *of, real *total, real *carry, const real *ties) noexcept nogil:
    """What `applied` needs, of a batch's sums."""
    cdef Py_ssize_t r
    cdef real log_sum[BATCH]
    if operation == SOFTMAX:
        for r in range(BATCH):
            of[LOW * BATCH + r] = share(<real> 1.0, ties[r], total[r], carry[r])
        return
    for r in range(BATCH):
        lift_sum(of[TOP * BATCH + r], of[CENTRE * BATCH + r], of[SHIFT * BATCH + r], &total[r], &carry[r])
    for r in range(BATCH):
        log_sum[r] = log_of_sum(ties[r], total[r], carry[r], &carry[r])
    for r in range(BATCH):
        of[LOW * BATCH + r] = <real> INFINITY if ties[r] + total[r] == 0 else -log_sum[r]
    for r in range(BATCH):
        of[TOP * BATCH + r] = -of[TOP * BATCH + r]


cdef inline void forward_batch(int operation, int also, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t more,
                               Py_ssize_t batch, Py_ssize_t classes, const real *of, const real *of_earlier, real *out,
                               Py_ssize_t out_step, real *exps, const real *exps_earlier, Py_ssize_t exps_step, bint far,
                               Py_ssize_t own, real *tops, real *total, real *carry, real *ties, Tail *tail) noexcept nogil:
    """Adds up a batch's rows, and compares the `more` rows that follow. Beside row r, row r of the batch before is written;
    if there are more of those, the caller writes them. `own` elements from out on are this thread's."""
    cdef Py_ssize_t r, lanes = lanes_of(x), later, ahead
    cdef bint keep = operation == SOFTMAX
    cdef Meanwhile meanwhile
    meanwhile.tail = tail
    for r in range(rows):
        # Without another row its own is compared once more.
        later = r + batch if r < more else r
        ahead = (later - r) * x_step + ahead_of(far, x)
        meanwhile.later = x + later * x_step
        meanwhile.later_top = tops + r * lanes
        meanwhile.out = out + (r - batch) * out_step
        meanwhile.earlier = exps_earlier + r * exps_step if keep else x + (r - batch) * x_step
        meanwhile.parameters = of_earlier + r
        meanwhile.out_ahead = ahead_within(ahead_of(far, x), classes, own - (r - batch) * out_step)
        row_sum(operation, keep, also, ROUNDED if keep else CENTRED, x + r * x_step, x, classes, of + r, total + r * lanes,
                carry + r * lanes, ties + r * lanes, ties, exps + r * exps_step,
                ahead_within(ahead_of(far, x), classes, own - r * out_step) if far and also != STREAMING else 0, ahead, NULL,
                &meanwhile)


cdef inline void forward(int operation, bint stream, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                         real *out, Py_ssize_t out_step, real *apart, bint far) noexcept nogil:
    cdef Py_ssize_t b, r, at, n = 0, lanes = lanes_of(x), own = rows * out_step
    cdef Py_ssize_t exps_step = (classes + line_of(x) - 1) // line_of(x) * line_of(x) if stream else out_step
    cdef Py_ssize_t batch = max(<Py_ssize_t> 1, min(<Py_ssize_t> BATCH,
                                                    FORWARD_BYTES // (classes * <Py_ssize_t> sizeof(real))))
    cdef bint keep = operation == SOFTMAX, found
    cdef real *exps = out
    cdef real *exps_earlier = out
    cdef real parameters[2 * (LOW + 1) * BATCH]
    cdef real *of = parameters
    cdef real *of_earlier = parameters + (LOW + 1) * BATCH
    cdef real infinite[BATCH]
    cdef real tops[BATCH * MOST_LANES]
    cdef real total[BATCH * MOST_LANES]
    cdef real carry[BATCH * MOST_LANES]
    cdef real ties[BATCH * MOST_LANES]
    cdef Tail tail
    tail.held = 0
    tail.more = out_step == classes
    for r in range(min(rows, batch)):
        row_max(operation, x + r * x_step, x, classes, tops + r * lanes)
    for b in range((rows + batch - 1) // batch + 1):
        at = b * batch
        n = max(<Py_ssize_t> 0, min(rows - at, batch))
        found = take_tops(operation, keep, x + at * x_step, x_step, n, classes, tops, of, infinite)
        exps_earlier = exps
        if keep:
            exps = apart + b % 2 * batch * exps_step if stream else out + at * out_step
        if b == 0:
            forward_batch(operation, RAISING, x, x_step, n, min(rows - n, batch), batch, classes, of, of_earlier, out,
                          out_step, exps, exps, exps_step, far, own, tops, total, carry, ties, &tail)
        else:
            forward_batch(operation, STREAMING if stream else WRITING, x + at * x_step, x_step, n, min(rows - at - n, batch),
                          batch, classes, of, of_earlier, out + at * out_step, out_step, exps, exps_earlier, exps_step, far,
                          own - at * out_step, tops, total, carry, ties, &tail)
        for r in range(at - batch + n if b > 0 else at, min(rows, at)):
            tail.more = out_step == classes and r < rows - 1
            apply_row(operation, keep, stream, exps_earlier + (r - (at - batch)) * exps_step if keep else x + r * x_step, x,
                      classes, of_earlier + r - (at - batch), out + r * out_step,
                      ahead_within(ahead_of(far, x), classes, own - r * out_step), &tail)
        take_sums(operation, n, of, found, infinite, total, carry, ties, ties)
        set_parameters(operation, of, total, carry, ties)
        of, of_earlier = of_earlier, of


cdef void forward_softmax(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, real *out, Py_ssize_t out_step,
                          real *exps, bint far, bint stream) noexcept nogil:
    if stream:
        forward(SOFTMAX, True, x, x_step, rows, classes, out, out_step, exps, far)
    else:
        forward(SOFTMAX, False, x, x_step, rows, classes, out, out_step, exps, far)


cdef void forward_rows(int operation, const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes, real *out,
                       Py_ssize_t out_step, real *exps, bint far, bint stream) noexcept nogil:
    cylsm_require(classes >= SHORTEST_ROW)
    if operation == SOFTMAX:
        forward_softmax(x, x_step, rows, classes, out, out_step, exps, far, stream)
    elif stream:
        forward(LOG_SOFTMAX, True, x, x_step, rows, classes, out, out_step, exps, far)
    else:
        forward(LOG_SOFTMAX, False, x, x_step, rows, classes, out, out_step, exps, far)


# ---- the backward operations by rows: a few at a time, by way of local arrays alone ---------------------------------

cdef inline void backward_vectors(int operation, Py_ssize_t n, const real *x, const real *y, real scale, real shift, real least,
                                  real *out) noexcept nogil:
    """n elements, one vector or two."""
    cdef Py_ssize_t j
    cdef real here[2 * MOST_LANES]
    for j in range(n):
        if operation == LOG_SOFTMAX_BACKWARD:
            here[j] = x[j] - exp_scaled(y[j], shift, least) * scale
        else:
            here[j] = y[j] * (x[j] - scale)
    memcpy(out, here, n * sizeof(real))


cdef inline void backward_row(int operation, Py_ssize_t whole, const real *x, const real *y, Py_ssize_t classes, real scale,
                              real shift, real least, real *out, Py_ssize_t ahead, Py_ssize_t out_ahead) noexcept nogil:
    """One row. Exps of double wait for long: they are taken four vectors at a time. Otherwise a line is, up to two
    vectors."""
    cdef Py_ssize_t i, at, lanes = lanes_of(x), pair = 2 * lanes
    cdef Py_ssize_t many = 1 if CYLSM_VECTOR_BYTES == LINE_BYTES else 2
    cdef real last[MOST_LANES]
    if real is double and operation == LOG_SOFTMAX_BACKWARD:
        many = 4
    if classes % lanes != 0:
        # It overlaps the one before. Out may be an input: it is computed before anything is stored.
        backward_vectors(operation, lanes, x + classes - lanes, y + classes - lanes, scale, shift, least, last)
    for i in range(whole // many):
        at = i * many * lanes
        if operation == LOG_SOFTMAX_BACKWARD:
            ask_for(y + at + ahead, many * lanes)
        ask_for(out + at + out_ahead, many * lanes)
        backward_vectors(operation, min(many, <Py_ssize_t> 2) * lanes, x + at, y + at, scale, shift, least, out + at)
        if many == 4:
            backward_vectors(operation, pair, x + at + pair, y + at + pair, scale, shift, least, out + at + pair)
    for i in range(whole // many * many, whole):
        at = i * lanes
        if operation == LOG_SOFTMAX_BACKWARD:
            ask_for(y + at + ahead, lanes)
        ask_for(out + at + out_ahead, lanes)
        backward_vectors(operation, lanes, x + at, y + at, scale, shift, least, out + at)
    if classes % lanes != 0:
        memcpy(out + classes - lanes, last, lanes * sizeof(real))


cdef inline void backward_batch(int operation, Py_ssize_t whole, const real *x, Py_ssize_t x_step, const real *y,
                                Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, real *out, Py_ssize_t out_step,
                                Py_ssize_t ahead, Py_ssize_t own) noexcept nogil:
    """Up to GROUP rows; `own` elements of out are this thread's."""
    cdef Py_ssize_t r
    cdef real scale[GROUP]
    cdef real shift[GROUP]
    cdef real least[GROUP]
    for r in range(rows):
        scale[r] = row_total(operation, whole, x + r * x_step, y + r * y_step, classes, ahead)
    for r in range(rows):
        if operation == LOG_SOFTMAX_BACKWARD:
            scale[r] = set_factor(scale[r], &shift[r], &least[r])
        else:
            shift[r] = least[r] = 0
    for r in range(rows):
        backward_row(operation, whole, x + r * x_step, y + r * y_step, classes, scale[r], shift[r], least[r],
                     out + r * out_step, ahead, ahead_within(ahead, classes, own - r * out_step))


cdef void backward_few(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                       Py_ssize_t classes, real *out, Py_ssize_t out_step, Py_ssize_t own) noexcept nogil:
    """Rows of up to four vectors: of a number that the compiler knows, and of a known distance, the shortest takes a fifth
    less. Not inline, nor the next: together they run out of registers."""
    cdef Py_ssize_t whole = classes // lanes_of(x), ahead = PLAIN_AHEAD_BYTES // <Py_ssize_t> sizeof(real)
    if operation == LOG_SOFTMAX_BACKWARD:
        if whole == 1:
            backward_batch(LOG_SOFTMAX_BACKWARD, 1, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        elif whole == 2:
            backward_batch(LOG_SOFTMAX_BACKWARD, 2, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        elif whole == 3:
            backward_batch(LOG_SOFTMAX_BACKWARD, 3, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        else:
            backward_batch(LOG_SOFTMAX_BACKWARD, 4, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
    else:
        if whole == 1:
            backward_batch(SOFTMAX_BACKWARD, 1, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        elif whole == 2:
            backward_batch(SOFTMAX_BACKWARD, 2, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        elif whole == 3:
            backward_batch(SOFTMAX_BACKWARD, 3, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
        else:
            backward_batch(SOFTMAX_BACKWARD, 4, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)


cdef void backward_many(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, real *out, Py_ssize_t out_step, bint far, Py_ssize_t own) noexcept nogil:
    cdef Py_ssize_t whole = classes // lanes_of(x), ahead = ahead_of(far, x)
    if operation == LOG_SOFTMAX_BACKWARD:
        backward_batch(LOG_SOFTMAX_BACKWARD, whole, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)
    else:
        backward_batch(SOFTMAX_BACKWARD, whole, x, x_step, y, y_step, rows, classes, out, out_step, ahead, own)


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
        for r in range(n):
            of[LOW * BATCH + r] = row_total(operation, classes // lanes, x + (first + r) * x_step, y + (first + r) * y_step,
                                            classes, ahead_of(True, x))
        for r in range(n if operation == LOG_SOFTMAX_BACKWARD else 0):
            of[LOW * BATCH + r] = set_factor(of[LOW * BATCH + r], &of[SHIFT * BATCH + r], &of[LEAST * BATCH + r])
        for r in range(n):
            tail.more = out_step == classes and first + r < rows - 1
            apply_row(operation, False, True, x + (first + r) * x_step, y + (first + r) * y_step, classes, of + r,
                      out + (first + r) * out_step, 0, &tail)


cdef void backward_rows(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                        Py_ssize_t classes, real *out, Py_ssize_t out_step, bint far, bint stream) noexcept nogil:
    cdef Py_ssize_t b, r, n, own
    cdef Py_ssize_t batch = max(<Py_ssize_t> 1, min(<Py_ssize_t> GROUP, BATCH_BYTES // (classes * <Py_ssize_t> sizeof(real))))
    cylsm_require(classes >= SHORTEST_ROW)
    if stream and operation == LOG_SOFTMAX_BACKWARD:
        backward_streamed(LOG_SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, out, out_step)
        return
    elif stream:
        backward_streamed(SOFTMAX_BACKWARD, x, x_step, y, y_step, rows, classes, out, out_step)
        return
    for b in range((rows + batch - 1) // batch):
        r = b * batch
        n = min(rows - r, batch)
        own = (rows - 1 - r) * out_step + classes
        if classes < 5 * lanes_of(x):
            backward_few(operation, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, out + r * out_step, out_step,
                         own)
        else:
            backward_many(operation, x + r * x_step, x_step, y + r * y_step, y_step, n, classes, out + r * out_step, out_step,
                          far, own)


# ---- softmax of short rows of float, a few at a time ----------------------------------------------------------------

cdef inline float row_top(Py_ssize_t whole, const float *x, Py_ssize_t classes) noexcept nogil:
    """The largest element of a row of `whole` vectors and perhaps the beginning of one more."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x)
    cdef float top[MOST_LANES]
    for j in range(lanes):
        top[j] = lowest(x)
    for i in range(whole):
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


cdef inline double row_exps(Py_ssize_t whole, const float *x, Py_ssize_t classes, float top, float *exps,
                            Py_ssize_t exps_ahead) noexcept nogil:
    """Stores a row's exps, relative to its top, and returns their sum. Meanwhile x of the next batch is asked for."""
    cdef Py_ssize_t i, j, lanes = lanes_of(x), ahead = BATCH_BYTES // <Py_ssize_t> sizeof(float)
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
    cdef float last[MOST_LANES]
    if classes % lanes != 0:
        for j in range(lanes):
            last[j] = row[classes - lanes + j] * scale
    for i in range(whole):
        for j in range(lanes):
            row[i * lanes + j] = row[i * lanes + j] * scale
    if classes % lanes != 0:
        memcpy(row + classes - lanes, last, lanes * sizeof(float))


cdef inline void softmax_batch(Py_ssize_t whole, const float *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t classes,
                               float *out, Py_ssize_t out_step, Py_ssize_t own) noexcept nogil:
    """Up to GROUP rows. `own` elements of out are asked for as they come; none if it is 0."""
    cdef Py_ssize_t r
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
                            ahead_within(ahead_of(True, x), classes, own - r * out_step))
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
        own = (rows - 1 - r) * out_step + classes if far else 0
        if whole == 2:
            softmax_batch(2, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        elif whole == 3:
            softmax_batch(3, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        elif whole == 4:
            softmax_batch(4, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        elif whole == 5:
            softmax_batch(5, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        elif whole == 6:
            softmax_batch(6, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        elif whole == 7:
            softmax_batch(7, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)
        else:
            softmax_batch(8, x + r * x_step, x_step, n, classes, out + r * out_step, out_step, own)


# ---- strips ----------------------------------------------------------------------------------------------------

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
        apply_lanes(operation, kept, stream, width, x, x_step, y, y_step, classes, of, out, out_step, ahead, soon)
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


cdef inline void apply_width(int operation, bint kept, bint stream, Py_ssize_t width, Py_ssize_t n, const real *x, Py_ssize_t x_step,
                             const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state,
                             Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step, Py_ssize_t ahead,
                             const Soon *soon) noexcept nogil:
    if operation == LOG_SOFTMAX:
        apply_state(LOG_SOFTMAX, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif (operation == SOFTMAX or operation == SOFTMAX_GRADIENT) and kept:
        apply_state(SOFTMAX, True, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif operation == SOFTMAX:
        apply_state(SOFTMAX, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif operation == SOFTMAX_GRADIENT:
        apply_state(SOFTMAX_GRADIENT, False, stream, width, n, x, x_step, x, 0, classes, state, first, factor, out, out_step, ahead, soon)
    elif operation == LOG_SOFTMAX_BACKWARD:
        apply_state(LOG_SOFTMAX_BACKWARD, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out,
                    out_step, ahead, soon)
    elif operation == SOFTMAX_BACKWARD:
        apply_state(SOFTMAX_BACKWARD, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out,
                    out_step, ahead, soon)
    else:
        apply_state(MIXTURE, False, stream, width, n, x, x_step, y, y_step, classes, state, first, factor, out, out_step, ahead, soon)


cdef inline void strip_with_exps(int operation, Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes,
                                 const RowState *state, Py_ssize_t first, real *exps, Py_ssize_t exps_step,
                                 int following) noexcept nogil:
    cdef Soon soon
    soon.one = x + (classes * x_step if following == TILE_BELOW else width)
    soon.other = exps + (classes * exps_step if following == TILE_BELOW else width)
    soon.one_step = x_step * sizeof(real)
    soon.other_step = exps_step * sizeof(real)
    reduce_width(operation, width, x, x_step, x, 0, classes, state, first, exps, exps_step,
                 &soon if following != NOTHING else NULL)


cdef void strip_softmax(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                        Py_ssize_t first, real *exps, Py_ssize_t exps_step, int following) noexcept nogil:
    strip_with_exps(SOFTMAX, width, x, x_step, classes, state, first, exps, exps_step, following)


cdef void strip_gradient(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                         Py_ssize_t first, real *exps, Py_ssize_t exps_step, int following) noexcept nogil:
    strip_with_exps(SOFTMAX_GRADIENT, width, x, x_step, classes, state, first, exps, exps_step, following)


cdef void strip_logsumexp(Py_ssize_t width, const real *x, Py_ssize_t x_step, Py_ssize_t classes, const RowState *state,
                          Py_ssize_t first) noexcept nogil:
    reduce_width(LOGSUMEXP, width, x, x_step, x, 0, classes, state, first, NULL, 0, NULL)


cdef void reduce_strip(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                       Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first, real *exps,
                       Py_ssize_t exps_step, int following) noexcept nogil:
    """Only beside exps what follows is asked for: without any to store there is less to wait for."""
    cdef Py_ssize_t b, j, n
    for b in range((rows + STRIP - 1) // STRIP):
        j = b * STRIP
        n = min(rows - j, <Py_ssize_t> STRIP)
        if operation == SOFTMAX:
            strip_softmax(n, x + j, x_step, classes, state, first + j, exps + j, exps_step, following)
        elif operation == SOFTMAX_GRADIENT:
            strip_gradient(n, x + j, x_step, classes, state, first + j, exps + j, exps_step, following)
        elif operation == LOGSUMEXP:
            strip_logsumexp(n, x + j, x_step, classes, state, first + j)
        elif operation == LOGSUMEXP_WEIGHTED:
            reduce_width(LOGSUMEXP_WEIGHTED, n, x + j, x_step, y + j, y_step, classes, state, first + j, exps, 0, NULL)
        elif operation == LOG_SOFTMAX_BACKWARD:
            reduce_width(LOG_SOFTMAX_BACKWARD, n, x + j, x_step, x, 0, classes, state, first + j, exps, 0, NULL)
        elif operation == SOFTMAX_BACKWARD:
            reduce_width(SOFTMAX_BACKWARD, n, x + j, x_step, y + j, y_step, classes, state, first + j, exps, 0, NULL)
        else:
            reduce_width(MIXTURE_COST, n, x + j, x_step, y + j, y_step, classes, state, first + j, exps, 0, NULL)


cdef void apply_strip(int operation, bint kept, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                      Py_ssize_t rows, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                      const real *factor, real *out, Py_ssize_t out_step, bint far, bint stream) noexcept nogil:
    cdef Py_ssize_t b, j, n, ahead
    for b in range((rows + STRIP - 1) // STRIP):
        j = b * STRIP
        n = min(rows - j, <Py_ssize_t> STRIP)
        ahead = (STRIP_AHEAD_BYTES // <Py_ssize_t> sizeof(real) + n - 1) // n if far else 0
        apply_width(operation, kept, stream, n, n, x + j, x_step, y + j, y_step, classes, state, first + j, factor, out + j,
                    out_step, ahead, NULL)


# ---- between reduce and apply ----------------------------------------------------------------------------------

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


# ---- few classes: reduced, finished and written in one go ----------------------------------------------------------

cdef inline void sums_at_once(int operation, bint keep, int n, Py_ssize_t width, const real *x, Py_ssize_t x_step,
                              real *top, real *ties, real *total, real *carry, real *exps) noexcept nogil:
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
            ties[j] = count_of(tied)
        if keep:
            exps[j] = e0
            exps[width + j] = e1
            if n > 2:
                exps[2 * width + j] = e2
            if n > 3:
                exps[3 * width + j] = e3
        sum_here = term_of(operation, v0, v0, highest, e0)
        lost = 0
        add_term(backward, term_of(operation, v1, v1, highest, e1), &sum_here, &lost)
        if n > 2:
            add_term(backward, term_of(operation, v2, v2, highest, e2), &sum_here, &lost)
        if n > 3:
            add_term(backward, term_of(operation, v3, v3, highest, e3), &sum_here, &lost)
        total[j] = sum_here if backward else sum_here * exp_unit(x)
        carry[j] = lost if backward else lost * exp_unit(x)


cdef inline void at_once(int operation, Py_ssize_t groups, const real *x, Py_ssize_t x_step,
                         const real *y, Py_ssize_t y_step, Py_ssize_t classes, const RowState *state, Py_ssize_t first,
                         const real *factor, real *out, Py_ssize_t out_step, bint more) noexcept nogil:
    """Reduces, finishes and writes groups of lanes with up to NEAR_CLASSES classes, by way of local arrays alone. Each loop
    is so short that a processor sees the next few vectors: with all of it in one loop, log_softmax of 2 classes takes 17 %
    longer. `more`: other lanes of this thread's follow."""
    cdef Py_ssize_t c, g, at, j, width = groups * GROUP
    cdef bint softmax = operation == SOFTMAX or operation == SOFTMAX_GRADIENT, backward = is_backward(operation), small
    cdef int summed = operation if backward else LOGSUMEXP
    cdef real low, bound = least_normal(x) / exp_unit(x)
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
    cdef real exps[REGISTER_CLASSES * AT_ONCE]
    if classes == 2:
        sums_at_once(summed, softmax, 2, width, x, x_step, top, ties, total, carry, exps)
    elif classes == 3:
        sums_at_once(summed, softmax, 3, width, x, x_step, top, ties, total, carry, exps)
    elif classes == 4:
        sums_at_once(summed, softmax, 4, width, x, x_step, top, ties, total, carry, exps)
    else:
        for j in range(width):
            top[j] = lowest(x)
            total[j] = carry[j] = ties[j] = 0
        if not backward:
            lanes_max(summed, width, x, x_step, x, 0, classes, top)
        lanes_sum(summed, softmax, True, NEAR, width, x, x_step, x, 0, classes, top, total, carry, ties, ties, exps,
                  width, NULL)
        for j in range(0 if backward else width):
            total[j] = total[j] * exp_unit(x)
            carry[j] = carry[j] * exp_unit(x)
    if backward:
        for j in range(width):
            scale[j] = set_factor(total[j] + carry[j], &shift[j], &least[j])
    elif operation != SOFTMAX:
        for j in range(width):
            low = log_of_sum(ties[j], total[j], carry[j], &log_low[j])
            log_sum[j] = <real> -INFINITY if ties[j] + total[j] == 0 else low
    if softmax:
        for j in range(width):
            line[j] = factor[j] if factor != NULL else <real> 1.0
        for j in range(width):
            scale[j] = share(line[j], ties[j], total[j], carry[j])
    if operation == SOFTMAX_GRADIENT:
        memcpy(<real *> state.scale + first, scale, width * sizeof(real))
        for j in range(width):
            (<real *> state.others)[first + j] = share_of_others(line[j], ties[j], total[j], carry[j])
    if operation == LOGSUMEXP or operation == SOFTMAX_GRADIENT:
        memcpy(<real *> state.top + first, top, width * sizeof(real))
        memcpy(<real *> state.log_sum + first, log_sum, width * sizeof(real))
        for j in range(width):
            (<real *> state.log_low)[first + j] = finite(log_low[j])
    for j in range(width if softmax else 0):
        # The unit goes into the scale, unless that would become subnormal.
        small = -bound < scale[j] < bound
        again[j] = exp_unit(x) if small else <real> 1.0
        scale[j] = scale[j] if small else scale[j] * exp_unit(x)
    # An output may be an input, which the compiler cannot know: it is computed apart.
    for c in range(0 if operation == LOGSUMEXP or backward else classes):
        for j in range(width):
            if operation == LOG_SOFTMAX:
                line[j] = (x[c * x_step + j] - top[j]) - log_sum[j]
            else:
                line[j] = exps[c * width + j] * scale[j] * again[j]
        for j in range(width):
            out[c * out_step + j] = line[j]
    # Of a gradient the next lanes are asked for meanwhile: three times as many arrays as classes are too many for the
    # processor to foresee. Of 4 x 3 x 256 x 256 float64 that are in no cache it takes 300 us on two threads so, and 480.
    for c in range(classes if backward else 0):
        for g in range(groups):
            at = g * GROUP
            if more:
                ask_for(x + c * x_step + width + at, GROUP)
                ask_for(y + c * y_step + width + at, GROUP)
                ask_for(out + c * out_step + width + at, GROUP)
            for j in range(GROUP):
                line[j] = (x[c * x_step + at + j]
                           - exp_scaled(y[c * y_step + at + j], shift[at + j], least[at + j]) * scale[at + j])
            for j in range(GROUP):
                out[c * out_step + at + j] = line[j]


cdef void lanes_at_once(int operation, Py_ssize_t groups, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step,
                        Py_ssize_t classes, const RowState *state, Py_ssize_t first, const real *factor, real *out,
                        Py_ssize_t out_step, bint more) noexcept nogil:
    if operation == LOGSUMEXP:
        at_once(LOGSUMEXP, groups, x, x_step, y, y_step, classes, state, first, factor, out, out_step, more)
    elif operation == LOG_SOFTMAX:
        at_once(LOG_SOFTMAX, groups, x, x_step, y, y_step, classes, state, first, factor, out, out_step, more)
    elif operation == LOG_SOFTMAX_BACKWARD:
        at_once(LOG_SOFTMAX_BACKWARD, groups, x, x_step, y, y_step, classes, state, first, factor, out, out_step, more)
    elif operation == SOFTMAX:
        at_once(SOFTMAX, groups, x, x_step, y, y_step, classes, state, first, factor, out, out_step, more)
    else:
        at_once(SOFTMAX_GRADIENT, groups, x, x_step, y, y_step, classes, state, first, factor, out, out_step, more)


cdef inline bint fits_at_once(int operation, Py_ssize_t classes) noexcept nogil:
    return 2 <= classes <= NEAR_CLASSES and (operation == LOGSUMEXP or operation == LOG_SOFTMAX or operation == SOFTMAX
                                             or operation == SOFTMAX_GRADIENT or operation == LOG_SOFTMAX_BACKWARD)


cdef inline void lanes_group(int operation, bint write, Py_ssize_t width, const real *x, Py_ssize_t x_step, const real *y,
                             Py_ssize_t y_step, Py_ssize_t rows, Py_ssize_t classes, const RowState *state,
                             Py_ssize_t first, const real *factor, real *out, Py_ssize_t out_step, const Soon *in_reduce,
                             const Soon *in_apply) noexcept nogil:
    """Reduces, finishes and, if asked to, writes `width` lanes, `rows` of which are rows that are there. The state has room
    for as many from `first`."""
    cdef bint softmax, mixture = operation == MIXTURE or operation == MIXTURE_COST
    if width == GROUP and fits_at_once(operation, classes):
        ask_meanwhile(in_reduce, 0, classes, width * <Py_ssize_t> sizeof(real))
        ask_meanwhile(in_apply, 0, classes, width * <Py_ssize_t> sizeof(real))
        lanes_at_once(operation, 1, x, x_step, y, y_step, classes, state, first, factor, out, out_step, False)
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


cdef void few_strip(int operation, const real *x, Py_ssize_t x_step, const real *y, Py_ssize_t y_step, Py_ssize_t rows,
                    Py_ssize_t classes, const RowState *state, const real *factor, real *out, Py_ssize_t out_step,
                    real *scratch) noexcept nogil:
    """Lanes of up to SHORT_CLASSES classes. The last few are copied to where a whole group can be read and written."""
    cdef Py_ssize_t c, n, r = 0, groups, x_here_step, y_here_step, out_here_step
    cdef Py_ssize_t most_groups = (AT_ONCE if classes <= REGISTER_CLASSES else AT_ONCE // 2) // GROUP
    cdef real *x_lanes = scratch
    cdef real *y_lanes = scratch + SCRATCH
    cdef const real *x_here
    cdef const real *y_here
    cdef real *out_here
    cdef const real *factor_here = factor
    cylsm_require(classes <= SHORT_CLASSES)
    while r < rows:
        n = min(rows - r, <Py_ssize_t> GROUP)
        x_here, y_here, out_here = x + r, y + r, out + r
        x_here_step, y_here_step, out_here_step = x_step, y_step, out_step
        if factor != NULL:
            factor_here = factor + r
        if n == GROUP and fits_at_once(operation, classes):
            groups = min((rows - r) // GROUP, most_groups)
            lanes_at_once(operation, groups, x_here, x_step, y_here, y_step, classes, state, r, factor_here, out_here,
                          out_step, r + groups * GROUP < rows)
            r += groups * GROUP
            continue
        if n < GROUP:
            for c in range(GROUP * classes):
                x_lanes[c] = y_lanes[c] = 0
            for c in range(classes):
                memcpy(x_lanes + c * GROUP, x_here + c * x_step, n * sizeof(real))
                if has_two(operation):
                    memcpy(y_lanes + c * GROUP, y_here + c * y_step, n * sizeof(real))
            x_here, y_here, out_here = x_lanes, y_lanes, x_lanes
            x_here_step = y_here_step = out_here_step = GROUP
        lanes_group(operation, True, GROUP, x_here, x_here_step, y_here, y_here_step, n, classes, state, r, factor_here,
                    out_here, out_here_step, NULL, NULL)
        for c in range(classes if n < GROUP and out != NULL else 0):
            memcpy(out + r + c * out_step, x_lanes + c * GROUP, n * sizeof(real))
        r += GROUP


# ---- few classes: rows are the lanes ---------------------------------------------------------------------------

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


# An operation a function, here and where loops of other kernels stand apart: side by side they run out of registers, and
# softmax of 65536 x 10 float64 takes a tenth longer.

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


include "_elements.pxi"

# ---- the table -------------------------------------------------------------------------------------------------

cdef void exp_of(const real *x, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real centre, shift, least
    set_reference(<real> 0.0, &centre, &shift, &least)
    for i in range(n):
        out[i] = exp_from(True, False, x[i], centre, shift, least) * exp_unit(x)


cdef void exp_near_of(const real *x, const real *tops, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = exp_near(x[i], tops[i]) * exp_unit(x)


cdef void exp_scaled_of(const real *x, const real *factors, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real shift, least, mantissa
    for i in range(n):
        mantissa = set_factor(factors[i], &shift, &least)
        out[i] = exp_scaled(x[i], shift, least) * mantissa


cdef void log_of(const real *x, const real *y, real *out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef real low
    for i in range(n):
        out[i] = log_of_sum(x[i], y[i], <real> 0.0, &low)


cdef KernelTable table

# Rows up to here are transposed in groups, so that the lanes of a vector are rows. On AVX-512 logsumexp of 4096 rows takes
# so, and by rows, on one thread: of 100 float32 classes 83 us and 101, of 50 float64 classes 107 and 164. On AVX2 softmax
# takes, ns an element on two threads, of 77 float32 classes 0.25 and 0.26, of 96 0.23 and 0.20, of 50 float64 classes 0.56
# and 0.62. Baseline is like AVX2.
table.of_float.few_bytes = FEW_BYTES if CYLSM_VECTOR_BYTES == 64 else 80 * sizeof(float)
table.of_double.few_bytes = FEW_BYTES
# In vectors of 16 floats softmax of rows of two to eight takes less so, with sums in double: 4096 x 32, 39 us on one thread
# and 48 in groups, x 64 63 and 88; x 128, 109 us and 118 by reduce_rows; 100000 x 64 1.6 ms and 2.3. It takes longer in
# vectors of 8, and in double.
table.of_float.softmax_rows = <softmax_kernel> &softmax_rows if CYLSM_VECTOR_BYTES == 64 else NULL
table.of_double.softmax_rows = NULL

# Of narrow vectors arithmetic hides memory anyway: log_softmax takes a tenth longer so.
table.of_float.forward_rows = <forward_kernel> &forward_rows[float] if CYLSM_VECTOR_BYTES > 16 else NULL
table.of_double.forward_rows = <forward_kernel> &forward_rows[double] if CYLSM_VECTOR_BYTES > 16 else NULL

# Of narrower vectors arithmetic hides memory: on AVX2 log_softmax_backward of 100000 x 64 float32 takes 1.50 ms streamed,
# and 1.21; softmax of 16384 x 1000 2.65 and 2.24, on baseline of float64 19.0 and 17.8.
table.of_float.awaits_memory = table.of_double.awaits_memory = CYLSM_VECTOR_BYTES == 64

table.of_float.reduce_rows = <reduce_kernel> &reduce_rows[float]
table.of_float.reduce_strip = <reduce_kernel> &reduce_strip[float]
table.of_float.merge = <merge_kernel> &merge[float]
table.of_float.finish = <finish_kernel> &finish[float]
table.of_float.spread = <spread_kernel> &spread[float]
table.of_float.apply_rows = <apply_kernel> &apply_rows[float]
table.of_float.apply_strip = <apply_kernel> &apply_strip[float]
table.of_float.few_strip = <few_kernel> &few_strip[float]
table.of_float.few_rows = <few_kernel> &few_rows[float]
table.of_float.backward_rows = <backward_kernel> &backward_rows[float]
table.of_float.load = <load_kernel> &load[float]
table.of_float.store = <store_kernel> &store[float]
table.of_float.exp_of = <exp_kernel> &exp_of[float]
table.of_float.exp_near_of = <pair_kernel> &exp_near_of[float]
table.of_float.exp_scaled_of = <pair_kernel> &exp_scaled_of[float]
table.of_float.log_of = <pair_kernel> &log_of[float]
table.of_double.reduce_rows = <reduce_kernel> &reduce_rows[double]
table.of_double.reduce_strip = <reduce_kernel> &reduce_strip[double]
table.of_double.merge = <merge_kernel> &merge[double]
table.of_double.finish = <finish_kernel> &finish[double]
table.of_double.spread = <spread_kernel> &spread[double]
table.of_double.apply_rows = <apply_kernel> &apply_rows[double]
table.of_double.apply_strip = <apply_kernel> &apply_strip[double]
table.of_double.few_strip = <few_kernel> &few_strip[double]
table.of_double.few_rows = <few_kernel> &few_rows[double]
table.of_double.backward_rows = <backward_kernel> &backward_rows[double]
table.of_double.load = <load_kernel> &load[double]
table.of_double.store = <store_kernel> &store[double]
table.of_double.exp_of = <exp_kernel> &exp_of[double]
table.of_double.exp_near_of = <pair_kernel> &exp_near_of[double]
table.of_double.exp_scaled_of = <pair_kernel> &exp_scaled_of[double]
table.of_double.log_of = <pair_kernel> &log_of[double]

capsule = PyCapsule_New(&table, "cylsm.KernelTable", NULL)
