# Elements in and out of the kernels' own dtypes, block by block: other dtypes, byte orders, alignments and strides.

ctypedef fused element:
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    float
    double


cdef inline element element_at(const element *type_only, const char *p, bint swapped) noexcept nogil:
    cdef element v
    cdef char bytes_there[8]
    cdef size_t i
    if swapped:
        for i in range(sizeof(element)):
            bytes_there[i] = p[sizeof(element) - 1 - i]
        memcpy(&v, bytes_there, sizeof(element))
    else:
        memcpy(&v, p, sizeof(element))
    return v


cdef inline float float_of_half(uint16_t half) noexcept nogil:
    """Without branches: the exponent is rebased by a multiplication, which also normalises subnormals."""
    cdef float magnitude = float_of_bits(<uint32_t> (half & 0x7fff) << 13) * float_of_bits(<uint32_t> 0x77800000)
    cdef uint32_t bits = bits_of_float(magnitude)
    bits = bits | (<uint32_t> 0x7f800000 if magnitude >= <float> 65536.0 else <uint32_t> 0)
    return float_of_bits(bits | (<uint32_t> (half & 0x8000) << 16))


cdef inline uint16_t half_of_float(float x) noexcept nogil:
    """Rounds to nearest, ties to even; infinite from 65520 on. The addition of a power of two rounds subnormals."""
    cdef uint32_t bits = bits_of_float(x)
    cdef uint32_t sign = (bits >> 16) & <uint32_t> 0x8000
    cdef uint32_t magnitude = bits & <uint32_t> 0x7fffffff
    cdef uint32_t small = bits_of_float(float_of_bits(magnitude) + <float> 0.5) - <uint32_t> 0x3f000000
    cdef uint32_t normal = (magnitude - <uint32_t> 0x38000000 + <uint32_t> 0xfff + ((magnitude >> 13) & 1)) >> 13
    cdef uint32_t result = small if magnitude < <uint32_t> 0x38800000 else normal
    result = <uint32_t> 0x7c00 if magnitude >= <uint32_t> 0x477ff000 else result
    result = <uint32_t> 0x7e00 if magnitude > <uint32_t> 0x7f800000 else result
    return <uint16_t> (sign | result)


cdef inline bint is_same(const element *one, const real *other) noexcept nogil:
    return (element is float and real is float) or (element is double and real is double)


