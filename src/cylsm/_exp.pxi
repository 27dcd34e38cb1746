# exp and log, and what is lost in sums and products. Each states its largest error, which tests measure.

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


cdef inline real most_shifted(real shift) noexcept nogil:
    """rounder + 255 or 2047, whatever `shift` is. Of a constant gcc would make a branch, and of that a comparison and a blend,
    not a minimum."""
    return (shift - (shift - rounder(&shift))) + (<real> 255.0 if real is float else <real> 2047.0)


cdef inline real exp_scaled(real x, real shift, real least, real most) noexcept nogil:
    """exp(x), for any x, times the power of two that set_factor made `shift` and `least` of. Times its mantissa, that is
    exp(x) * factor, where factor is neither subnormal nor within a factor of four of the largest number: 0 below the
    smallest normal number, possibly inf above a third of the largest one.

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 0.99 / 1.02 / 1.02, float64 1.03 / 1.06 / 1.06.
    """
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

    Largest error in ulp, baseline / AVX2 / AVX-512: float32 0.87 / 0.71 / 0.71, float64 0.80 / 0.74 / 0.74.
    """
    cdef real s = a + b
    cdef real c = lost_in_sum(a, b, s) + carry
    cdef real k, f, t, z, series, half_square, low, tail, high, rounded, result
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
    low = lost_in_sum(k, high, rounded) + ((f - high) - tail)
    result = rounded + low
    lost[0] = low - (result - rounded)
    return result
