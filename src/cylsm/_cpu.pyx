"""Which instruction sets this processor and operating system run, found out before anything compiled for them loads, and
how large its caches are."""

import os
from glob import glob

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <cpuid.h>
    static void cylsm_cpuid(unsigned leaf, unsigned *r)
    {
        r[0] = r[1] = r[2] = r[3] = 0;
        __get_cpuid_count(leaf, 0, r, r + 1, r + 2, r + 3);
    }
    static unsigned cylsm_xgetbv(void)
    {
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return low;
    }
    #elif defined(_M_X64)
    #include <intrin.h>
    static void cylsm_cpuid(unsigned leaf, unsigned *r)
    {
        int v[4];
        __cpuid(v, 0);
        if ((unsigned)v[0] < leaf) { r[0] = r[1] = r[2] = r[3] = 0; return; }
        __cpuidex(v, (int)leaf, 0);
        for (int i = 0; i < 4; i++) r[i] = (unsigned)v[i];
    }
    static unsigned cylsm_xgetbv(void) { return (unsigned)_xgetbv(0); }
    #else
    static void cylsm_cpuid(unsigned leaf, unsigned *r) { (void)leaf; r[0] = r[1] = r[2] = r[3] = 0; }
    static unsigned cylsm_xgetbv(void) { return 0; }
    #endif
    """
    void cylsm_cpuid(unsigned leaf, unsigned *registers)
    unsigned cylsm_xgetbv()

cdef bint has(unsigned register, tuple bits):
    return all((register >> bit) & 1 for bit in bits)


def runnable():
    """Names of the instruction sets that would run here, from the slowest to the fastest."""
    cdef unsigned basic[4]
    cdef unsigned extended[4]
    cdef unsigned saved
    names = ["baseline"]
    cylsm_cpuid(1, basic)
    cylsm_cpuid(7, extended)
    if not has(basic[2], (12, 27, 28)):          # FMA, OSXSAVE, AVX
        return names
    saved = cylsm_xgetbv()
    if has(saved, (1, 2)) and has(extended[1], (5,)):                       # the system saves ymm; AVX2
        names.append("avx2")
        if has(saved, (5, 6, 7)) and has(extended[1], (16, 17, 30, 31)):    # and zmm, masks; F, DQ, BW, VL
            names.append("avx512")
    return names


def choose(available):
    """The instruction set to use out of those available: CYLSM_ISA's, else the fastest."""
    wanted = os.environ.get("CYLSM_ISA", "")
    if not wanted:
        return available[len(available) - 1]
    if wanted not in available:
        raise ImportError(f"CYLSM_ISA={wanted!r} is not available here; available are {', '.join(available)}")
    return wanted


# Of the largest cache a processor gets no more than this: a virtual machine of two is told of all 300 MB that a Xeon shares
# among 64; taken at 32 MB instead, its arrays of 8 to 96 MB take 0.91 times as long in the mean of 104 cells, taken at 64 MB 0.92
# and at 16 MB 0.91.
cdef enum:
    PROCESSOR_CACHE_BYTES = 16 << 20


def last_level_cache_bytes(processors):
    """Size of the largest cache, or the share of it that so many processors have; where the system does not tell, that of a common
    server."""
    sizes = [32 << 20]
    for path in glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        if text[:-1].isdecimal() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return min(max(sizes[1:] or sizes), processors * PROCESSOR_CACHE_BYTES)
