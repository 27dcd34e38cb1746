/* What Cython and the auto-vectoriser cannot say: the bits of a float, transposes and conversions in registers, stores that
   bypass the caches, a prefetch, and asserts without the interpreter. Each has a portable fallback. */
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

#if defined(__clang__)
#define CYLSM_CLANG 1
#else
#define CYLSM_CLANG 0
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

/* Transposes of four columns of four rows, and of QUADS times as many, which fill a vector. */
#define CYLSM_JOINED(what, real, quads) what##_##real##_##quads
#define CYLSM_JOIN(what, real, quads) CYLSM_JOINED(what, real, quads)
#define REAL float
#define SECOND 1
#define QUADS 1
#include "_transpose.h"
#define REAL double
#define SECOND 2
#define QUADS 1
#include "_transpose.h"
#if CYLSM_VECTOR_BYTES >= 32
#define REAL float
#define SECOND 1
#define QUADS 2
#include "_transpose.h"
#endif
#if CYLSM_VECTOR_BYTES >= 64
#define REAL float
#define SECOND 1
#define QUADS 4
#include "_transpose.h"
#define REAL double
#define SECOND 2
#define QUADS 2
#include "_transpose.h"
#endif
#if CYLSM_VECTOR_BYTES >= 64
#define CYLSM_FLOAT_QUADS 4
#define CYLSM_DOUBLE_QUADS 2
#elif CYLSM_VECTOR_BYTES >= 32
#define CYLSM_FLOAT_QUADS 2
#define CYLSM_DOUBLE_QUADS 1
#else
#define CYLSM_FLOAT_QUADS 1
#define CYLSM_DOUBLE_QUADS 1
#endif
#define gather_float CYLSM_JOIN(gather, float, CYLSM_FLOAT_QUADS)
#define scatter_float CYLSM_JOIN(scatter, float, CYLSM_FLOAT_QUADS)
#define gather_double CYLSM_JOIN(gather, double, CYLSM_DOUBLE_QUADS)
#define scatter_double CYLSM_JOIN(scatter, double, CYLSM_DOUBLE_QUADS)

static inline void prefetch_line(const void *p)
{
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 3);
#elif defined(CYLSM_X86)
    _mm_prefetch((const char *)p, _MM_HINT_T0);
#else
    (void)p;
#endif
}

/* In a function that only asks for lines: gcc sees no effect in that, and would drop calls of it. */
static inline void keep_call(void)
{
#if defined(__GNUC__)
    __asm__ volatile("");
#endif
}

/* What has been stored is read again from memory, not taken from the registers that it was in. */
static inline void from_memory(void)
{
#if defined(__GNUC__)
    __asm__ volatile("" ::: "memory");
#endif
}

/* At the head of an outer loop's body: clang unrolls the inner loop, and would then vectorise over the outer one's turns,
   which lie apart, by gathers. */
static inline void turn_by_turn(void)
{
#if defined(__clang__)
    __asm__ volatile("");
#endif
}

/* out[j] = x[j] for a vector of doubles, converted as it is read. gcc reads a whole vector of floats, and has to extract the
   upper half: log_softmax_backward of 500 x 16 float32 would take 5.9 us, and takes 5.7. */
static inline void widen_half(const float *x, double *out)
{
#if defined(__AVX512F__)
    _mm512_storeu_pd(out, _mm512_cvtps_pd(_mm256_loadu_ps(x)));
#elif defined(__AVX2__)
    _mm256_storeu_pd(out, _mm256_cvtps_pd(_mm_loadu_ps(x)));
#elif defined(CYLSM_X86)
    _mm_storeu_pd(out, _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)x))));
#else
    out[0] = x[0];
    out[1] = x[1];
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
