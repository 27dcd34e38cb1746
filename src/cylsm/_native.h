/* What Cython and the auto-vectoriser cannot say: the bits of a float, a transpose in registers, stores that bypass the
   caches, a prefetch, and asserts without the interpreter. Each has a portable fallback. */
#ifndef CYLSM_NATIVE_H
#define CYLSM_NATIVE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#define CYLSM_X86 1
#endif

#if defined(__GNUC__) && (defined(__FMA__) || defined(__aarch64__))
#define CYLSM_FMA 1
#else
#define CYLSM_FMA 0
#endif

/* Bytes of the widest vectors that the compiler may use. */
#if defined(__AVX512F__)
#define CYLSM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CYLSM_VECTOR_BYTES 32
#else
#define CYLSM_VECTOR_BYTES 16
#endif

#define cylsm_require(condition) assert(condition)

static inline uint32_t bits_of_float(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
static inline uint64_t bits_of_double(double x) { uint64_t b; memcpy(&b, &x, 8); return b; }
static inline float float_of_bits(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }
static inline double double_of_bits(uint64_t b) { double x; memcpy(&x, &b, 8); return x; }

/* out[c * out_step + r] = x[r * x_step + c] for r, c < 4; all of x is read before out is written. The first shuffles take
   columns 0 and `i` side by side, and `j` and 3. */
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define CYLSM_TRANSPOSE(real, bytes, i, j)                                                                            \
    static inline void transpose_##real(const real *x, ptrdiff_t x_step, real *out, ptrdiff_t out_step)               \
    {                                                                                                                 \
        typedef real vector __attribute__((vector_size(bytes)));                                                      \
        vector a, b, c, d, upper_i, upper_j, lower_i, lower_j;                                                        \
        memcpy(&a, x, sizeof a);                                                                                      \
        memcpy(&b, x + x_step, sizeof b);                                                                             \
        memcpy(&c, x + 2 * x_step, sizeof c);                                                                         \
        memcpy(&d, x + 3 * x_step, sizeof d);                                                                         \
        upper_i = __builtin_shufflevector(a, b, 0, 4, i, 4 + i);                                                      \
        upper_j = __builtin_shufflevector(a, b, j, 4 + j, 3, 7);                                                      \
        lower_i = __builtin_shufflevector(c, d, 0, 4, i, 4 + i);                                                      \
        lower_j = __builtin_shufflevector(c, d, j, 4 + j, 3, 7);                                                      \
        a = __builtin_shufflevector(upper_i, lower_i, 0, 1, 4, 5);                                                    \
        b = __builtin_shufflevector(upper_i, lower_i, 2, 3, 6, 7);                                                    \
        c = __builtin_shufflevector(upper_j, lower_j, 0, 1, 4, 5);                                                    \
        d = __builtin_shufflevector(upper_j, lower_j, 2, 3, 6, 7);                                                    \
        memcpy(out, &a, sizeof a);                                                                                    \
        memcpy(out + i * out_step, &b, sizeof b);                                                                     \
        memcpy(out + j * out_step, &c, sizeof c);                                                                     \
        memcpy(out + 3 * out_step, &d, sizeof d);                                                                     \
    }
CYLSM_TRANSPOSE(float, 16, 1, 2)
CYLSM_TRANSPOSE(double, 32, 2, 1)
#else
#define CYLSM_TRANSPOSE(real)                                                                                         \
    static inline void transpose_##real(const real *x, ptrdiff_t x_step, real *out, ptrdiff_t out_step)               \
    {                                                                                                                 \
        real block[16];                                                                                               \
        for (int r = 0; r < 4; r++)                                                                                   \
            memcpy(block + 4 * r, x + r * x_step, 4 * sizeof(real));                                                  \
        for (int c = 0; c < 4; c++)                                                                                   \
            for (int r = 0; r < 4; r++)                                                                               \
                out[c * out_step + r] = block[4 * r + c];                                                             \
    }
CYLSM_TRANSPOSE(float)
CYLSM_TRANSPOSE(double)
#endif

static inline void prefetch_line(const void *p)
{
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 2);
#elif defined(CYLSM_X86)
    _mm_prefetch((const char *)p, _MM_HINT_T0);
#else
    (void)p;
#endif
}

/* Stores `lines` whole 64-byte lines at `to`, which is 64-byte aligned, around the caches. */
static inline void stream_lines(void *to, const void *from, ptrdiff_t lines)
{
#if defined(__AVX512F__)
    for (ptrdiff_t i = 0; i < lines; i++)
        _mm512_stream_ps((float *)to + 16 * i, _mm512_loadu_ps((const float *)from + 16 * i));
#elif defined(CYLSM_X86)
    for (ptrdiff_t i = 0; i < 4 * lines; i++)
        _mm_stream_ps((float *)to + 4 * i, _mm_loadu_ps((const float *)from + 4 * i));
#else
    memcpy(to, from, (size_t)(64 * lines));
#endif
}

/* Orders streamed lines before everything that follows. */
static inline void stream_fence(void)
{
#if defined(CYLSM_X86)
    _mm_sfence();
#endif
}

#endif