cdef inline void copy_bytes(char *out, const char *x, Py_ssize_t n) noexcept nogil:
    """n bytes, a multiple of 4, in parts of a fixed size of which the last overlaps: few lanes are not worth a call of memcpy."""
    cdef Py_ssize_t i
    if n >= 64:
        for i in range(n // 64):
            memcpy(out + 64 * i, x + 64 * i, 64)
        memcpy(out + n - 64, x + n - 64, 64)
    elif n >= 32:
        memcpy(out, x, 32)
        memcpy(out + n - 32, x + n - 32, 32)
    elif n >= 16:
        memcpy(out, x, 16)
        memcpy(out + n - 16, x + n - 16, 16)
    elif n >= 8:
        memcpy(out, x, 8)
        memcpy(out + n - 8, x + n - 8, 8)
    else:
        memcpy(out, x, 4)


cdef inline bint lies_across(const element *type_only, const real *other, const void *data, Py_ssize_t outer_stride,
                             Py_ssize_t inner_stride, Py_ssize_t outer, Py_ssize_t inner) noexcept nogil:
    """Whether turn_over can take what has these strides."""
    return (is_same(type_only, other) and outer_stride == sizeof(real) and inner_stride % <Py_ssize_t> sizeof(real) == 0
            and <size_t> data % sizeof(real) == 0 and outer >= 4 and inner >= 4)


cdef inline void turn_over(const real *x, Py_ssize_t x_step, Py_ssize_t rows, Py_ssize_t columns, real *out,
                           Py_ssize_t out_step) noexcept nogil:
    """out[i * out_step + j] = x[j * x_step + i] of at least four rows and columns, the last of which overlap others. softmax of
    32 x 128 x 3 x 3 float32 takes 15 us on one thread so, and element by element 28."""
    cdef Py_ssize_t i, j, r, c
    for j in range(0, columns, 4):
        c = min(j, columns - 4)
        for i in range(0, rows, 4):
            r = min(i, rows - 4)
            transpose(x + c * x_step + r, x_step, out + r * out_step + c, out_step)


cdef inline real real_of(const real *type_only, element v, bint half) noexcept nogil:
    if half:
        return <real> float_of_half(<uint16_t> v)
    return <real> v


cdef inline void load_as(const element *type_only, bint half, bint swapped, const char *data, Py_ssize_t outer_stride,
                         Py_ssize_t inner_stride, Py_ssize_t outer, Py_ssize_t inner, real *out,
                         Py_ssize_t out_step) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef const char *row
    if not swapped and lies_across(type_only, out, data, outer_stride, inner_stride, outer, inner):
        turn_over(<const real *> data, inner_stride // <Py_ssize_t> sizeof(real), outer, inner, out, out_step)
        return
    for i in range(outer):
        row = data + i * outer_stride
        if is_same(type_only, out) and not swapped and inner_stride == sizeof(element):
            copy_bytes(<char *> (out + i * out_step), row, inner * <Py_ssize_t> sizeof(real))
        elif swapped:
            for j in range(inner):
                out[i * out_step + j] = real_of(out, element_at(type_only, row + j * inner_stride, True), half)
        elif inner_stride == sizeof(element):
            for j in range(inner):
                out[i * out_step + j] = real_of(
                    out, element_at(type_only, row + j * <Py_ssize_t> sizeof(element), False), half)
        else:
            for j in range(inner):
                out[i * out_step + j] = real_of(out, element_at(type_only, row + j * inner_stride, False), half)


cdef void load(Element element_kind, bint swapped, const char *data, Py_ssize_t outer_stride, Py_ssize_t inner_stride,
               Py_ssize_t outer, Py_ssize_t inner, real *out, Py_ssize_t out_step) noexcept nogil:
    if element_kind == FLOAT32:
        load_as(<const float *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == FLOAT64:
        load_as(<const double *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == FLOAT16:
        load_as(<const uint16_t *> NULL, True, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == INT8:
        load_as(<const int8_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == INT16:
        load_as(<const int16_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == INT32:
        load_as(<const int32_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == INT64:
        load_as(<const int64_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == UINT16:
        load_as(<const uint16_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == UINT32:
        load_as(<const uint32_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    elif element_kind == UINT64:
        load_as(<const uint64_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)
    else:
        load_as(<const uint8_t *> NULL, False, swapped, data, outer_stride, inner_stride, outer, inner, out, out_step)


cdef inline void store_as(bint half, element type_only, const real *x, Py_ssize_t x_step, Py_ssize_t outer,
                          Py_ssize_t inner, char *data, Py_ssize_t outer_stride, Py_ssize_t inner_stride) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef element v
    if lies_across(&v, x, data, outer_stride, inner_stride, outer, inner):
        turn_over(x, x_step, inner, outer, <real *> data, inner_stride // <Py_ssize_t> sizeof(real))
        return
    for i in range(outer):
        if is_same(&v, x) and inner_stride == sizeof(element):
            copy_bytes(data + i * outer_stride, <const char *> (x + i * x_step), inner * <Py_ssize_t> sizeof(real))
            continue
        for j in range(inner):
            v = <element> half_of_float(<float> x[i * x_step + j]) if half else <element> x[i * x_step + j]
            memcpy(data + i * outer_stride + j * inner_stride, &v, sizeof(element))


cdef void store(Element element_kind, const real *x, Py_ssize_t x_step, Py_ssize_t outer, Py_ssize_t inner, char *data,
                Py_ssize_t outer_stride, Py_ssize_t inner_stride) noexcept nogil:
    if element_kind == FLOAT16:
        store_as(True, <uint16_t> 0, x, x_step, outer, inner, data, outer_stride, inner_stride)
    elif element_kind == FLOAT32:
        store_as(False, <float> 0, x, x_step, outer, inner, data, outer_stride, inner_stride)
    else:
        store_as(False, <double> 0, x, x_step, outer, inner, data, outer_stride, inner_stride)
