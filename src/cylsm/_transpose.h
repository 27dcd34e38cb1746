/* Four columns of 4 * QUADS rows, transposed; included once for every REAL and number of QUADS.

   gather: out[c * out_step + r] = x[r * x_step + c] for c < 4 and r < 4 * QUADS; scatter: out[r * out_step + c] =
   x[c * x_step + r]. All of x is read before out is written. A quad is four elements of a row; a vector holds those of
   rows r, r + 4 and so on, so that the same shuffles serve any number of them. SECOND is the column that the shuffles
   bring to the second place: 1, or 2 where half a quad fills 16 bytes. */
#define NAME(what) CYLSM_JOIN(what, REAL, QUADS)
#define THIRD (3 - SECOND)

/* gcc takes shuffles of vectors wider than the widest apart by way of memory: those of double in SSE2. */
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12 && (SECOND == 1 || CYLSM_VECTOR_BYTES > 16))
#if QUADS == 1
#define EACH(quad) quad(0)
#elif QUADS == 2
#define EACH(quad) quad(0), quad(4)
#define HALF 1
#else
#define EACH(quad) quad(0), quad(4), quad(8), quad(12)
#define HALF 2
#endif
/* Elements of two vectors, a and b. */
#define IN_A(i) (i)
#define IN_B(i) (4 * QUADS + (i))
#define ALL(q) IN_A(q), IN_A(q + 1), IN_A(q + 2), IN_A(q + 3)
#define FIRST_TWO(q) IN_A(q), IN_B(q), IN_A(q + SECOND), IN_B(q + SECOND)
#define LAST_TWO(q) IN_A(q + THIRD), IN_B(q + THIRD), IN_A(q + 3), IN_B(q + 3)
#define LOWER(q) IN_A(q), IN_A(q + 1), IN_B(q), IN_B(q + 1)
#define UPPER(q) IN_A(q + 2), IN_A(q + 3), IN_B(q + 2), IN_B(q + 3)

typedef REAL NAME(quads) __attribute__((vector_size(4 * QUADS * sizeof(REAL))));

/* Vectors are not passed by value: that would depend on the instruction set. */
static inline void NAME(load)(NAME(quads) *quads, const REAL *x, ptrdiff_t step)
{
#if QUADS == 1
    (void)step;
    memcpy(quads, x, sizeof *quads);
#else
    CYLSM_JOIN(quads, REAL, HALF) lower, upper;
    CYLSM_JOIN(load, REAL, HALF)(&lower, x, step);
    CYLSM_JOIN(load, REAL, HALF)(&upper, x + 4 * HALF * step, step);
    *quads = __builtin_shufflevector(lower, upper, EACH(ALL));
#endif
}

static inline void NAME(store)(const NAME(quads) *quads, REAL *out, ptrdiff_t step)
{
#if QUADS == 1
    (void)step;
    memcpy(out, quads, sizeof *quads);
#else
#if QUADS == 2
    CYLSM_JOIN(quads, REAL, HALF) lower = __builtin_shufflevector(*quads, *quads, ALL(0));
    CYLSM_JOIN(quads, REAL, HALF) upper = __builtin_shufflevector(*quads, *quads, ALL(4));
#else
    CYLSM_JOIN(quads, REAL, HALF) lower = __builtin_shufflevector(*quads, *quads, ALL(0), ALL(4));
    CYLSM_JOIN(quads, REAL, HALF) upper = __builtin_shufflevector(*quads, *quads, ALL(8), ALL(12));
#endif
    CYLSM_JOIN(store, REAL, HALF)(&lower, out, step);
    CYLSM_JOIN(store, REAL, HALF)(&upper, out + 4 * HALF * step, step);
#endif
}

static inline void NAME(transpose)(NAME(quads) v[4])
{
    NAME(quads) a = __builtin_shufflevector(v[0], v[1], EACH(FIRST_TWO));
    NAME(quads) b = __builtin_shufflevector(v[0], v[1], EACH(LAST_TWO));
    NAME(quads) c = __builtin_shufflevector(v[2], v[3], EACH(FIRST_TWO));
    NAME(quads) d = __builtin_shufflevector(v[2], v[3], EACH(LAST_TWO));
    v[0] = __builtin_shufflevector(a, c, EACH(LOWER));
    v[SECOND] = __builtin_shufflevector(a, c, EACH(UPPER));
    v[THIRD] = __builtin_shufflevector(b, d, EACH(LOWER));
    v[3] = __builtin_shufflevector(b, d, EACH(UPPER));
}

static inline void NAME(gather)(const REAL *x, ptrdiff_t x_step, REAL *out, ptrdiff_t out_step)
{
    NAME(quads) v[4];
    NAME(load)(&v[0], x, x_step);
    NAME(load)(&v[1], x + x_step, x_step);
    NAME(load)(&v[2], x + 2 * x_step, x_step);
    NAME(load)(&v[3], x + 3 * x_step, x_step);
    NAME(transpose)(v);
    memcpy(out, &v[0], sizeof v[0]);
    memcpy(out + out_step, &v[1], sizeof v[1]);
    memcpy(out + 2 * out_step, &v[2], sizeof v[2]);
    memcpy(out + 3 * out_step, &v[3], sizeof v[3]);
}

static inline void NAME(scatter)(const REAL *x, ptrdiff_t x_step, REAL *out, ptrdiff_t out_step)
{
    NAME(quads) v[4];
    memcpy(&v[0], x, sizeof v[0]);
    memcpy(&v[1], x + x_step, sizeof v[1]);
    memcpy(&v[2], x + 2 * x_step, sizeof v[2]);
    memcpy(&v[3], x + 3 * x_step, sizeof v[3]);
    NAME(transpose)(v);
    NAME(store)(&v[0], out, out_step);
    NAME(store)(&v[1], out + out_step, out_step);
    NAME(store)(&v[2], out + 2 * out_step, out_step);
    NAME(store)(&v[3], out + 3 * out_step, out_step);
}
#undef EACH
#undef HALF
#undef IN_A
#undef IN_B
#undef ALL
#undef FIRST_TWO
#undef LAST_TWO
#undef LOWER
#undef UPPER
#else
static inline void NAME(gather)(const REAL *x, ptrdiff_t x_step, REAL *out, ptrdiff_t out_step)
{
    REAL block[16 * QUADS];
    for (int r = 0; r < 4 * QUADS; r++)
        memcpy(block + 4 * r, x + r * x_step, 4 * sizeof(REAL));
    for (int c = 0; c < 4; c++)
        for (int r = 0; r < 4 * QUADS; r++)
            out[c * out_step + r] = block[4 * r + c];
}

static inline void NAME(scatter)(const REAL *x, ptrdiff_t x_step, REAL *out, ptrdiff_t out_step)
{
    REAL block[16 * QUADS];
    for (int c = 0; c < 4; c++)
        memcpy(block + 4 * QUADS * c, x + c * x_step, 4 * QUADS * sizeof(REAL));
    for (int r = 0; r < 4 * QUADS; r++)
        for (int c = 0; c < 4; c++)
            out[r * out_step + c] = block[4 * QUADS * c + r];
}
#endif
#undef NAME
#undef THIRD
#undef REAL
#undef SECOND
#undef QUADS
